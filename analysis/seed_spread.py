"""Seeds next to each other: which of a setting is far from its others, and which deviates most."""

import math
from dataclasses import dataclass
from statistics import fmean, median

from analysis.headline import Headline, HeadlineRow

FAR = 3.5
"""Distances from the median, in standard deviations estimated from the median distance, at which a seed is odd."""
FEWEST_FOR_ODD = 4
"""Seeds with which an odd one can be told."""


@dataclass(frozen=True)
class OddSeed:
    """A seed whose result is far from those of the other seeds of its setting."""

    model: str
    setting: str
    seed: int
    value: float
    others: tuple[float, float]
    """The lowest and highest of the others."""


def odd_seeds(headline: Headline) -> list[OddSeed]:
    """Returns the seeds whose result after RL is far from those of the others of their setting."""
    odd = []
    for row in headline.rows:
        values = after_rl(row)
        if len(values) < FEWEST_FOR_ODD:
            continue
        middle = median(values.values())
        # 1.4826 makes the median distance that of a normal distribution's standard deviation.
        deviation = 1.4826 * median(abs(value - middle) for value in values.values())
        least = 5 * max(row.after.resolution, 1.0)
        for seed, value in values.items():
            if abs(value - middle) > max(FAR * deviation, least):
                others = [other for key, other in values.items() if key != seed]
                odd.append(OddSeed(row.model, row.setting, seed, value, (min(others), max(others))))
    return odd


def after_rl(row: HeadlineRow) -> dict[int, float]:
    """Returns a setting's result after RL of each seed that has one, in percent."""
    return {seed: value for seed, value in row.by_seed.get("after", {}).items() if math.isfinite(value)}


def from_others(values: dict[int, float], seed: int) -> float | None:
    """Returns a seed's value minus the mean of the other seeds'; None without it or without another."""
    others = [value for other, value in values.items() if other != seed]
    return values[seed] - fmean(others) if seed in values and others else None


def furthest_seed(headline: Headline) -> str:
    """Returns a sentence that names the seed whose result after RL deviates most from its setting's other seeds.

    Of two seeds none can be called odd, and the sentence says so. Empty with one seed everywhere, or equal values.
    """
    found = [
        (abs(difference), row, seed)
        for row in headline.rows
        for seed in after_rl(row)
        if (difference := from_others(after_rl(row), seed)) is not None
    ]
    if not found or max(distance for distance, _, _ in found) == 0:
        return ""
    distance, row, seed = max(found, key=lambda item: item[0])
    values, name = after_rl(row), headline.name(row)
    listed = ", ".join(f"seed {number} {value:.1f} %" for number, value in sorted(values.items()))
    if len(values) == 2:
        first, second = sorted(values)
        return (
            f"Furthest apart after RL: seeds {first} and {second} of {name} differ by {distance:.1f} points "
            f"({listed}); two seeds cannot show which is odd."
        )
    return (
        f"Furthest from its setting’s other seeds after RL: seed {seed} of {name} at {values[seed]:.1f} %, "
        f"{distance:.1f} points from the mean of the others."
    )
