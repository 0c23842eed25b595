"""Whether a run has collapsed: its entropy or its response length fell without a gain in reward."""

from collections.abc import Sequence

import numpy as np

from pipelines.configuration.grpo import GRPOConfig

WINDOW = 5
"""Steps that are averaged, the first ones and the last ones."""

SOLVED = 0.9
"""With at least this reward, low entropy is expected and not a collapse."""

GAIN = 0.05
"""With at least this gain in reward since the start, shorter responses are not a collapse."""


def collapsed(history: Sequence[dict[str, float]], config: GRPOConfig) -> str | None:
    """Returns `entropy` or `length` if that has collapsed after the steps in `history`, else None.

    A row has `reward`, `entropy` (nats) and `response_length` (tokens). Returns None before 2 x `WINDOW` steps.
    """
    if len(history) < 2 * WINDOW:
        return None

    def mean(rows: Sequence[dict[str, float]], key: str) -> float:
        return float(np.mean([row[key] for row in rows]))

    # Low entropy is a collapse only without success, and shorter responses only without a gain.
    first, last = history[:WINDOW], history[-WINDOW:]
    reward = mean(last, "reward")
    if reward < SOLVED and mean(last, "entropy") < config.collapse_entropy * mean(first, "entropy"):
        return "entropy"
    shorter = mean(last, "response_length") < config.collapse_length * mean(first, "response_length")
    return "length" if shorter and reward < mean(first, "reward") + GAIN else None
