"""The benchmark of two ranks, on a small model: both sides take the same steps; speed itself is not tested."""

from pathlib import Path

import pytest

from benchmarks.grpo import Shape
from benchmarks.two_ranks import BAR, Team, row

pytestmark = pytest.mark.slow

TINY = Shape("tiny", 32, 2, 64, 2, 1, 16, 4, 4, 8, 8, 1.0)


def test_two_ranks_take_the_steps_of_one(tmp_path: Path) -> None:
    """Their gradients are averaged: the weights agree with each other, which `Team` checks, and with one process."""
    with Team(2, TINY, tmp_path) as two, Team(1, TINY, tmp_path) as one:
        start, *sums = [(two.step(), one.step()) for _ in range(3)]
    assert start[0] != sums[-1][0]
    for ours, peer in (start, *sums):
        assert ours == pytest.approx(peer, abs=1e-6)


def test_a_row_has_both_sides() -> None:
    measured = row(TINY, rounds=1)
    assert measured.bar == BAR == 0.6
    assert measured.ours > 0
    assert measured.peer > 0
