"""Intervals over items by their formulas, and which metrics samples have, with literal numbers."""

import math

import numpy as np
import pytest
from scipy import stats

from pipelines.evaluation.metrics import estimate, interval_of, mean_intervals, sampled_metrics


@pytest.mark.parametrize(("count", "deviations"), [(2, 17.9693), (6, 2.8159), (30, 2.0802), (1000, 1.9633)])
def test_levels_are_widened_for_few_items(count: int, deviations: float) -> None:
    """Draws that are exactly normal: the ends are Student's quantile times sqrt(n / (n - 1)) standard deviations."""
    draws = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    low, high = interval_of(draws[:, None], count)
    assert deviations == pytest.approx(stats.t.ppf(0.975, count - 1) * math.sqrt(count / (count - 1)), abs=1e-4)
    expected = min(deviations, draws[-1])  # of a finite number of draws none is farther out
    assert (low[0], high[0]) == pytest.approx((-expected, expected), rel=2e-3)


@pytest.mark.parametrize(("count", "resample"), [(2001, True), (40, False)])
def test_without_resampling_an_interval_is_students(count: int, resample: bool) -> None:
    values = np.random.default_rng(count).normal(7, 3, count)
    low, high = mean_intervals(values[:, None], fractions=False, resample=resample)
    expected = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert (low[0], high[0]) == pytest.approx(expected, rel=1e-9)


def test_up_to_2000_items_are_resampled() -> None:
    """A percentile interval of a skewed mean is not symmetric."""
    values = np.random.default_rng(1).exponential(1, 2000) ** 3
    low, high = mean_intervals(values[:, None], fractions=False)
    assert high[0] - values.mean() > 1.03 * (values.mean() - low[0])


def test_equal_fractions_have_the_exact_binomial_interval() -> None:
    zeros, ones = estimate(np.zeros(20)), estimate(np.ones(20))
    assert (zeros.low, zeros.high) == (0.0, pytest.approx(stats.binomtest(0, 20).proportion_ci().high))
    assert (ones.low, ones.high) == (pytest.approx(stats.binomtest(20, 20).proportion_ci().low), 1.0)
    lengths = estimate(np.ones(20), fractions=False)
    assert (lengths.low, lengths.high) == pytest.approx((1.0, 1.0))


def test_one_item_has_no_error_and_no_interval() -> None:
    single = estimate(np.array([0.25]))
    assert (single.value, single.stderr, single.n, single.low, single.high) == (0.25, None, 1, None, None)


def test_the_metrics_of_samples() -> None:
    """Pass@k for every k above 1 up to n; a reward of a half is right; lengths are means over samples and items."""
    rewards = np.array([[1.0, 0.5, 0.0, 0.49], [0.0, 0.0, 0.0, 1.0]])
    votes = np.array([[0, 1, 2, 2], [-1, -1, -1, 0]])
    lengths = np.array([[1.0, 2, 3, 4], [10, 10, 10, 30]])
    metrics = sampled_metrics(rewards, votes, lengths, pass_k=[1, 2, 3, 4, 8])
    values = {name: metric.value for name, metric in metrics.items()}
    assert values == {
        "avg@4": pytest.approx((1.99 / 4 + 0.25) / 2),
        "cons@4": pytest.approx((0.245 + 1) / 2),
        "pass@2": pytest.approx(((1 - 1 / 6) + (1 - 3 / 6)) / 2),
        "pass@3": pytest.approx((1 + (1 - 1 / 4)) / 2),
        "pass@4": 1.0,
        "response_length": pytest.approx((2.5 + 15) / 2),
        # Of the mean reward: binomial with shares 1/2 and 1/4 of four samples, over two items.
        "sampling_error": pytest.approx(math.sqrt(0.5 * 0.5 / 4 + 0.25 * 0.75 / 4) / 2),
    }
    assert {metric.n for metric in metrics.values()} == {2}
    assert sampled_metrics(rewards, None, lengths, pass_k=[]).keys() == {"avg@4", "response_length", "sampling_error"}


def test_the_interval_of_lengths_is_not_one_of_fractions() -> None:
    """Of mean lengths 11, 21 and 31 tokens, in a metric whose rewards are all 1."""
    lengths = np.array([[10.0, 12.0], [20.0, 22.0], [30.0, 32.0]])
    metric = sampled_metrics(np.ones((3, 2)), None, lengths, pass_k=[])["response_length"]
    assert metric.value == 21.0
    assert metric.low is not None
    assert metric.high is not None
    assert 10.9 < metric.low < 21 < metric.high < 31.1
