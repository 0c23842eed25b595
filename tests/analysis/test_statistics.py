"""Tests and the bootstrap: against scipy and statsmodels, against closed forms, and by simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from analysis.statistics import (
    Sampled,
    hierarchical_bootstrap,
    holm,
    one_sided_t_test,
    permutation_test,
    rank_correlations,
    seeds_needed,
)


def test_the_t_test_equals_scipys_with_gaps() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1, (20, 6))
    values[3, 2] = np.nan
    for row, p in zip(values, one_sided_t_test(values, np.zeros(20)), strict=True):
        assert p == pytest.approx(stats.ttest_1samp(row[np.isfinite(row)], 0, alternative="greater").pvalue)


@pytest.mark.parametrize("row", [[1.0, np.nan], [0.0, 0.0], [0.3, 0.3], [0.1 + 0.2 - 0.3 + 0.5, 0.5], [0.7] * 9])
def test_one_value_and_equal_values_decide_nothing(row: list[float]) -> None:
    assert one_sided_t_test(np.array([row]), np.zeros(1)) == 1.0


def test_the_resolution_is_a_variance_of_its_own() -> None:
    """Two seeds that differ by the same two of 64 problems: t = 2 with one degree of freedom."""
    (p,) = one_sided_t_test(np.array([[2 / 64, 2 / 64]]), np.array([math.sqrt(2) / 64]))
    assert p == pytest.approx(stats.t.sf(2, 1))
    varied = np.array([0.1, 0.4, 0.3])
    (p,) = one_sided_t_test(varied[None], np.array([0.2]))
    error = math.sqrt((varied.var(ddof=1) + 0.04) / 3)
    assert p == pytest.approx(stats.t.sf(varied.mean() / error, 2))


def test_holm_on_three_values() -> None:
    corrected = holm(np.array([0.01, np.nan, 0.04, 0.03]))
    assert corrected[[0, 2, 3]] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(corrected[1])


def test_holm_equals_statsmodels() -> None:
    p = np.random.default_rng(4).uniform(0, 0.2, 30)
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm(np.array([np.nan])).shape == (1,)


def test_permutation_is_exact() -> None:
    differences = [0.5, 1.0, 0.25, 2.0, 0.75]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    means = (signs * differences).mean(1)
    assert permutation_test(differences) == pytest.approx((np.abs(means) >= np.mean(differences) - 1e-12).mean())
    assert permutation_test(differences) == 2 / 32
    assert permutation_test([1.0]) is None


@pytest.mark.parametrize("effect", [0.3, 0.5, 0.9, 1.7, 4.0, 30.0])
def test_seeds_needed_are_the_fewest_by_statsmodels(effect: float) -> None:
    differences = np.array([-1.0, 0.0, 1.0]) + effect  # their mean is the effect and their spread is 1
    n = seeds_needed(differences.tolist())
    assert n is not None
    assert TTestPower().power(effect, n, 0.05) >= 0.8
    assert n == 2 or TTestPower().power(effect, n - 1, 0.05) < 0.8


@pytest.mark.parametrize("count", [5, 6, 9, 40])
def test_rank_correlations_equal_scipys_with_ties(count: int) -> None:
    rng = np.random.default_rng(count)
    x, y = rng.integers(0, 6, (3, count)).astype(float), rng.integers(0, 6, count).astype(float)
    rho, _ = rank_correlations(x, y)
    assert rho == pytest.approx([stats.spearmanr(row, y).statistic for row in x])
    rho, p = rank_correlations(np.stack([x[0], np.ones(count)]), y)
    assert np.isnan(rho[1])
    assert np.isnan(p[1])
    assert np.isnan(rank_correlations(x, np.ones(count))[0]).all()


@pytest.mark.parametrize("count", [5, 6])
def test_p_values_of_rank_correlations_are_exact(count: int) -> None:
    """Against every order of the points, with the correlations by scipy; one row, and three rows corrected together."""
    rng = np.random.default_rng(count)
    x, y = rng.integers(0, 5, (3, count)).astype(float), rng.normal(size=count)
    x[0] = np.arange(count) ** 2
    orders = [list(order) for order in itertools.permutations(range(count))]
    permuted = np.array([[abs(stats.spearmanr(row, y[order]).statistic) for row in x] for order in orders])
    observed = np.array([abs(stats.spearmanr(row, y).statistic) for row in x])
    for rows in ([0], [1], [0, 1, 2]):
        expected = [(permuted[:, rows].max(1) >= observed[row] - 1e-12).mean() for row in rows]
        assert rank_correlations(x[rows], y)[1] == pytest.approx(expected)


def test_a_perfect_rank_correlation_is_no_more_certain_than_its_points_allow() -> None:
    for count, smallest in ((5, 2 / 120), (6, 2 / 720), (7, 2 / 5040), (8, 2 / 40_320)):
        line = np.arange(count, dtype=float)
        assert rank_correlations(-line[None], line) == (pytest.approx([-1.0]), pytest.approx([smallest]))
    many = np.arange(30.0)
    assert rank_correlations(many[None], many)[1] == pytest.approx([1e-4])  # one of the 10,000 orders tried
    assert np.isnan(rank_correlations(np.arange(4.0)[None], np.arange(4.0))[1]).all()


def test_seeds_needed_reach_the_power_by_simulation() -> None:
    differences = [0.9, 0.1, 0.6, -0.2, 0.35]
    n = seeds_needed(differences)
    assert n is not None
    rng = np.random.default_rng(1)
    drawn = rng.normal(np.mean(differences), np.std(differences, ddof=1), (20_000, n))
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.05)
    assert seeds_needed([1.0, -1.0]) is None
    assert seeds_needed([0.5]) is None
    assert seeds_needed([0.5, 0.5]) is None
    assert seeds_needed([0.1 + 0.2, 0.3]) is None


@pytest.mark.parametrize("effect", [0.01, 0.09, 0.27, 0.29, 0.5, 1.0, 3.0, 9.0, 500.0])
def test_seeds_needed_are_the_least_that_have_the_power(effect: float) -> None:
    """Against the noncentral t distribution, for effects of every size."""
    n = seeds_needed([effect - 2**-0.5, effect + 2**-0.5])  # their standard deviation is 1
    assert n is not None

    def power(count: int) -> float:
        limit = stats.t.ppf(0.975, count - 1)
        return float(stats.nct.sf(limit, count - 1, effect * count**0.5))

    assert power(n) >= 0.799
    assert n == 2 or power(n - 1) < 0.801


def crossed(rng: np.random.Generator, *, seeds: int, items: int, shift: float) -> list[Sampled]:
    """Two settings over the same seeds and problems, their true difference `shift`."""
    by_item, by_seed = rng.normal(0, 1, items), rng.normal(0, 0.3, seeds)
    settings = []
    for mean in (0.0, shift):
        matrix = mean + by_item + by_seed[:, None] + rng.normal(0, 0.3, seeds)[:, None] + rng.normal(0, 0.4, items)
        matrix = matrix + rng.normal(0, 0.5, (seeds, items))
        settings.append(
            Sampled(tuple(range(seeds)), matrix.mean(1), (("b", matrix, matrix.std(1) / math.sqrt(items)),))
        )
    return settings


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_hierarchical_intervals_cover(seeds: int) -> None:
    """With new seeds and new problems, 95 % intervals contain the true difference at least 93 % of the time.

    With very few seeds they do so more often, since Student's wide quantile is then applied to both.
    """
    rng = np.random.default_rng(2)
    covered = 0
    trials = 300
    for _ in range(trials):
        settings = crossed(rng, seeds=seeds, items=40, shift=0.5)
        estimate = hierarchical_bootstrap(settings, lambda v: v[1] - v[0], replicates=300)
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 0.5 <= estimate.high
    assert covered / trials >= 0.93
    assert covered / trials <= (1.0 if seeds == 3 else 0.995)


def test_shared_problems_cancel_in_a_difference() -> None:
    """Problems that are hard for both settings do not widen the interval of their difference."""
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 10, 50)
    both = [
        Sampled((1, 2, 3), hard.mean() + seed, (("b", hard + seed[:, None], np.full(3, 1.4)),))
        for seed in (np.array([0.0, 0.01, 0.02]), np.array([1.0, 1.02, 1.01]))
    ]
    estimate = hierarchical_bootstrap(both, lambda v: v[1] - v[0])
    assert estimate.low == pytest.approx(1.0, abs=0.05)
    assert estimate.high == pytest.approx(1.0, abs=0.05)


def test_an_interval_ends_where_the_difference_of_two_percentages_must() -> None:
    both = [Sampled((1, 2), np.array(values), (), 1.0, (0.0, 100.0)) for values in ([95.0, 20.0], [2.0, 40.0])]
    estimate = hierarchical_bootstrap(both, lambda v: v[0] - v[1])
    assert (estimate.low, estimate.high) == (-100.0, 100.0)
    doubled = hierarchical_bootstrap(both, lambda v: 2 * (v[0] - v[1]) + 1)
    assert (doubled.low, doubled.high) == (-199.0, 201.0)
    assert hierarchical_bootstrap(both, lambda v: np.log(v[0] / v[1])).low is not None


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_equal_numbers_have_no_interval_and_decide_nothing(seeds: int) -> None:
    both = [Sampled(tuple(range(seeds)), np.full(seeds, value), ()) for value in (0.1, 0.4)]
    estimate = hierarchical_bootstrap(both, lambda v: v[1] - v[0])
    assert (estimate.low, estimate.high) == (None, None)
    assert estimate.p == (None if seeds == 1 else 1.0)


def test_the_bootstrap_adds_each_quantitys_resolution() -> None:
    """Five seeds at the ceiling of 64 problems against five with one problem less: Student's t of one item each."""
    both = [Sampled(tuple(range(5)), np.full(5, value), (), 1 / 64) for value in (1.0, 63 / 64)]
    estimate = hierarchical_bootstrap(both, lambda v: v[0] - v[1], replicates=200_000)
    error = math.sqrt(2) / 64 / math.sqrt(5) * math.sqrt(5 / 4)
    assert estimate.p == pytest.approx(2 * stats.t.sf(1 / 64 / error, 4), rel=0.02)


