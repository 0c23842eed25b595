"""Metrics of several samples for each item, with standard errors and intervals. Imports no torch.

The items of a benchmark are treated as a random draw from all possible items, and the samples of an item as a cluster.
So standard errors and intervals over items include both the choice of the problems and the randomness of the samples,
with no correction for either. `sampling_error` is the randomness of the samples only: how much another run on the same
problems would differ.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Items = NDArray[np.float64]
"""One number for each item."""

LEVEL = 0.95
"""Confidence level of all intervals."""
RESAMPLES = 2000
"""Bootstrap samples for an interval."""
MOST_RESAMPLED = 2000
"""With more items, intervals are Student's t: the mean of so many is normal, and resampling gives the same."""
RIGHT = 0.5
"""A sample with at least this reward counts as right."""


class Estimate(NamedTuple):
    """A metric: its value, standard error over items (None for one item), number of items, and 95 % interval."""

    value: float
    stderr: float | None
    n: int
    low: float | None = None
    high: float | None = None


def pass_at_k(correct: NDArray[np.int64], n: int, k: ArrayLike) -> Items:
    """For each item, the unbiased estimate 1 - C(n - c, k) / C(n, k) that k samples include a right one (Eq. 14).

    `correct` [items] is the number c of right ones among n samples. Shape [items], or [items, K] for k [K]. The
    quotient is computed as the product over i < c of 1 - k / (n - i), as a sum of logarithms: exact up to rounding for
    any n, even where the result is tiny. Raises `ValueError` unless 1 <= k <= n and all counts are in 0..n.
    """
    ks = np.asarray(k)
    if ((ks < 1) | (ks > n)).any():
        raise ValueError(f"k={ks.tolist()}: it must be between 1 and the number of samples, n={n}")
    if ((correct < 0) | (correct > n)).any():
        raise ValueError(f"correct={correct.tolist()}: counts must be between 0 and n={n}")
    # Compute a table over all counts that occur, [..., count], and look the items up in it.
    most = int(correct.max(initial=0))
    with np.errstate(divide="ignore"):
        steps = np.log1p(-np.minimum(1.0, ks[..., None] / (n - np.arange(most))))
    by_count = 0.0 - np.expm1(np.concatenate([np.zeros((*ks.shape, 1)), steps.cumsum(-1)], -1))
    return np.moveaxis(by_count, -1, 0)[correct]


def sampling_error(correct: NDArray[np.int64], n: int, k: ArrayLike) -> Items:
    """Standard error of the mean Pass@k over items due to the randomness of the samples only, in the shape of k.

    It is the variance of the estimator for c ~ Binomial(n, c / n), summed over the distinct counts. Items whose samples
    are all right or all wrong contribute none, so with few samples the result is too small. k = 1 is Avg@n.
    """
    counts, items = np.unique(correct, return_counts=True)
    everything = np.arange(n + 1)
    share = counts[:, None] / n
    # Probabilities of the binomial distribution, [distinct counts, n + 1]; importing scipy.stats takes a second.
    ways = -special.betaln(everything + 1, n - everything + 1) - np.log(n + 1)
    chance = np.exp(ways + special.xlogy(everything, share) + special.xlog1py(n - everything, -share))
    # Variance of Pass@k under each distribution, weighted by the number of items with that count.
    table = pass_at_k(everything, n, k)
    variance = chance @ table**2 - (chance @ table) ** 2
    return np.sqrt(np.tensordot(items, variance.clip(min=0), 1)) / len(correct)


def consensus(votes: NDArray[np.int64], rewards: Items) -> Items:
    """For each item, the probability that the majority vote of its samples is right; ties are broken at random.

    `votes` [items, n] are equal for equal answers of an item, and -1 for samples that do not vote. `rewards`
    [items, n]: the reward of an answer is the mean over the samples that gave it.
    """
    right = np.zeros(len(votes))
    for item, (vote, reward) in enumerate(zip(votes, rewards, strict=True)):
        cast = vote >= 0
        if cast.any():
            counts = np.bincount(vote[cast])
            winners = np.flatnonzero(counts == counts.max())
            means = np.bincount(vote[cast], reward[cast])[winners] / counts[winners]
            right[item] = means.mean()
    return right


