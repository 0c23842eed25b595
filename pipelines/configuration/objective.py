"""The training objective of the token stages."""

import math
from dataclasses import dataclass

from pipelines.errors import require


@dataclass
class ObjectiveConfig:
    """The knobs of the objective; at the defaults it is cross-entropy. docs/objective.md has the formula."""

    name: str = "custom"
    """Label of the objective in tables."""
    beta: float = 0.0
    """Exponent of the weight (1 - p)^beta of the true token, which has probability p; above -1."""
    lam_head: float = 0.0
    """Reward of wrong tokens in the head."""
    lam_tail: float = 0.0
    """Reward of tokens outside the head."""
    top_k: int = 100
    """Size k of the head: the number of likeliest tokens in it. The paper's."""

    def __post_init__(self) -> None:
        for key in ("beta", "lam_head", "lam_tail"):
            value = getattr(self, key)
            require(math.isfinite(value), f"objective.{key}", value, fix="it must be a finite number")
        require(
            self.beta > -1,
            "objective.beta",
            self.beta,
            fix="it must be above -1; at -1 and below the gradient of a certain prediction does not vanish",
        )
        require(self.top_k >= 1, "objective.top_k", self.top_k, fix="the head must hold at least one token")
