"""The in-process engine against `transformers.generate`, separate forward passes and the exact distribution."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import MiniMaxM2Config, MiniMaxM2ForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from pipelines.rollouts import Sampling, generate, length_batches, qwen3, score
from pipelines.rollouts.transformers_engine import _uniforms, draw

END = 0


def tiny(vocab: int = 40, seed: int = 0, scale: float = 6.0) -> Qwen3ForCausalLM:
    """A random Qwen3 whose distributions are far from uniform; token 0 ends a response."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        eos_token_id=END,
        pad_token_id=END,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model


RAGGED = [[5], [7, 8, 9, 10, 11], [3, 4], [12, 13, 14, 15, 16, 17, 18], [9, 2, 9]]


def test_greedy_equals_transformers() -> None:
    model, sampling = tiny(), Sampling(0.0, 1.0, 90)
    free = generate(model, RAGGED, sampling, n=1, seed=(0,)).responses()
    # End responses by a token that only some of them contain, so that ended rows are removed from the batch.
    end = next(t for t in range(40) if 0 < sum(t in r for r in free) < len(free) - 1)
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    ours = generate(model, RAGGED, sampling, n=1, seed=(0,)).responses()
    for prompt, response in zip(RAGGED, ours, strict=True):
        theirs = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=90)[0, len(prompt) :]
        assert response == theirs.tolist()


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_log_probs_equal_a_fresh_pass(top_p: float) -> None:
    model = tiny(scale=3.0)
    sampling = Sampling(0.8, top_p, 100)  # longer than the first buffer, so it grows
    rollouts = generate(model, RAGGED, sampling, n=12, seed=(1,))
    prompts = [p for p in RAGGED for _ in range(12)]
    fresh, entropies, _ = score(model, prompts, rollouts.responses(), temperature=0.8)
    mask = torch.arange(100) < rollouts.lengths[:, None]
    torch.testing.assert_close(rollouts.log_probs[mask], fresh.detach(), atol=1e-4, rtol=0)
    assert not rollouts.log_probs[~mask].any()
    assert (entropies > 0).all()
    assert len(set(rollouts.lengths.tolist())) > 3
    last = rollouts.tokens.gather(1, rollouts.lengths[:, None] - 1)[:, 0]
    assert torch.equal(rollouts.stopped, last == END)
    assert not (rollouts.tokens[mask] == END).sum() > rollouts.stopped.sum()


def test_the_batch_split_changes_nothing() -> None:
    model = tiny(scale=3.0)
    sampling = Sampling(1.0, 0.9, 30)
    whole = generate(model, RAGGED, sampling, n=7, seed=(3, 1))
    for rows in (1, 4, 7, 16):
        split = generate(model, RAGGED, sampling, n=7, seed=(3, 1), rows=rows)
        assert torch.equal(whole.tokens, split.tokens)
        torch.testing.assert_close(whole.log_probs, split.log_probs, atol=1e-5, rtol=0)
    assert not torch.equal(whole.tokens, generate(model, RAGGED, sampling, n=7, seed=(3, 2)).tokens)


