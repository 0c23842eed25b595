"""Models of other architectures than ours: sampling and scoring equal transformers', whichever way is taken."""

import pytest
import torch
from transformers import PreTrainedModel

from pipelines.rollouts import Sampling, generate, likelihoods, score
from pipelines.rollouts.architectures import ShortCuts, short_cuts
from tests.small_starts import CONFIGS, small_model

PROMPTS = [[5], [7, 8, 9, 10, 11], [3, 4], [12, 13, 14, 15, 16, 17, 18], [9, 2, 9]]
FEW = ("gemma2", "gpt2", "llama", "qwen3_moe")
"""One of each way: own cache and own logits, absolute positions, rotary ones, and experts."""
ARCHITECTURES = [pytest.param(name, marks=[] if name in FEW else pytest.mark.ci_only) for name in sorted(CONFIGS)]


def log_probs(model: PreTrainedModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Those of transformers' own forward pass over one sequence."""
    logits = model(torch.tensor([prompt + response])).logits[0].float()
    rows = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
    return logits.log_softmax(-1)[rows, torch.tensor(response)]


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sampling_and_scoring_equal_transformers(name: str) -> None:
    model, reference = small_model(name), small_model(name)
    # Longer than the windows of those that have one, and prompts of different lengths.
    ours = generate(model, PROMPTS, Sampling(0.0, 1.0, 24), n=1, seed=(0,)).responses()
    for prompt, response in zip(PROMPTS, ours, strict=True):
        theirs = reference.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt) :]
        assert response == theirs.tolist()

    rollouts = generate(model, PROMPTS, Sampling(1.0, 1.0, 20), n=2, seed=(1,))
    responses = rollouts.responses()
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    expected = [log_probs(reference, *pair) for pair in zip(prompts, responses, strict=True)]
    scores = score(model, prompts, responses)
    torch.testing.assert_close(scores.log_probs, torch.cat(expected), atol=1e-5, rtol=0)
    for row, values in enumerate(expected):
        torch.testing.assert_close(rollouts.log_probs[row, : len(values)], values, atol=1e-5, rtol=0)
    for batch, measured in likelihoods(model, prompts, responses, batch_tokens=64):
        torch.testing.assert_close(measured.log_probs, torch.cat([expected[i] for i in batch]), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma2", "llama", "qwen3"])
def test_of_equally_likely_tokens_only_the_one_that_greedy_sampling_takes_is_the_likeliest(name: str) -> None:
    """Else a benchmark's exact match would count answers that the model would not give."""
    model = small_model(name)
    model.get_output_embeddings().weight.zero_()
    taken = generate(model, [[5]], Sampling(0.0, 1.0, 1), n=1, seed=(0,)).responses()[0][0]
    response = [taken, taken + 1, taken]
    ((_, measured),) = likelihoods(model, [[5]], [response], batch_tokens=64)
    assert measured.likeliest.tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "llama"])
def test_the_gradient_of_a_score_is_that_of_the_models_own_pass(name: str) -> None:
    model, reference = small_model(name), small_model(name)
    responses = [[4, 7, 1], [9], [3, 3, 8, 2]]
    prompts = [[5, 6], [5, 6], [1, 2, 3]]
    score(model, prompts, responses, temperature=0.7).log_probs.sum().backward()
    for prompt, response in zip(prompts, responses, strict=True):
        logits = reference(torch.tensor([prompt + response])).logits[0] / 0.7
        rows = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
        logits.log_softmax(-1)[rows, torch.tensor(response)].sum().backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4 * float(theirs.grad.abs().max()) + 1e-6, rtol=0)


def test_a_short_cut_is_taken_only_where_it_agrees() -> None:
    assert short_cuts(small_model("llama")) == ShortCuts(flat_tokens=True, plain_logits=True)
    assert short_cuts(small_model("gemma3")) == ShortCuts(flat_tokens=False, plain_logits=True)
    assert short_cuts(small_model("gemma2")) == ShortCuts(flat_tokens=False, plain_logits=False)
    # A state goes from document to document, whatever their positions.
    recurrent = ShortCuts(flat_tokens=False, plain_logits=True, cached=True, packed=False)
    assert short_cuts(small_model("falcon_h1")) == recurrent
    assert short_cuts(small_model("mamba")) == recurrent
    assert not short_cuts(small_model("rwkv")).cached


@torch.no_grad()
def test_a_response_ends_with_any_end_token() -> None:
    model = small_model("llama")
    free = generate(model, PROMPTS, Sampling(0.0, 1.0, 24), n=1, seed=(0,)).responses()
    ends = [free[0][5], free[1][3]]
    model.generation_config.eos_token_id = ends
    ours = generate(model, PROMPTS, Sampling(0.0, 1.0, 24), n=1, seed=(0,))
    for row, response in enumerate(free):
        stop = next((i for i, token in enumerate(response) if token in ends), None)
        assert ours.responses()[row] == (response if stop is None else response[: stop + 1])
        assert bool(ours.stopped[row]) == (stop is not None)
