"""Measures of how RL learns, from its rewards on held-out problems: arithmetic on a few numbers, without torch.

A result after RL does not tell a model that learned at once from one that learned at the end; these do.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_GAIN = 0.01
"""Gain in reward below which the entropy spent for it is not a price."""


def area_weights(steps: Sequence[float]) -> Floats:
    """Returns the weight [S] of each measured step in `area`; they add up to 1.

    Raises `ValueError` for fewer than two steps, and for steps that do not increase.
    """
    positions = np.asarray(steps, dtype=float)
    gaps = np.diff(positions)
    if len(positions) < 2 or not (gaps > 0).all():
        raise ValueError(f"steps: an area needs two or more, in increasing order; these are {list(steps)}")
    halves = np.concatenate([[0.0], gaps, [0.0]])
    weights: Floats = (halves[1:] + halves[:-1]) / 2 / (positions[-1] - positions[0])
    return weights


def area(steps: Sequence[float], rewards: Sequence[float]) -> float:
    """Returns the area under a curve by trapezoids, divided by its length: the mean reward over the course of RL."""
    return float(area_weights(steps) @ np.asarray(rewards, dtype=float))


def steps_to(steps: Sequence[float], rewards: Sequence[float], reward: float) -> float | None:
    """Returns the step at which a curve first reaches `reward`, interpolated; None if it never does."""
    for index, (step, value) in enumerate(zip(steps, rewards, strict=True)):
        if value >= reward:
            if index == 0:
                return float(step)
            before, start = rewards[index - 1], steps[index - 1]
            return float(start + (step - start) * (reward - before) / (value - before))
    return None


def price(entropy_spent: float, gain: float) -> float | None:
    """Returns the entropy spent for each unit of reward gained, in nats; None for a gain below `LEAST_GAIN`."""
    return entropy_spent / gain if gain >= LEAST_GAIN else None
