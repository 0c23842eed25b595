"""Curves in one line of text."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 16
"""Characters of a curve."""
CURVES: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("loss", "cross_entropy"),
    "midtrain": ("loss", "cross_entropy"),
    "grpo": ("reward",),
}
"""Stage -> the columns of its ledger that show how it goes; the first that it has is shown."""


def spark(numbers: Sequence[float], width: int = WIDTH) -> str:
    """Returns numbers as blocks between their lowest and highest, averaged over `width` parts; others are left out."""
    finite = [number for number in numbers if math.isfinite(number)]
    if not finite:
        return ""
    count = min(width, len(finite))
    means = []
    for part in range(count):
        within = finite[part * len(finite) // count : (part + 1) * len(finite) // count]
        means.append(math.fsum(within) / len(within))
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


def curve(stage: str, rows: Iterable[Mapping[str, Any]]) -> tuple[str, list[float]]:
    """Returns the name and the numbers of what a stage's ledger rows show; ("", []) if they show nothing."""
    kept = list(rows)
    for column in CURVES.get(stage, ()):
        numbers = [float(row[column]) for row in kept if isinstance(row.get(column), int | float)]
        if numbers:
            return column, numbers
    return "", []


def curve_text(stage: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns `loss 6.1 ▇▅▃▂▁ 2.9`; empty if the rows show nothing."""
    name, numbers = curve(stage, rows)
    return f"{name} {numbers[0]:.3g} {spark(numbers)} {numbers[-1]:.3g}" if numbers else ""
