"""What several samples an item say, with errors that can be trusted. No torch: numbers come from stored samples.

The items of a benchmark are taken for a draw from all the items that it might hold, and an item's samples for a cluster
inside it. Standard errors and intervals over items so hold both kinds of chance, the choice of the problems and the
luck of the samples, with no correction for either. `sampling_error` is the luck of the samples alone: what another run
on the very same problems would differ by.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Items = NDArray[np.float64]

LEVEL = 0.95
"""Of every interval."""
RESAMPLES = 2000
"""Bootstrap samples behind an interval."""
MOST_RESAMPLED = 2000
"""Items above which an interval is Student's t: the mean of so many is normal, and resampling them says no more."""


class Estimate(NamedTuple):
    """A metric: its value, standard error over items (None for one item), number of items, and 95 % interval."""

    value: float
    stderr: float | None
    n: int
    low: float | None = None
    high: float | None = None


def pass_at_k(correct: NDArray[np.int64], n: int, k: ArrayLike) -> Items:
    """Unbiased probability that k of n samples hold a right one, an item: 1 - C(n - c, k) / C(n, k) (Eq. 14).

    `correct` [items] counts right samples; [items] comes back, or for k [K] a table [items, K]. The quotient is the
    product over i < c of 1 - k / (n - i), taken as a sum of logarithms: exact to rounding for any n, also where the
    result is tiny. Raises `ValueError` unless 1 <= k <= n and every count lies in 0..n.
    """
    ks = np.asarray(k)
    if ((ks < 1) | (ks > n)).any():
        raise ValueError(f"k={ks.tolist()}: it must lie between 1 and the number of samples, n={n}")
    if ((correct < 0) | (correct > n)).any():
        raise ValueError(f"correct={correct.tolist()}: counts must lie between 0 and n={n}")
    most = int(correct.max(initial=0))
    with np.errstate(divide="ignore"):
        steps = np.log1p(-np.minimum(1.0, ks[..., None] / (n - np.arange(most))))
    by_count = 0.0 - np.expm1(np.concatenate([np.zeros((*ks.shape, 1)), steps.cumsum(-1)], -1))
    return np.moveaxis(by_count, -1, 0)[correct]


def sampling_error(correct: NDArray[np.int64], n: int, k: ArrayLike) -> Items:
    """Standard error of the mean Pass@k over items that comes from the luck of their samples alone, in the shape of k.

    The variance of the estimator for c ~ Binomial(n, c / n), summed over the distinct counts; an item whose samples
    are all right or all wrong shows no luck, so with few samples this is too small. k = 1 is Avg@n.
    """
    counts, items = np.unique(correct, return_counts=True)
    everything = np.arange(n + 1)
    share = counts[:, None] / n
    # The binomial distribution in logarithms, [distinct, n + 1]; scipy.stats has it and takes a second to import.
    ways = -special.betaln(everything + 1, n - everything + 1) - np.log(n + 1)
    chance = np.exp(ways + special.xlogy(everything, share) + special.xlog1py(n - everything, -share))
    table = pass_at_k(everything, n, k)
    variance = chance @ table**2 - (chance @ table) ** 2
    return np.sqrt(np.tensordot(items, variance.clip(min=0), 1)) / len(correct)


def consensus(votes: NDArray[np.int64], rewards: Items) -> Items:
    """Probability [items] that a majority vote of an item's samples is right, ties broken at random.

    `votes` [items, n] numbers the answers of an item so that equal ones have equal numbers, -1 where there is none;
    those do not vote. `rewards` [items, n]; an answer's is the mean over the samples that gave it.
    """
    found = np.zeros(len(votes))
    for item, (vote, reward) in enumerate(zip(votes, rewards, strict=True)):
        cast = vote >= 0
        if cast.any():
            counts = np.bincount(vote[cast])
            winners = np.flatnonzero(counts == counts.max())
            means = np.bincount(vote[cast], reward[cast])[winners] / counts[winners]
            found[item] = means.mean()
    return found


