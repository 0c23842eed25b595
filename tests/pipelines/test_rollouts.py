"""The rollout engine against `transformers.generate`, fresh forward passes and the distribution itself."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipelines.rollouts import Sampling, generate, length_batches, score

END = 0


def tiny(vocab: int = 40, seed: int = 0, scale: float = 6.0) -> Qwen3ForCausalLM:
    """A random Qwen3 with distributions far from uniform; token 0 ends a response."""
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
    free = generate(model, RAGGED, 1, sampling, (0,)).responses()
    # A token that some responses reach and others do not ends them, so rows are compacted away.
    end = next(t for t in range(40) if 0 < sum(t in r for r in free) < len(free) - 1)
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    ours = generate(model, RAGGED, 1, sampling, (0,)).responses()
    for prompt, response in zip(RAGGED, ours, strict=True):
        theirs = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=90)[0, len(prompt) :]
        assert response == theirs.tolist()


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_log_probs_equal_a_fresh_pass(top_p: float) -> None:
    model = tiny(scale=3.0)
    sampling = Sampling(0.8, top_p, 100)  # longer than the first buffer, so it grows
    rollouts = generate(model, RAGGED, 12, sampling, (1,))
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
    whole = generate(model, RAGGED, 7, sampling, (3, 1))
    for rows in (1, 4, 7, 16):
        split = generate(model, RAGGED, 7, sampling, (3, 1), rows=rows)
        assert torch.equal(whole.tokens, split.tokens)
        torch.testing.assert_close(whole.log_probs, split.log_probs, atol=1e-5, rtol=0)
    assert not torch.equal(whole.tokens, generate(model, RAGGED, 7, sampling, (3, 2)).tokens)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_two_tokens_follow_the_distribution(temperature: float, top_p: float) -> None:
    """Chi-square over all pairs of two sampled tokens against probabilities computed without the engine."""
    model, vocab, prompt, n = tiny(vocab=7, scale=4.0), 7, [3, 5], 20_000
    rollouts = generate(model, [prompt], n, Sampling(temperature, top_p, 2), (11,), rows=20_000)

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
    rest = [n - sum(observed), n * (1 - sum(expected[k] for k in likely))]
    observed, wanted = [*observed, rest[0]], [*(expected[k] * n for k in likely), rest[1]]
    if rest[1] < 1e-6:
        observed, wanted = observed[:-1], wanted[:-1]
    assert chisquare(observed, np.array(wanted) * sum(observed) / sum(wanted)).pvalue > 1e-3


def test_score_ignores_what_comes_after_and_beside() -> None:
    model = tiny()
    alone = score(model, [[4, 5]], [[6, 7, 8]]).log_probs
    together = score(model, [[4, 5], [1] * 9], [[6, 7, 8], [2] * 5]).log_probs
    torch.testing.assert_close(alone, together[:3])


def test_training_mode_is_restored() -> None:
    model = tiny().train()
    generate(model, [[1]], 1, Sampling(1.0, 1.0, 2), (0,))
    assert model.training


def test_length_batches() -> None:
    lengths = [9, 1, 5, 3, 30, 2]
    batches = list(length_batches(lengths, 12))
    assert sorted(itertools.chain(*batches)) == list(range(6))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 12
    ordered = [lengths[i] for i in itertools.chain(*batches)]
    assert ordered == sorted(lengths)


def test_other_attention_is_refused() -> None:
    model = tiny()
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="full attention"):
        generate(model, [[1]], 1, Sampling(1.0, 1.0, 2), (0,))
