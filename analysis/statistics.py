"""Intervals and tests for a few seeds and a few dozen problems.

Seeds are paired across settings: equal seeds see the same data in the same order and get the same problems, so two
settings are compared by their differences seed by seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special  # importing scipy.stats takes longer than reading a small study

LEVEL = 0.95
ALPHA = 1 - LEVEL
REPLICATES = 2000

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


def t_test(differences: Floats) -> Floats:
    """Returns the two-sided p-value of a mean of 0 over the last axis, NaN for fewer than two finite differences.

    Equals `scipy.stats.ttest_1samp`, but without its loop over rows that have gaps.
    """
    count = np.isfinite(differences).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(differences, -1) / count
        spread = np.sqrt(np.nansum((differences - mean[..., None]) ** 2, -1) / (count - 1))
        statistic = mean * np.sqrt(count) / spread
        p = 2 * special.stdtr(count - 1, -np.abs(statistic))
    # Without any spread, a mean other than 0 is certain and a mean of 0 says nothing.
    return np.where((count > 1) & (spread > 0), p, np.where((count > 1) & (mean != 0), 0.0, np.nan))


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

    None for fewer than two differences, or if their mean is (almost) 0.
    """
    d = np.asarray(differences, dtype=float)
    if len(d) < 2 or d.mean() == 0:
        return None
    spread = d.std(ddof=1)
    if spread == 0:
        return 2
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
    standard error instead, independent between quantities.

    Few seeds make a percentile interval too narrow, so the replicates give a standard error, scaled by
    sqrt(S / (S - 1)), and the interval is Student's with S - 1 degrees of freedom. With one seed it is normal, only
    over problems, and there is no p-value. `quantities` must have the same seeds in the same order; `statistic` maps
    one array [R] for each quantity to one array [R].
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
        means.append((seed_weights * (quantity.values + shift)).sum(1))
    return _estimate(value, float(np.nanstd(statistic(means), ddof=1)), count)


def _estimate(value: float, spread: float, count: int) -> Estimate:
    """The interval and p-value from the replicates' standard deviation; `count` seeds."""
    if count == 1:
        half = float(special.ndtri(1 - ALPHA / 2)) * spread
        return Estimate(value, value - half, value + half, None, 1)
    error = spread * math.sqrt(count / (count - 1))
    half = float(special.stdtrit(count - 1, 1 - ALPHA / 2)) * error
    p = float(2 * special.stdtr(count - 1, -abs(value) / error)) if error > 0 else (0.0 if value else 1.0)
    return Estimate(value, value - half, value + half, p, count)
