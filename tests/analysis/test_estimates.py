"""The mean over seeds and its interval, against scipy and the equation of Wilson's interval."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.estimates import Precision, seed_mean

EXACT = Precision(error=0.0, resolution=0.0, item=0.0)


def test_several_seeds_have_students_interval_on_the_scale_of_the_log() -> None:
    values = [30.0, 33.0, 36.0]
    entry = seed_mean([30.0, math.nan, 33.0, 36.0], EXACT, is_share=False)
    half = stats.t.ppf(0.975, 2) * stats.sem(values)
    assert (entry.value, entry.n) == (33.0, 3)
    assert entry.low == pytest.approx(33 * math.exp(-half / 33))
    assert entry.high == pytest.approx(33 * math.exp(half / 33))
    assert entry.by_seed[0] == 30.0
    assert math.isnan(entry.by_seed[1])


def test_one_seed_has_the_normal_interval_over_its_items() -> None:
    entry = seed_mean([2.0], Precision(error=0.3, resolution=0.4, item=0.0), is_share=False)
    half = 1.959964 * 0.5  # the variances of both add up
    assert (entry.low, entry.high) == pytest.approx((2 * math.exp(-half / 2), 2 * math.exp(half / 2)), rel=1e-6)


def test_the_resolution_is_shared_by_the_seeds() -> None:
    entry = seed_mean([2.0] * 4, Precision(error=9.0, resolution=0.2, item=0.0), is_share=False)
    half = stats.t.ppf(0.975, 3) * 0.1  # the error over items is not used
    assert entry.high == pytest.approx(2 * math.exp(half / 2))


@pytest.mark.parametrize("values", [[40.0, 50.0, 45.0], [98.0, 100.0, 99.0], [100.0, 100.0], [0.0, 1.0]])
def test_a_percentage_has_wilsons_interval(values: list[float]) -> None:
    """Both ends solve (p - mean)^2 = q^2 p (1 - p) / trials; near the ends trials are those one item from the end."""
    item = 100 / 64
    entry = seed_mean(values, Precision(error=0.0, resolution=item, item=item), is_share=True)
    n, mean = len(values), np.mean(values) / 100
    variance = (np.var(values, ddof=1) + item**2) / n / 100**2
    near = min(max(mean, 1 / 64), 1 - 1 / 64)
    trials, quantile = near * (1 - near) / variance, stats.t.ppf(0.975, n - 1)
    roots = np.roots([1 + quantile**2 / trials, -(2 * mean + quantile**2 / trials), mean**2])
    assert (entry.low, entry.high) == pytest.approx(tuple(sorted(100 * roots.real)), abs=1e-6)


def test_a_number_without_any_known_error_has_no_interval() -> None:
    entry = seed_mean([5.0], EXACT, is_share=False)
    assert (entry.value, entry.low, entry.high, entry.n) == (5.0, None, None, 1)
    with pytest.raises(ValueError, match="no seed"):
        seed_mean([math.nan], EXACT, is_share=True)