@pytest.mark.parametrize("rows", [4, 64])
def test_every_response_is_reported_once_and_short_ones_early(rows: int) -> None:
    model = tiny(scale=3.0)
    model.config.max_position_embeddings = 80  # which cuts the longest
    reported: list[tuple[int, list[int], bool]] = []
    calls = []

    def finished(numbers: Sequence[int], responses: Sequence[list[int]], stopped: Sequence[bool]) -> None:
        calls.append(max(map(len, responses)))
        reported.extend(zip(numbers, responses, stopped, strict=True))

    result = generate(model, RAGGED, Sampling(1.0, 1.0, 90), n=6, seed=(3,), rows=rows, finished=finished)
    expected = zip(range(30), result.responses(), result.stopped.tolist(), strict=True)
    assert sorted(reported) == list(expected)
    assert len(calls) > 3
    assert calls[0] < calls[-1] or rows < 30
    assert not all(result.stopped), "some are cut"


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_two_tokens_follow_the_distribution(temperature: float, top_p: float) -> None:
    """Chi-square over all pairs of two sampled tokens against probabilities computed without the engine."""
    model, vocab, prompt, n = tiny(vocab=7, scale=4.0), 7, [3, 5], 20_000
    rollouts = generate(model, [prompt], Sampling(temperature, top_p, 2), n=n, seed=(11,), rows=20_000)

    def distribution(tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            p = (model(torch.tensor([tokens])).logits[0, -1].double() / temperature).softmax(-1).numpy()
        order = np.argsort(-p)
        size = int(np.searchsorted(np.cumsum(p[order]), top_p - 1e-12)) + 1
        p[order[size:]] = 0
        return p / p.sum()

    first = distribution(prompt)
    expected: dict[tuple[int, ...], float] = {(END,): first[END]}
    for a, b in itertools.product(range(1, vocab), range(vocab)):
        expected[a, b] = first[a] * distribution([*prompt, a])[b]
    drawn = [tuple(r) for r in rollouts.responses()]
    assert set(drawn) <= {k for k, v in expected.items() if v > 0}
    likely = [k for k, v in expected.items() if v * n > 5]
    observed = [drawn.count(k) for k in likely]
    counts = [expected[k] * n for k in likely]
    # All unlikely pairs together are one more bin, if it is not empty.
    if n - sum(counts) >= 1e-6:
        observed, counts = [*observed, n - sum(observed)], [*counts, n - sum(counts)]
    assert chisquare(observed, np.array(counts) * sum(observed) / sum(counts)).pvalue > 1e-3


def test_a_score_does_not_depend_on_the_batch() -> None:
    model = tiny()
    single = score(model, [[4, 5]], [[6, 7, 8]]).log_probs
    batched = score(model, [[4, 5], [1] * 9], [[6, 7, 8], [2] * 5]).log_probs
    torch.testing.assert_close(single, batched[:3])


def test_training_mode_is_restored() -> None:
    model = tiny().train()
    generate(model, [[1]], Sampling(1.0, 1.0, 2), n=1, seed=(0,))
    assert model.training


def test_length_batches() -> None:
    lengths = [9, 1, 5, 3, 30, 2]
    batches = list(length_batches(lengths, 12))
    assert sorted(itertools.chain(*batches)) == list(range(6))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 12
    ordered = [lengths[i] for i in itertools.chain(*batches)]
    assert ordered == sorted(lengths)


def moe() -> MiniMaxM2ForCausalLM:
    """The study's MoE family: a sigmoid gate with a correction bias, two of four experts per token."""
    torch.manual_seed(0)
    config = MiniMaxM2Config(
        vocab_size=40, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
        eos_token_id=END, pad_token_id=END, bos_token_id=None,
    )  # fmt: skip
    model = MiniMaxM2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "gate" not in name:
                parameter.mul_(5.0)
    return model


def rescaled() -> Qwen3ForCausalLM:
    """A Qwen3 with rescaled RoPE, which `pipelines.rollouts.qwen3` does not support."""
    model = tiny()
    parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    config = Qwen3Config(**(model.config.to_dict() | {"rope_parameters": parameters}))
    changed = Qwen3ForCausalLM(config).eval()
    changed.load_state_dict(model.state_dict())
    return changed


def other_base() -> Qwen3ForCausalLM:
    """A Qwen3 with another RoPE base, as after mid-training."""
    model = tiny()
    config = Qwen3Config(**(model.config.to_dict() | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}))
    changed = Qwen3ForCausalLM(config).eval()
    changed.load_state_dict(model.state_dict())
    return changed


@pytest.mark.parametrize(
    ("make", "supported"),
    [(moe, False), (rescaled, False), (other_base, True)],
    ids=["moe", "rope-scaled", "rope-base"],
)
def test_every_model_samples_from_its_own_distribution(make, supported: bool) -> None:  # type: ignore[no-untyped-def]
    model: PreTrainedModel = make()
    assert qwen3.supports(model) == supported
    ours = generate(model, RAGGED, Sampling(0.0, 1.0, 70), n=1, seed=(0,))
    for i, prompt in enumerate(RAGGED):
        theirs = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=70)[0, len(prompt) :]  # type: ignore[operator]
        response = ours.responses()[i]
        assert response == theirs.tolist()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        fresh = logits.log_softmax(-1)[range(len(response)), response]
        torch.testing.assert_close(ours.log_probs[i, : len(response)], fresh, atol=1e-4, rtol=0)
        torch.testing.assert_close(score(model, [prompt], [response]).log_probs, fresh, atol=1e-4, rtol=0)


def test_scores_and_gradients_equal_those_of_the_models_own_pass() -> None:
    """Shared and single prompts of several lengths, against `transformers` and autograd, with entropy and steepness."""
    prompts = [[1, 2, 3]] * 3 + [[4, 5]] + [[6]] * 2
    responses = [[7, 8], [9], [5, 5, 5, 5, END], [1, 2, 3], [END], [3, 3]]
    model, weights = tiny(scale=3.0), torch.randn(14, generator=torch.Generator().manual_seed(0))
    scores = score(model, prompts, responses, temperature=0.7)
    (scores.log_probs * weights).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / 0.7
        rows.append(logits.log_softmax(-1))
    distributions, tokens = torch.cat(rows), [token for response in responses for token in response]
    expected = distributions[range(14), tokens]
    (expected * weights).sum().backward()
    torch.testing.assert_close(scores.log_probs, expected, atol=1e-5, rtol=0)
    p = distributions.detach().exp()
    torch.testing.assert_close(scores.entropies, -(p * distributions.detach()).sum(-1), atol=1e-5, rtol=0)
    one_hot = torch.nn.functional.one_hot(torch.tensor(tokens), 40)
    torch.testing.assert_close(scores.steepness, (one_hot - p).norm(dim=-1), atol=1e-4, rtol=0)
    for ours, parameter in zip(gradients, model.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(ours, parameter.grad, atol=1e-4, rtol=1e-3)


def test_scores_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(scale=3.0)
    whole = score(model, RAGGED, RAGGED)
    whole.log_probs.sum().backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    monkeypatch.setattr("pipelines.rollouts.scoring.CHUNK", 120)  # three rows of forty
    monkeypatch.setattr("pipelines.rollouts.scoring.LEAST_ROWS", 1)
    parts = score(model, RAGGED, RAGGED)
    parts.log_probs.sum().backward()
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, model.lm_head.weight.grad, atol=1e-4, rtol=1e-4)


