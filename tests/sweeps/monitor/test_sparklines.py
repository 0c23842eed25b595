"""Curves in a line: the blocks follow the numbers."""

import math

import pytest

from sweeps.monitor.sparklines import curve, curve_text, spark


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([], ""),
        ([math.nan, math.inf], ""),
        ([1.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([7, math.nan, 0], "█▁"),
        ([-1.0, -2.0], "█▁"),
        ([i // 100 for i in range(800)], "▁▁▂▂▃▃▄▄▅▅▆▆▇▇██"),
    ],
)
def test_blocks_follow_the_numbers(numbers: list[float], expected: str) -> None:
    assert spark(numbers) == expected


def test_each_stage_shows_its_first_column() -> None:
    rows = [{"step": 0, "held_out_reward": 0.1}, {"step": 1, "reward": 0.25}, {"step": 2, "reward": None}]
    assert curve("grpo", rows) == ("reward", [0.25])
    assert curve("evaluate", rows) == ("", [])
    assert curve_text("pretrain", [{"loss": 6.0}, {"loss": 3.0}]) == "loss 6 █▁ 3"
    assert curve_text("midtrain", [{"cross_entropy": 1.5}]) == "cross_entropy 1.5 ▁ 1.5"
    assert curve_text("grpo", []) == ""
