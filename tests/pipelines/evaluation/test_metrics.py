"""Metrics of samples against enumeration, and intervals against simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.metrics import (
    consensus,
    estimate,
    mean_and_error,
    mean_intervals,
    pass_at_k,
    sampled_metrics,
    sampling_error,
)


@given(n=st.integers(1, 8), data=st.data())
def test_pass_at_k_counts_subsets(n: int, data: st.DataObject) -> None:
    k, correct = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    samples = [True] * correct + [False] * (n - correct)
    subsets = list(itertools.combinations(samples, k))
    expected = sum(map(any, subsets)) / len(subsets)
    assert pass_at_k(np.array([correct]), n, k)[0] == pytest.approx(expected, abs=1e-12)


def exact(n: int, c: int, k: int) -> float:
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def test_pass_at_every_k_of_the_papers_size() -> None:
    table = pass_at_k(np.arange(129), 128, np.arange(1, 129))
    assert table.shape == (129, 128)
    expected = [[exact(128, c, k) for k in range(1, 129)] for c in range(129)]
    np.testing.assert_allclose(table, expected, rtol=1e-12)
    assert (np.diff(table, axis=0) >= 0).all()
    assert (np.diff(table, axis=1) >= 0).all()


@pytest.mark.parametrize(("n", "c", "k"), [(10**6, 1, 1), (10**6, 2, 3), (10**5, 7, 50_000), (10**5, 99_000, 2)])
def test_pass_at_k_stays_exact_for_many_samples(n: int, c: int, k: int) -> None:
    """Ten digits of the quotient of two numbers of thousands of digits, even if it is tiny."""
    few, many = sorted((c, k))
    wrong = math.prod((Fraction(n - many - i, n - i) for i in range(few)), start=Fraction(1))
    assert pass_at_k(np.array([c]), n, k)[0] == pytest.approx(float(1 - wrong), rel=1e-10)


@pytest.mark.parametrize(("n", "k", "c"), [(4, 5, 0), (4, 0, 0), (4, 2, 5), (4, 2, -1)])
def test_impossible_counts_are_refused(n: int, k: int, c: int) -> None:
    with pytest.raises(ValueError, match="between"):
        pass_at_k(np.array([c]), n, k)


@given(st.lists(st.integers(-1, 2), max_size=9))
def test_consensus_is_the_chance_of_a_fair_tie_break(answers: list[int]) -> None:
    """With votes 0 to 2, of which 0 is right; -1 does not vote."""
    votes = [a for a in answers if a >= 0]
    best = max((votes.count(a) for a in votes), default=0)
    winners = sorted({a for a in votes if votes.count(a) == best})
    expected = winners.count(0) / len(winners) if winners else 0
    table = np.array([answers], dtype=np.int64)
    assert consensus(table, (table == 0).astype(float))[0] == expected


def test_consensus_of_every_way_to_vote() -> None:
    """All votes of five samples for three answers or none, in every order; answer 0 is right."""
    for votes in itertools.product((-1, 0, 1, 2), repeat=5):
        counts = [votes.count(a) for a in range(3)]
        winners = [a for a in range(3) if counts[a] == max(counts) and counts[a]]
        expected = (0 in winners) / len(winners) if winners else 0
        rewards = np.array([[float(v == 0) for v in votes]])
        assert consensus(np.array([votes]), rewards)[0] == pytest.approx(expected)


def test_an_answer_that_was_judged_both_ways_counts_by_its_share() -> None:
    assert consensus(np.array([[0, 0, 0, 1]]), np.array([[1.0, 0.0, 1.0, 0.0]]))[0] == pytest.approx(2 / 3)


def test_mean_and_error() -> None:
    assert mean_and_error(np.array([0.0, 1.0, 1.0, 0.0])) == (0.5, pytest.approx(math.sqrt(1 / 3) / 2))
    assert mean_and_error(np.array([0.25])) == (0.25, None)


@pytest.mark.parametrize(("n", "k"), [(8, 1), (8, 4), (32, 8)])
def test_the_sampling_error_is_the_spread_of_repeated_sampling(n: int, k: int) -> None:
    """Sample the same 20 problems 4,000 times, with the success rates of the counts."""
    rng = np.random.default_rng(0)
    correct = rng.integers(0, n + 1, 20)
    again = rng.binomial(n, correct / n, (4000, 20))
    means = pass_at_k(again.ravel(), n, k).reshape(again.shape).mean(1)
    assert sampling_error(correct, n, k) == pytest.approx(means.std(), rel=0.05)


def coverage(items: int, n: int, k: int) -> float:
    """How often, in 500 trials, the interval of Pass@k over problems of all difficulties contains the true value."""
    trials = 500
    rng = np.random.default_rng(items + n)
    difficulty = lambda size: rng.beta(0.5, 0.8, size)  # noqa: E731
    truth = float((1 - (1 - difficulty(2_000_000)) ** k).mean())
    correct = rng.binomial(n, difficulty((trials, items)))
    columns = pass_at_k(correct.ravel(), n, k).reshape(correct.shape)
    low, high = mean_intervals(columns.T)
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize(("items", "n", "k"), [(30, 16, 1), (30, 128, 8), (64, 8, 4), (500, 8, 4)])
def test_intervals_have_their_nominal_coverage(items: int, n: int, k: int) -> None:
    assert 0.92 <= coverage(items, n, k) <= 0.98  # 95 % +- three standard errors of 500 trials


def test_an_interval_has_width_even_if_all_items_are_equal() -> None:
    """No right answer in 30 problems is compatible with a share of up to 11.6 % (Clopper and Pearson)."""
    none, all_ = estimate(np.zeros(30)), estimate(np.ones(30))
    assert (none.low, none.high) == (0, pytest.approx(1 - 0.025 ** (1 / 30)))
    assert (all_.low, all_.high) == (pytest.approx(0.025 ** (1 / 30)), 1)
    assert estimate(np.array([1.0])).low is None


def test_the_same_samples_give_the_same_interval() -> None:
    values = np.random.default_rng(0).random(40)
    assert estimate(values) == estimate(values)
    many = np.random.default_rng(0).random(3000)  # a Student's t interval from 2,000 items on
    estimated = estimate(many)
    assert estimated.high == pytest.approx(many.mean() + 1.9608 * many.std(ddof=1) / math.sqrt(3000), rel=1e-4)


def test_one_sample_per_item_has_neither_votes_nor_pass_at_k() -> None:
    metrics = sampled_metrics(np.array([[1.0], [0.0]]), np.array([[0], [-1]]), np.array([[3.0], [5.0]]), pass_k=[1, 2])
    assert set(metrics) == {"avg@1", "response_length"}
