"""GRPO's arithmetic against a slow rewrite in float64, response by response and token by token."""

import itertools
import math
import statistics

import pytest
import torch

from pipelines.configuration.grpo import ADVANTAGES, LOSSES
from pipelines.grpo.algorithm import (
    advantages,
    divergence,
    importance_weights,
    overlong_penalty,
    surrogate,
    token_weights,
)


def slow_advantages(rewards: list[float], estimator: str) -> list[float]:
    mean = statistics.mean(rewards)
    if estimator == "leave_one_out":
        return [r - statistics.mean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]
    if estimator == "centred":
        return [r - mean for r in rewards]
    deviation = statistics.stdev(rewards)
    return [(r - mean) / deviation if deviation else 0.0 for r in rewards]


@pytest.mark.parametrize("estimator", ADVANTAGES)
def test_advantages_are_relative_to_the_group(estimator: str) -> None:
    groups = [[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0.3, 0.7, 0.7, -0.5], [0.1, 0.1, 0.1, 0.1]]
    result = advantages(torch.tensor(groups, dtype=torch.float64), estimator)
    expected = torch.tensor([slow_advantages(group, estimator) for group in groups], dtype=torch.float64)
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)
    assert not advantages(torch.tensor([[0.1] * 7]), "standardised").any()  # the mean of equal numbers is rounded


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [
        (1.0, 2.0, -2.0, (False, False)),
        (1.5, 1.0, -1.28, (False, True)),
        (1.5, -1.0, 1.5, (False, False)),
        (0.5, 1.0, -0.5, (False, False)),
        (0.5, -1.0, 0.8, (True, False)),
    ],
)
def test_the_bounds_are_separate(ratio: float, advantage: float, expected: float, clipped: tuple[bool, bool]) -> None:
    old = torch.tensor([-1.0])
    log_probs = (old + math.log(ratio)).requires_grad_()
    parts = surrogate(log_probs, old, torch.tensor([advantage]), clip_low=0.2, clip_high=0.28)
    assert parts.loss.item() == pytest.approx(expected, rel=1e-5)
    assert (bool(parts.low), bool(parts.high)) == clipped
    parts.loss.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.item() == pytest.approx(0.0 if any(clipped) else -ratio * advantage, rel=1e-5)


def test_on_policy_the_gradient_is_reinforce_with_the_group_as_baseline() -> None:
    log_probs = torch.tensor([-0.3, -2.0, -1.0], requires_grad=True)
    advantage = torch.tensor([1.5, -0.5, 0.0])
    parts = surrogate(log_probs, log_probs.detach(), advantage, clip_low=0.2, clip_high=0.28)
    parts.loss.sum().backward()
    torch.testing.assert_close(log_probs.grad, -advantage)
    assert torch.equal(parts.ratio, torch.ones(3))
    assert not parts.low.any()
    assert not parts.high.any()


LENGTHS, KEPT, LIMIT = [3, 8, 1, 8], [True, True, True, False], 8


@pytest.mark.parametrize("loss", LOSSES)
def test_the_whole_loss_equals_a_slow_rewrite(loss: str) -> None:
    """Clip, weights and filter together on ragged responses, one token at a time in float64."""
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    new, old = (-3 * torch.rand(total, generator=generator, dtype=torch.float64) for _ in range(2))
    advantage = [0.9, -1.1, 0.4, 2.0]
    response_of = list(itertools.chain(*([i] * length for i, length in enumerate(LENGTHS))))

    def slow(t: int) -> float:
        ratio, a = math.exp(new[t] - old[t]), advantage[response_of[t]]
        return -min(ratio * a, min(max(ratio, 0.8), 1.28) * a)

    by_response = [[slow(t) for t in range(total) if response_of[t] == i] for i in range(4)]
    kept = [losses for losses, keep in zip(by_response, KEPT, strict=True) if keep]
    expected = {
        "token": sum(map(sum, kept)) / sum(map(len, kept)),
        "sequence": statistics.mean(statistics.mean(losses) for losses in kept),
        "constant": sum(map(sum, kept)) / (4 * LIMIT),
    }[loss]
    weights = torch.tensor(token_weights(LENGTHS, KEPT, loss=loss, limit=LIMIT), dtype=torch.float64)[response_of]
    per_token = torch.tensor(advantage, dtype=torch.float64)[response_of]
    result = (surrogate(new, old, per_token, clip_low=0.2, clip_high=0.28).loss * weights).sum()
    assert result.item() == pytest.approx(expected, rel=1e-12)


def test_long_responses_weigh_more_by_token_than_by_sequence() -> None:
    by_token, by_sequence, constant = (token_weights([2, 8], [True, True], loss=loss, limit=16) for loss in LOSSES)
    assert by_token[0] == by_token[1]  # so the longer one weighs four times as much
    assert by_sequence[0] * 2 == by_sequence[1] * 8
    assert constant == [1 / 32, 1 / 32]


def test_without_kept_responses_all_weights_are_zero() -> None:
    for loss in LOSSES:
        assert token_weights([3, 4], [False, False], loss=loss, limit=8) == [0.0, 0.0]


def test_the_overlong_penalty_falls_over_the_buffer() -> None:
    """DAPO's Eq. 13 with L_max = 100 and L_cache = 20."""
    lengths = torch.tensor([10, 80, 85, 90, 100, 100])
    stopped = torch.tensor([True, True, True, True, True, False])
    expected = [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    torch.testing.assert_close(overlong_penalty(lengths, stopped, limit=100, buffer=0.2), torch.tensor(expected))


def test_the_divergence_is_unbiased_and_not_negative() -> None:
    """Its expectation under pi is the exact KL, over a whole vocabulary."""
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    estimates = divergence(p, q)
    assert (estimates >= 0).all()
    torch.testing.assert_close((p.exp() * estimates).sum(), (p.exp() * (p - q)).sum())


def test_importance_weights_are_truncated() -> None:
    old, sampler = torch.tensor([-1.0, -1.0, -5.0]), torch.tensor([-1.0, -3.0, -1.0])
    expected = torch.tensor([1.0, 2.0, math.exp(-4)])
    torch.testing.assert_close(importance_weights(old, sampler, 2.0), expected)


def test_a_response_that_was_cut_below_the_limit_is_punished_whole() -> None:
    """Where the model's positions end before the limit; 4 tokens of 10 that have ended are not punished."""
    lengths, stopped = torch.tensor([4, 4, 10]), torch.tensor([True, False, False])
    assert overlong_penalty(lengths, stopped, limit=10, buffer=0.5).tolist() == [0.0, -1.0, -1.0]
