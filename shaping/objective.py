"""The knobs of the objective, and the named settings of the paper. Does not import torch."""

import difflib
import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Objective:
    """What next-token training rewards (Eq. 11-13 of *Diversity or Precision?*).

    The true token x earns `(1 - p_x)^beta / p_x`; a wrong token earns `lam_head` if it is among the `top_k` likeliest
    tokens, else `lam_tail`. With beta and both lambdas at 0 it is cross-entropy.

    beta < 0 sharpens the distribution (precision), beta > 0 flattens it (diversity); lam_head > 0 keeps plausible
    alternatives; lam_tail < 0 lowers the tail.

    Raises `ValueError` if a knob is not finite or `top_k` is below 1.
    """

    beta: float = 0.0
    lam_head: float = 0.0
    lam_tail: float = 0.0
    top_k: int = 100

    def __post_init__(self) -> None:
        for name in ("beta", "lam_head", "lam_tail"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name}={value!r}: it must be a finite number")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1:
            raise ValueError(f"top_k={self.top_k!r}: it must be a whole number, 1 or more")

    @property
    def is_cross_entropy(self) -> bool:
        """Whether beta and both lambdas are 0."""
        return self.beta == 0 and self.lam_head == 0 and self.lam_tail == 0

    @property
    def uses_head(self) -> bool:
        """Whether `top_k` has an effect: with equal lambdas every wrong token earns the same."""
        return self.lam_head != self.lam_tail

    @classmethod
    def named(cls, name: str) -> "Objective":
        """The named setting; raises `ValueError` with the closest match for an unknown name."""
        if name in NAMED:
            return NAMED[name]
        close = difflib.get_close_matches(name, NAMED, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"name={name!r}: {hint}The settings are {', '.join(NAMED)}")

    def __str__(self) -> str:
        for name, setting in NAMED.items():
            if setting == self or (setting.is_cross_entropy and self.is_cross_entropy):
                return name
        knobs = [
            f"{field.name}={getattr(self, field.name):g}"
            for field in fields(self)
            if field.name != "top_k" and getattr(self, field.name)
        ]
        return " ".join([*knobs, f"top_k={self.top_k}"] if self.uses_head else knobs)


NAMED = {
    "ce": Objective(),
    "precision": Objective(beta=-0.25),
    "diversity": Objective(beta=0.5),
    "tail_penalty": Objective(lam_tail=-0.1),
    "head_reward": Objective(lam_head=0.1),
}
"""The five settings of the paper, with its k = 100."""


def check_objective(objective: object) -> None:
    """Raises `ValueError` for anything but an `Objective`, such as the name of a setting."""
    if not isinstance(objective, Objective):
        hint = (
            f"Objective.named({objective!r})"
            if isinstance(objective, str) and objective in NAMED
            else "Objective(beta=-0.25)"
        )
        raise ValueError(f"objective={objective!r}: it must be an Objective, such as {hint}")