def mean_and_error(values: Items) -> tuple[float, float | None]:
    """Mean over items and its standard error (None for a single item)."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error


def estimate(values: Items, fractions: bool = True) -> Estimate:
    """The mean of one number an item [items], with its error and interval."""
    low, high = mean_intervals(values[:, None], fractions)
    value, error = mean_and_error(values)
    return Estimate(value, error, len(values), *((None, None) if error is None else (float(low[0]), float(high[0]))))


def mean_intervals(values: Items, fractions: bool = True, resample: bool = True) -> tuple[Items, Items]:
    """95 % intervals [M] of the means of values [items, M], by resampling the items; NaN for one item.

    Without `resample`, and for more than 2,000 items, they are Student's t: symmetric, and a hundred times faster.

    `fractions`: the values lie in 0..1; where all items are 0 or all are 1, resampling sees no chance at all, and the
    far end is that of the exact binomial interval.
    """
    count = len(values)
    if count < 2:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    if count > MOST_RESAMPLED or not resample:
        half = special.stdtrit(count - 1, (1 + LEVEL) / 2) * values.std(0, ddof=1) / np.sqrt(count)
        low, high = values.mean(0) - half, values.mean(0) + half
    else:
        low, high = interval_of(resampling(count) @ values, count)
    if fractions:
        far = 1 - ((1 - LEVEL) / 2) ** (1 / count)
        high = np.where((values == 0).all(0), far, high)
        low = np.where((values == 1).all(0), 1 - far, low)
        low, high = low.clip(0, 1), high.clip(0, 1)
    return low, high


@cache
def resampling(count: int, seed: int = 0) -> Items:
    """Weights [RESAMPLES, count] of bootstrap samples of `count` items, each row summing to 1; a fixed draw, so that
    metrics of the same items are resampled alike and the same samples give the same interval."""
    draws = np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return draws / count


def interval_of(draws: Items, count: int) -> tuple[Items, Items]:
    """Interval of a statistic from its bootstrap `draws` [RESAMPLES, ...] over `count` items.

    The percentile interval, its levels widened as Student's t is wider than the normal and as the bootstrap's variance
    is too small by (count - 1) / count (Hesterberg 2015, "expanded percentile"): with 30 problems that matters.
    """
    wide = special.stdtrit(count - 1, (1 + LEVEL) / 2) * np.sqrt(count / (count - 1))
    outside = special.ndtr(-wide)
    low, high = np.quantile(draws, [outside, 1 - outside], axis=0)
    return low, high


RIGHT = 0.5
"""Reward from which on a sample counts as right."""


def sampled_metrics(
    rewards: Items, votes: NDArray[np.int64] | None, lengths: Items, pass_k: Sequence[int]
) -> dict[str, Estimate]:
    """Avg@n, Cons@n (with `votes`), Pass@k for 1 < k <= n and the mean response length, of samples [items, n].

    `Avg@n` is the mean reward; `votes` as `consensus` takes them, None for answers that cannot be compared, such as
    programs. `sampling_error` is the error of Avg@n for these very items.
    """
    n = rewards.shape[1]
    columns = {f"avg@{n}": rewards.mean(1)}
    ks = [k for k in pass_k if 1 < k <= n]
    correct = (rewards >= RIGHT).sum(1)
    if n > 1 and votes is not None:
        columns[f"cons@{n}"] = consensus(votes, rewards)
    columns |= {f"pass@{k}": column for k, column in zip(ks, pass_at_k(correct, n, ks).T, strict=True)}
    found = {metric: estimate(values) for metric, values in columns.items()}
    found["response_length"] = estimate(lengths.mean(1), fractions=False)
    if n > 1:
        found["sampling_error"] = Estimate(float(sampling_error(correct, n, 1)), None, len(rewards))
    return found