def test_unknown_problems_add_their_standard_error() -> None:
    one = Sampled((1,), np.array([2.0]), (("b", None, np.array([0.5])),))
    estimate = hierarchical_bootstrap([one], lambda v: v[0], replicates=20_000)
    assert (estimate.value, estimate.p, estimate.n) == (2.0, None, 1)
    assert estimate.high == pytest.approx(2.0 + 1.96 * 0.5, abs=0.03)


def test_seeds_must_be_paired() -> None:
    a, b = (Sampled((s,), np.array([0.0]), ()) for s in (1, 2))
    with pytest.raises(ValueError, match="same seeds"):
        hierarchical_bootstrap([a, b], lambda v: v[0] - v[1])


def test_the_seed_of_a_bootstrap_draws_its_replicates() -> None:
    quantity = Sampled((1, 2, 3), np.array([1.0, 2.0, 4.0]), ())
    default = hierarchical_bootstrap([quantity], lambda v: v[0], replicates=50)
    first, again, other = (hierarchical_bootstrap([quantity], lambda v: v[0], replicates=50, seed=s) for s in (0, 0, 1))
    assert first == again == default
    assert other.low != first.low


def test_benchmarks_with_equally_many_problems_have_problems_of_their_own() -> None:
    """The problems of one are right where those of the other are wrong, by chance: that does not make them certain."""
    right = np.tile([0.0, 1.0], 32)[None]
    parts = (("a", right, np.zeros(1)), ("b", 1 - right, np.zeros(1)))
    estimate = hierarchical_bootstrap([Sampled((1,), np.array([0.5]), parts)], lambda v: v[0], replicates=20_000)
    error = 0.5 / math.sqrt(64) / math.sqrt(2)
    assert estimate.high == pytest.approx(0.5 + 1.96 * error, rel=0.01)
