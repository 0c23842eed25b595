"""What several samples an item say: Avg@n, Cons@n and the unbiased Pass@k, with standard errors over items."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Items = NDArray[np.float64]


def pass_at_k(correct: NDArray[np.int64], n: int, k: int) -> Items:
    """Unbiased probability that k of n samples hold a right one, an item: 1 - C(n - c, k) / C(n, k) (Eq. 14).

    `correct` [items] counts right samples. Raises `ValueError` unless 1 <= k <= n and every count lies in 0..n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: it must lie between 1 and the number of samples, n={n}")
    if ((correct < 0) | (correct > n)).any():
        raise ValueError(f"correct={correct.tolist()}: counts must lie between 0 and n={n}")
    wrong = n - correct.astype(np.float64)
    enough = wrong >= k
    wrong = np.where(enough, wrong, k)
    # C(wrong, k) / C(n, k), by logarithms so that 128 choose 64 does not overflow
    log_all_wrong = gammaln(wrong + 1) - gammaln(wrong - k + 1) - gammaln(n + 1) + gammaln(n - k + 1)
    return np.where(enough, -np.expm1(log_all_wrong), 1.0)


def majority(answers: Sequence[str | None], right: str) -> float:
    """Probability that a majority vote is right, ties broken at random; answers that are None do not vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return (right in winners) / len(winners)


def mean_and_error(values: Items) -> tuple[float, float | None]:
    """Mean over items and its standard error (None for a single item)."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error
