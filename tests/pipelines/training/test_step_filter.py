"""Which steps are skipped, in simulated trainings: spikes are, a lasting shift is not."""

import json
import math

import numpy as np
import pytest
import torch

from pipelines.configuration.budgets import PretrainConfig
from pipelines.training.step_filter import HISTORY, StepFilter


def budget(spike_sigmas: float | None = 6.0) -> PretrainConfig:
    return PretrainConfig(64, 64, 16, 1e-2, 1e4, {"text": 1.0}, 1, warmup_steps=0, spike_sigmas=spike_sigmas)


def skipped_steps(steps: StepFilter, losses: np.ndarray, norms: np.ndarray) -> list[int]:
    skipped = []
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        steps.add_loss(torch.tensor(loss, dtype=torch.float64))
        if steps.reason_to_skip(float(norm), lambda value: value):
            skipped.append(step)
    return skipped


def resumed(steps: StepFilter) -> StepFilter:
    return StepFilter(budget(), json.loads(json.dumps(steps.state_dict())))


@pytest.mark.parametrize("shift", [0.03, 0.3, 3.0, 300.0])
@pytest.mark.parametrize("shifted", ["loss", "norm"])
def test_training_recovers_after_a_shift(shift: float, shifted: str) -> None:
    """A shift enters the window. With n of 128 values shifted far, one more is a spike while
    1 - n/128 > 6 sqrt(n/128 (1 - n/128)), that is for n < 128/37: four steps are skipped at most."""
    rng = np.random.default_rng(0)
    noise = 0.001 * rng.standard_normal((2, 1000))
    moved = np.where(np.arange(1000) < 300, 0.0, shift)
    losses, norms = 3.0 + noise[0] + moved * (shifted == "loss"), 1.0 + noise[1] + moved * (shifted == "norm")
    assert skipped_steps(StepFilter(budget()), losses, norms) in ([300, 301, 302], [300, 301, 302, 303])


@pytest.mark.parametrize("stop", [299, 300, 301, 302, 310, 420])
def test_it_recovers_across_a_resume(stop: int) -> None:
    rng = np.random.default_rng(1)
    losses = 3.0 + 0.001 * rng.standard_normal(600) + np.where(np.arange(600) < 300, 0.0, 0.03)
    norms = np.ones(600) + 0.001 * rng.standard_normal(600)
    whole = StepFilter(budget())
    expected = skipped_steps(whole, losses, norms)
    first = StepFilter(budget())
    begun = skipped_steps(first, losses[:stop], norms[:stop])
    second = resumed(first)
    ended = [stop + step for step in skipped_steps(second, losses[stop:], norms[stop:])]
    assert begun + ended == expected
    assert len(expected) <= 4
    assert json.dumps(second.state_dict()) == json.dumps(whole.state_dict())


def test_single_spikes_are_skipped_and_the_next_step_is_not() -> None:
    rng = np.random.default_rng(2)
    losses, norms = 3.0 + 0.01 * rng.standard_normal(2000), 1.0 + 0.01 * rng.standard_normal(2000)
    losses[[400, 900]] += 1.0
    norms[[1400]] += 5.0
    losses[5] += 1.0  # before the window is full nothing is a spike
    assert skipped_steps(StepFilter(budget()), losses, norms) == [400, 900, 1400]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_do_not_enter_the_window(bad: float) -> None:
    """They are skipped with or without a limit on spikes, and later spikes are still found."""
    rng = np.random.default_rng(3)
    losses, norms = 3.0 + 0.01 * rng.standard_normal(400), 1.0 + 0.01 * rng.standard_normal(400)
    norms[200], losses[210], losses[220] = bad, bad, 4.0
    assert skipped_steps(StepFilter(budget()), losses, norms) == [200, 210, 220]
    assert skipped_steps(StepFilter(budget(None)), losses, norms) == [200]


def test_a_constant_loss_is_no_spike() -> None:
    same = np.full(3 * HISTORY, 2.5)
    assert skipped_steps(StepFilter(budget()), same, same) == []


def test_a_spike_is_beyond_so_many_deviations_of_the_steps_before() -> None:
    """Of 128 losses that alternate between 1 and 3 the mean is 2 and the deviation 1, so the limit is 8."""
    alternating = np.tile([1.0, 3.0], 64)
    for loss, skipped in ((7.99, []), (8.01, [128])):
        assert skipped_steps(StepFilter(budget()), np.append(alternating, loss), np.ones(129)) == skipped
