"""Whether a run has collapsed: entropy gone with the task unsolved, or responses cut short with nothing gained."""

from collections.abc import Sequence

import numpy as np

from pipelines.configuration.grpo import GRPOConfig

WINDOW = 5
"""Steps that are averaged, at the start and at the end."""

SOLVED = 0.9
"""Reward from which on low entropy is what success looks like."""

GAIN = 0.05
"""Reward gained since the start from which on shorter responses are an improvement."""


def collapsed(history: Sequence[dict[str, float]], config: GRPOConfig) -> str | None:
    """`entropy` or `length` if that has collapsed by the last of the steps in `history`, else None.

    A row holds `reward`, `entropy` (nats) and `response_length` (tokens). Nothing is said before 2 x `WINDOW` steps.
    """
    if len(history) < 2 * WINDOW:
        return None

    def mean(rows: Sequence[dict[str, float]], key: str) -> float:
        return float(np.mean([row[key] for row in rows]))

    first, last = history[:WINDOW], history[-WINDOW:]
    reward = mean(last, "reward")
    if reward < SOLVED and mean(last, "entropy") < config.collapse_entropy * mean(first, "entropy"):
        return "entropy"
    shorter = mean(last, "response_length") < config.collapse_length * mean(first, "response_length")
    return "length" if shorter and reward < mean(first, "reward") + GAIN else None