def test_random_numbers_depend_on_the_sample_only() -> None:
    whole = _uniforms((3, 1), list(range(40)), 13)
    assert torch.equal(_uniforms((3, 1), [37, 0, 5], 13), whole[[37, 0, 5]])
    assert not torch.equal(_uniforms((3, 2), [0], 13), whole[:1])
    assert ((whole >= 0) & (whole < 1)).all()
    assert abs(whole.mean() - 0.5) < 5 / (12 * whole.numel()) ** 0.5


def test_the_largest_random_number_never_draws_an_impossible_token() -> None:
    """Rounding may lift u x total to the total; the drawn token must still have a probability."""
    logits = torch.full((4, 6), -torch.inf)
    logits[:, 2] = torch.tensor([0.0, 1.0, 5.0, -3.0])
    logits[:, 3] = 0.1
    tokens, log_probs = draw(logits, Sampling(1.0, 1.0, 1), torch.full((4,), 1.0))
    assert tokens.tolist() == [3, 3, 3, 3]
    assert torch.isfinite(log_probs).all()


def test_a_nucleus_that_is_reached_exactly_takes_no_further_token() -> None:
    """Of probabilities 1/2, 1/4 and 1/4 the first has all of a nucleus of 1/2; the third completes one of 1."""
    logits = torch.tensor([[2.0, 1.0, 1.0]]).log().expand(64, 3)
    uniforms = torch.arange(64) / 64
    drawn = [draw(logits, Sampling(1.0, top_p, 1), uniforms)[0].unique().numel() for top_p in (0.5, 0.51, 0.76)]
    assert drawn == [1, 2, 3]


def test_a_wide_nucleus_is_whole_next_to_a_narrow_one() -> None:
    """A row with one likely token, and 500 rows of which each has 0.9 of 500 equal tokens in its nucleus."""
    logits = torch.zeros(501, 500)
    logits[0, 7] = 30.0
    tokens = draw(logits, Sampling(1.0, 0.9, 1), torch.arange(501) / 501)[0]
    assert tokens[0] == 7
    assert tokens[1:].unique().numel() > 400


def test_the_number_of_rows_depends_on_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.rollouts import transformers_engine as engine

    model = tiny()
    row_bytes = 2 * 2 * 2 * 8 * 100 * 4  # keys and values, layers, heads, head_dim, columns, bytes
    monkeypatch.setattr(engine, "CPU_BYTES", 5 * row_bytes + 1)
    assert engine._rows_in_memory(model, 100) == 5
    assert engine._rows_in_memory(model, 10**9) == 1


def test_a_response_ends_where_the_positions_of_the_model_end() -> None:
    """It is the beginning of what a longer model samples, and it has not stopped."""
    model, sampling = tiny(scale=3.0), Sampling(1.0, 1.0, 30)
    whole = generate(model, RAGGED, sampling, n=6, seed=(4,))
    model.config.max_position_embeddings = 20
    cut = generate(model, RAGGED, sampling, n=6, seed=(4,))
    rooms = [20 - len(prompt) for prompt in RAGGED for _ in range(6)]
    assert cut.responses() == [r[:room] for r, room in zip(whole.responses(), rooms, strict=True)]
    lengths, stopped = whole.lengths.tolist(), whole.stopped.tolist()
    assert cut.stopped.tolist() == [s and n <= room for n, s, room in zip(lengths, stopped, rooms, strict=True)]
    assert 0 < sum(n > room for n, room in zip(lengths, rooms, strict=True)) < len(rooms)
    for row, room in enumerate(rooms):
        assert torch.equal(cut.log_probs[row, :room], whole.log_probs[row, :room])
        assert not cut.log_probs[row, room:].any()
        assert (cut.tokens[row, room:] == END).all()
    with pytest.raises(ValueError, match="a prompt of 20 tokens leaves no room for an answer"):
        generate(model, [[1] * 20], sampling, n=1, seed=(4,))


def test_the_end_of_a_list_is_sampled_as_with_the_whole() -> None:
    model, prompts, sampling = tiny(scale=2.0), [[1, 2], [3], [4, 5, 6], [7]], Sampling(1.0, 1.0, 8)
    whole = generate(model, prompts, sampling, n=3, seed=(5,)).responses()
    for first in (1, 3):
        end = generate(model, prompts[first:], sampling, n=3, seed=(5,), first=first)
        assert end.responses() == whole[3 * first :]
    assert generate(model, prompts[1:], sampling, n=3, seed=(5,)).responses() != whole[3:]
