"""Intervals and tests for a few seeds and a few dozen problems.

Seeds are paired across settings: equal seeds see the same data in the same order and get the same problems, so two
settings are compared by their differences seed by seed.

A handful of equal numbers has no spread, and a test or an interval that takes this for certainty is wrong: settings at
their ceiling, or two seeds that differ by the same two problems, are equal by chance. So no value counts as known more
exactly than one item of its benchmark moves it. This *resolution* is 1 / n for a fraction of n items, and in general
the standard error over items divided by sqrt(n). Its variance is added to that over seeds everywhere.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special  # importing scipy.stats takes longer than reading a small study

LEVEL = 0.95
ALPHA = 1 - LEVEL
REPLICATES = 2000
NO_SPREAD = 1e-9
"""A standard error below this share of the value is rounding, not a measured spread."""

FEWEST_POINTS = 5
"""Points with which a rank correlation can be significant: n points reach p = 2 / n!, which is 0.083 for four."""
EXACT_POINTS = 8
"""Most points whose permutations are all tried; of more, `PERMUTATIONS` are drawn."""
PERMUTATIONS = 10_000

UNBOUNDED = (-math.inf, math.inf)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and its uncertainty; `low`, `high` and `p` are None if the data do not determine them."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    """Two-sided p-value of the value being 0."""
    n: int
    """Seeds."""


@cache
def t_quantile(degrees: int) -> float:
    """Returns Student's two-sided 95 % quantile."""
    return float(special.stdtrit(degrees, 1 - ALPHA / 2))


def fraction_interval(value: float, variance: float, *, item: float, quantile: float) -> tuple[float, float]:
    """Returns Wilson's score interval of a mean fraction, which contains `value` and never leaves 0..1.

    `variance` is that of the mean, with its resolution, and `item` is how much one item moves one seed's value. The
    effective number of items is the one with which a binomial share would have this variance (Korn and Graubard 1998);
    near 0 and 1, the binomial variance is taken at one item from the end, so that values at the end have an interval.
    With a t `quantile` it covers for few seeds; tests/analysis/test_intervals.py simulates the coverage.
    """
    near = min(max(value, item), 1 - item) if item < 0.5 else 0.5
    trials = near * (1 - near) / variance
    wide = quantile**2 / trials
    center = (value + wide / 2) / (1 + wide)
    half = math.sqrt(wide * value * (1 - value) + wide**2 / 4) / (1 + wide)
    return max(0.0, min(value, center - half)), min(1.0, max(value, center + half))


def positive_interval(value: float, variance: float, *, quantile: float) -> tuple[float, float]:
    """Returns the interval of a mean that is never negative, such as perplexity, symmetric on the scale of its log."""
    half = quantile * math.sqrt(variance)
    return (value * math.exp(-half / value), value * math.exp(half / value)) if value > 0 else (0.0, half)


def one_sided_t_test(differences: Floats, resolution: Floats) -> Floats:
    """Returns the p-value [...] of a mean of at most 0 over the last axis of differences [..., seeds].

    `resolution` [...] is that of one difference; with 0 it equals `scipy.stats.ttest_1samp(alternative="greater")`, but
    without its loop over rows that have gaps. 1 for fewer than two finite differences, and without any spread.
    """
    count = np.isfinite(differences).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(differences, -1) / count
        variance = np.nansum((differences - mean[..., None]) ** 2, -1) / (count - 1)
        error = np.sqrt((variance + resolution**2) / count)
        p = special.stdtr(count - 1, -mean / error)
    return np.where((count > 1) & (error > NO_SPREAD * np.abs(mean)), p, 1.0)