def mean_and_error(values: Items) -> tuple[float, float | None]:
    """Mean over items and its standard error (None for a single item)."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error


def estimate(values: Items, fractions: bool = True) -> Estimate:
    """The mean of `values` [items] with its error and interval. For `fractions` see `mean_intervals`."""
    low, high = mean_intervals(values[:, None], fractions)
    value, error = mean_and_error(values)
    return Estimate(value, error, len(values), *((None, None) if error is None else (float(low[0]), float(high[0]))))


def mean_intervals(values: Items, fractions: bool = True, resample: bool = True) -> tuple[Items, Items]:
    """Both ends [M] of the 95 % intervals of the means of values [items, M]; NaN for one item.

    Items are resampled. Without `resample`, and for more than 2,000 items, intervals are Student's t: symmetric, and a
    hundred times faster. `fractions` says that values are in 0..1: where all are 0 or all are 1, resampling gives an
    interval of width 0, and its other end is replaced by that of the exact binomial interval.
    """
    count = len(values)
    if count < 2:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    if count > MOST_RESAMPLED or not resample:
        half = special.stdtrit(count - 1, (1 + LEVEL) / 2) * values.std(0, ddof=1) / np.sqrt(count)
        low, high = values.mean(0) - half, values.mean(0) + half
    else:
        low, high = interval_of(resampling(count) @ values, count)
    # Where all items are 0 or all are 1: the other end of the exact binomial interval.
    if fractions:
        far = 1 - ((1 - LEVEL) / 2) ** (1 / count)
        high = np.where((values == 0).all(0), far, high)
        low = np.where((values == 1).all(0), 1 - far, low)
        low, high = low.clip(0, 1), high.clip(0, 1)
    return low, high


@cache
def resampling(count: int, seed: int = 0) -> Items:
    """Weights [RESAMPLES, count] of bootstrap samples of `count` items; each row sums to 1.

    The draw is fixed, so metrics of the same items are resampled alike, and equal samples give equal intervals.
    """
    draws = np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return draws / count


def interval_of(draws: Items, count: int) -> tuple[Items, Items]:
    """Both ends of the interval of a statistic from its bootstrap `draws` [RESAMPLES, ...] over `count` items.

    This is the expanded percentile interval (Hesterberg 2015): its levels are widened because Student's t is wider than
    the normal, and because the bootstrap variance is too small by (count - 1) / count. It matters for 30 problems.
    """
    wide = special.stdtrit(count - 1, (1 + LEVEL) / 2) * np.sqrt(count / (count - 1))
    outside = special.ndtr(-wide)
    low, high = np.quantile(draws, [outside, 1 - outside], axis=0)
    return low, high


def sampled_metrics(
    rewards: Items, votes: NDArray[np.int64] | None, lengths: Items, *, pass_k: Sequence[int]
) -> dict[str, Estimate]:
    """The metrics of samples [items, n]: Avg@n, Cons@n, Pass@k for 1 < k <= n, and the mean response length.

    A new metric of sampled answers is added here. `Avg@n` is the mean reward, and `sampling_error` its error for these
    items. `votes` are those of `consensus`, or None for answers that cannot be compared, such as programs: then there
    is no Cons@n.
    """
    n = rewards.shape[1]
    correct = (rewards >= RIGHT).sum(1)
    ks = [k for k in pass_k if 1 < k <= n]

    # One number for each item, whose mean is the metric.
    columns = {f"avg@{n}": rewards.mean(1)}
    if n > 1 and votes is not None:
        columns[f"cons@{n}"] = consensus(votes, rewards)
    columns |= {f"pass@{k}": column for k, column in zip(ks, pass_at_k(correct, n, ks).T, strict=True)}
    metrics = {metric: estimate(values) for metric, values in columns.items()}

    # Metrics that are not fractions.
    metrics["response_length"] = estimate(lengths.mean(1), fractions=False)
    if n > 1:
        metrics["sampling_error"] = Estimate(float(sampling_error(correct, n, 1)), None, len(rewards))
    return metrics
