"""The objective's knobs."""

import math
from dataclasses import dataclass

from pipelines.errors import require


@dataclass
class ObjectiveConfig:
    """The knobs of the training objective: beta, the two lambdas, and the size k of the head."""

    name: str = "custom"
    beta: float = 0.0
    lam_head: float = 0.0
    lam_tail: float = 0.0
    top_k: int = 100

    def __post_init__(self) -> None:
        for key in ("beta", "lam_head", "lam_tail"):
            value = getattr(self, key)
            require(math.isfinite(value), f"objective.{key}", value, fix="it must be a finite number")
        require(
            self.beta > -1,
            "objective.beta",
            self.beta,
            fix="it must be above -1, where the gradient would no longer vanish at a sure prediction",
        )
        require(self.top_k >= 1, "objective.top_k", self.top_k, fix="the head holds at least one token")
