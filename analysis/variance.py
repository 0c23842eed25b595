"""Luck in pre-training and luck in RL, told apart: variance components from several RL seeds of each seed.

The model is the nested one, y = setting + a(seed) + e(RL seed): every seed of pre-training and mid-training moves all
RL runs that start from it by a, and each RL run is moved by e, which includes the noise of sampling held-out answers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.statistics import ALPHA, Floats

DRAWS = 100_000
"""Draws of the interval between seeds."""


@dataclass(frozen=True)
class Component:
    """A standard deviation with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Components:
    """What moves a result, setting aside."""

    between: Component
    """Of seeds of pre-training."""
    within: Component
    """Of RL seeds from one model."""
    share: Component
    """The share of the variance that is between seeds."""
    seeds: int
    runs: int


def components(groups: Sequence[Sequence[Sequence[float]]]) -> Components | None:
    """Returns the components of results by setting, seed and RL seed; every setting has a mean of its own.

    The estimates are those of the analysis of variance, 0 where the one between seeds would be negative. The interval
    within is exact (chi-squared), and that of the share where all seeds have equally many RL seeds (F). That between
    seeds is Weerahandi's (1993) generalised interval. None without two seeds of a setting and two RL seeds of a seed.
    """
    settings = [[np.asarray(runs, dtype=float) for runs in seeds if len(runs)] for seeds in groups]
    settings = [seeds for seeds in settings if seeds]
    count, runs = sum(map(len, settings)), sum(len(values) for seeds in settings for values in seeds)
    free_between, free_within = count - len(settings), runs - count
    if free_between < 1 or free_within < 1:
        return None
    sum_between = sum_within = unequal = 0.0
    for seeds in settings:
        sizes = np.array([len(values) for values in seeds], dtype=float)
        means = np.array([values.mean() for values in seeds])
        mean = float((sizes * means).sum() / sizes.sum())
        sum_between += float((sizes * (means - mean) ** 2).sum())
        sum_within += sum(float(((values - values.mean()) ** 2).sum()) for values in seeds)
        unequal += float((sizes**2).sum() / sizes.sum())
    # Runs of each seed; of unequal numbers, the one that makes the estimate unbiased.
    size = (runs - unequal) / free_between
    mean_within = sum_within / free_within
    variance = max(0.0, (sum_between / free_between - mean_within) / size)
    ends = (1 - ALPHA / 2, ALPHA / 2)  # the larger quantile gives the lower end
    within = [sum_within / float(special.chdtri(free_within, 1 - end)) for end in ends]
    between = _between(sum_between, sum_within, free=(free_between, free_within), size=size)
    return Components(
        between=Component(math.sqrt(variance), *np.sqrt(between).tolist()),
        within=Component(math.sqrt(mean_within), *map(math.sqrt, within)),
        share=_share(sum_between, sum_within, free=(free_between, free_within), size=size),
        seeds=count,
        runs=runs,
    )


def _between(sum_between: float, sum_within: float, *, free: tuple[int, int], size: float) -> Floats:
    """The interval of the variance between seeds: quantiles of what it would be under draws of both sums' chances."""
    rng = np.random.default_rng(0)
    drawn = (sum_between / rng.chisquare(free[0], DRAWS) - sum_within / rng.chisquare(free[1], DRAWS)) / size
    quantiles: Floats = np.quantile(np.clip(drawn, 0, None), [ALPHA / 2, 1 - ALPHA / 2])
    return quantiles


def _share(sum_between: float, sum_within: float, *, free: tuple[int, int], size: float) -> Component:
    """The share of the variance between seeds (the intraclass correlation), from the ratio of mean squares."""
    if sum_within == 0:
        return Component(1.0, 1.0, 1.0) if sum_between > 0 else Component(0.0, 0.0, 1.0)
    ratio = (sum_between / free[0]) / (sum_within / free[1])

    def share(f: float) -> float:
        return max(0.0, (f - 1) / (f - 1 + size))

    upper, lower = (float(special.fdtri(*free, end)) for end in (1 - ALPHA / 2, ALPHA / 2))
    return Component(share(ratio), share(ratio / upper), share(ratio / lower))