def rank_correlations(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Returns Spearman's rho [M] of each row of x [M, n] with y [n], and its p-value [M], corrected over the rows.

    The n points are permuted, in all n! ways for up to `EXACT_POINTS`. The p-value of a row is the share of
    permutations in which any row has a correlation this strong (Westfall and Young 1993), so the chance that any
    p-value is below 0.05 is at most 5 % if y is unrelated to all rows, however much these resemble each other. It is at
    least 2 / n!.
    NaN for rows that do not vary, for a constant y, and for fewer than `FEWEST_POINTS` points.
    """
    rho, p = np.full((2, len(x)), np.nan)
    count = len(y)
    varies = np.ptp(x, axis=1) > 0 if x.size else np.zeros(len(x), bool)
    if count < FEWEST_POINTS or np.ptp(y) == 0 or not varies.any():
        return rho, p
    if count <= EXACT_POINTS:
        orders = np.array(list(itertools.permutations(range(count))))
    else:  # with the identity, which makes a drawn permutation test exact too
        drawn = np.random.default_rng(0).permuted(np.tile(np.arange(count), (PERMUTATIONS - 1, 1)), axis=1)
        orders = np.vstack([np.arange(count), drawn])
    # Pearson's correlation of ranks is a product of unit vectors: [rows, permutations].
    products = _unit_ranks(x[varies]) @ _unit_ranks(y[None])[0][orders].T
    strongest = np.abs(products).max(0)
    rho[varies] = products[:, 0].clip(-1, 1)  # the first permutation is the identity
    p[varies] = [(strongest >= abs(value) - NO_SPREAD).mean() for value in products[:, 0]]
    return rho, p


def _unit_ranks(rows: Floats) -> Floats:
    """The ranks within each row, centred and of length 1; equal numbers share their mean rank."""
    smaller = (rows[:, None, :] < rows[:, :, None]).sum(2)
    equal = (rows[:, None, :] == rows[:, :, None]).sum(2)
    ranks = smaller + equal / 2
    centred = ranks - ranks.mean(1, keepdims=True)
    unit: Floats = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit


def holm(p: Floats) -> Floats:
    """Returns Holm's correction of all finite p-values together; the others stay NaN.

    Equals `statsmodels.stats.multitest.multipletests(method="holm")`, which runs a full garbage collection at every
    call and so takes seconds in a large study.
    """
    corrected = np.full(p.shape, np.nan)
    finite = np.flatnonzero(np.isfinite(p))
    order = finite[np.argsort(p[finite], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return corrected


def permutation_test(differences: Sequence[float]) -> float | None:
    """Returns the two-sided p-value by flipping the signs of paired differences, all 2^n of them up to n = 13.

    None for fewer than two differences. With n seeds it cannot fall below 2 / 2^n: 5 seeds reach 0.0625.
    """
    if len(differences) < 2:
        return None
    from scipy import stats

    result = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        lambda x, axis: x.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def seeds_needed(differences: Sequence[float], power: float = 0.8) -> int | None:
    """Returns the total number of seeds with which a two-sided paired t-test detects a mean difference like this one.

    None for fewer than two differences, if their mean is (almost) 0, and if they are all equal.
    """
    d = np.asarray(differences, dtype=float)
    if len(d) < 2 or d.mean() == 0:
        return None
    spread = d.std(ddof=1)
    if spread <= NO_SPREAD * abs(d.mean()):
        return None
    effect = abs(d.mean()) / spread
    if effect < 1e-3:
        return None
    # The normal approximation with its correction for t: exact to a seed or two if many are needed.
    normal = special.ndtri([1 - ALPHA / 2, power])
    approximate = math.ceil((normal.sum() / effect) ** 2 + normal[0] ** 2 / 2)
    if approximate > 100:
        return approximate
    # Few are needed: try each count.
    counts = np.arange(2, approximate + 5)
    critical = special.stdtrit(counts - 1, 1 - ALPHA / 2)
    # The statistic follows a noncentral t; its tail on the other side of 0 is negligible at this power.
    reached = 1 - special.nctdtr(counts - 1, effect * np.sqrt(counts), critical)
    return int(counts[np.argmax(reached >= power)] if (reached >= power).any() else counts[-1])


@dataclass(frozen=True)
class Sampled:
    """One quantity of one setting, seed by seed, with the spread over its problems.

    `parts` holds, for each benchmark that the quantity averages, either per-problem values [seeds, problems], or
    `None` with the standard error over problems of each seed in `errors`.
    """

    seeds: tuple[int, ...]
    values: Floats
    """[seeds]"""
    parts: tuple[tuple[str, Floats | None, Floats], ...]
    """(name of the problems, values [seeds, problems] or None, standard errors [seeds])"""
    resolution: float = 0.0
    """Of one seed's value: how much one item moves it."""
    bounds: tuple[float, float] = UNBOUNDED
    """Between which values it must be: 0 and 100 for percentages."""


def hierarchical_bootstrap(
    quantities: Sequence[Sampled],
    statistic: Callable[[list[Floats]], Floats],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Estimate:
    """Returns `statistic` of the quantities' means, with an interval over new seeds and new problems.

    Seeds and problems are crossed: every seed of every setting gets the same problems. A replicate draws seeds and,
    independently, problems, with replacement, the same for all quantities (Owen 2007, the pigeonhole bootstrap): what
    they have in common cancels in a difference. A part without per-problem values contributes normal noise of its
    standard error instead, independent between quantities. So does each quantity's resolution.

    Few seeds make a percentile interval too narrow, so the replicates give a standard error, scaled by
    sqrt(S / (S - 1)), and the interval is Student's with S - 1 degrees of freedom. With one seed it is normal, only
    over problems, and there is no p-value. It is cut where `statistic` cannot be, between its extremes at the bounds of
    the quantities. `quantities` must have the same seeds in the same order; `statistic` maps one array [R] for each
    quantity to one array [R].
    """
    rng = np.random.default_rng(seed)
    count = len(quantities[0].seeds)
    if any(quantity.seeds != quantities[0].seeds for quantity in quantities):
        raise ValueError("quantities: they must have the same seeds in the same order")
    value = float(statistic([quantity.values.mean(keepdims=True) for quantity in quantities])[0])

    # seed_weights [R, S]: how often each replicate draws each seed, as a share. A single seed is always drawn.
    seed_weights = rng.multinomial(count, np.full(count, 1 / count), size=replicates) / count
    if count == 1:
        seed_weights = np.ones((replicates, 1))
    problem_weights: dict[str, Floats] = {}
    means = []
    for quantity in quantities:
        # shift [R, S]: how far new problems move each seed's value, averaged over the parts.
        shift = np.zeros((replicates, count))
        for name, values, errors in quantity.parts:
            if values is None:
                noise = rng.standard_normal((replicates, count)) * np.nan_to_num(errors)
            else:
                size = values.shape[1]
                key = f"{name}/{size}"
                if key not in problem_weights:  # the same draw for every quantity with these problems
                    problem_weights[key] = rng.multinomial(size, np.full(size, 1 / size), size=replicates) / size
                noise = (problem_weights[key] - 1 / size) @ values.T
            shift += noise / len(quantity.parts)
        rounding = rng.standard_normal(replicates) * quantity.resolution / math.sqrt(count)
        means.append((seed_weights * (quantity.values + shift)).sum(1) + rounding)
    estimate = _estimate(value, float(np.nanstd(statistic(means), ddof=1)), count)
    bounds = np.array(list(itertools.product(*(quantity.bounds for quantity in quantities))))
    if estimate.low is None or estimate.high is None or not np.isfinite(bounds).all():
        return estimate
    with np.errstate(divide="ignore", invalid="ignore"):
        extremes = statistic(list(bounds.T))
    if not np.isfinite(extremes).all():
        return estimate
    least, most = float(extremes.min()), float(extremes.max())
    return replace(estimate, low=max(estimate.low, least), high=min(estimate.high, most))


def _estimate(value: float, spread: float, count: int) -> Estimate:
    """The interval and p-value from the replicates' standard deviation; `count` seeds."""
    if spread <= NO_SPREAD * abs(value):  # equal numbers, of which nothing else is known: they decide nothing
        return Estimate(value, None, None, None if count == 1 else 1.0, count)
    if count == 1:
        half = float(special.ndtri(1 - ALPHA / 2)) * spread
        return Estimate(value, value - half, value + half, None, 1)
    error = spread * math.sqrt(count / (count - 1))
    half = float(special.stdtrit(count - 1, 1 - ALPHA / 2)) * error
    p = float(2 * special.stdtr(count - 1, -abs(value) / error))
    return Estimate(value, value - half, value + half, p, count)
