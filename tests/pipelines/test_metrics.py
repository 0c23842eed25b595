"""Sampling metrics against enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.metrics import majority, mean_and_error, pass_at_k


@given(n=st.integers(1, 8), data=st.data())
def test_pass_at_k_counts_subsets(n: int, data: st.DataObject) -> None:
    k, correct = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    samples = [True] * correct + [False] * (n - correct)
    subsets = list(itertools.combinations(samples, k))
    expected = sum(map(any, subsets)) / len(subsets)
    assert pass_at_k(np.array([correct]), n, k)[0] == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_the_papers_size() -> None:
    expected = 1 - math.comb(128 - 3, 64) / math.comb(128, 64)
    assert pass_at_k(np.array([3, 0, 128]), 128, 64) == pytest.approx([expected, 0, 1])


@pytest.mark.parametrize(("n", "k", "c"), [(4, 5, 0), (4, 0, 0), (4, 2, 5), (4, 2, -1)])
def test_impossible_counts_are_refused(n: int, k: int, c: int) -> None:
    with pytest.raises(ValueError, match="between"):
        pass_at_k(np.array([c]), n, k)


@given(st.lists(st.sampled_from(["7", "8", "9", None]), max_size=9))
def test_majority_is_the_chance_of_a_fair_tie_break(answers: list[str | None]) -> None:
    votes = [a for a in answers if a]
    best = max((votes.count(a) for a in votes), default=0)
    winners = sorted({a for a in votes if votes.count(a) == best})
    expected = winners.count("7") / len(winners) if winners else 0
    assert majority(answers, "7") == expected


def test_mean_and_error() -> None:
    assert mean_and_error(np.array([0.0, 1.0, 1.0, 0.0])) == (0.5, pytest.approx(math.sqrt(1 / 3) / 2))
    assert mean_and_error(np.array([0.25])) == (0.25, None)
