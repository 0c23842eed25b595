"""Which optimizer steps are skipped: those that are not finite and, if the budget sets a limit, spikes."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.configuration.budgets import TrainConfig

HISTORY = 128
"""Steps whose losses and gradient norms a new one is compared with; the method and number are OLMo's."""


class StepFilter:
    """Compares each step's loss and gradient norm with those of the last `HISTORY` steps.

    As in OLMo, steps that are skipped as spikes are among these. So after a lasting shift of the loss a few steps are
    skipped, until the shift is part of what is compared with; otherwise every later step would be.
    """

    def __init__(self, budget: TrainConfig, state: Mapping[str, Any] | None = None) -> None:
        """`state` is what `state_dict` returned in the attempt that is resumed."""
        self._spike_sigmas = budget.spike_sigmas
        self.skipped: int = state["skipped"] if state else 0
        """Skipped steps so far, including those of earlier attempts."""
        self._history: deque[tuple[float, float]] = deque(state["history"] if state else [], HISTORY)
        self._losses: list[Tensor] = []

    def add_loss(self, loss: Tensor) -> None:
        """Record the loss of one micro-batch of the current step."""
        if self._spike_sigmas is not None:
            self._losses.append(loss.detach())

    def reason_to_skip(self, gradient_norm: float, mean_over_ranks: Callable[[float], float]) -> str | None:
        """Why the current step has to be skipped, counting it as skipped; None if it is good."""
        reason = self._reason(gradient_norm, mean_over_ranks)
        if reason is not None:
            self.skipped += 1
        return reason

    def _reason(self, gradient_norm: float, mean_over_ranks: Callable[[float], float]) -> str | None:
        # Without a limit on spikes the loss is not read, which would wait for the GPU.
        if self._spike_sigmas is None:
            return None if math.isfinite(gradient_norm) else f"the gradient's norm is {gradient_norm}"
        loss = mean_over_ranks(torch.stack(self._losses).mean().item())
        self._losses = []
        earlier_steps = list(self._history)
        # A value that is not finite would leave no mean to compare with.
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self._history.append((loss, gradient_norm))
        for name, value, earlier in (
            ("loss", loss, [pair[0] for pair in earlier_steps]),
            ("gradient's norm", gradient_norm, [pair[1] for pair in earlier_steps]),
        ):
            if not math.isfinite(value):
                return f"the {name} is {value}"
            # A spike is only called one once the history is full.
            if len(earlier) == HISTORY and value > np.mean(earlier) + self._spike_sigmas * np.std(earlier):
                return f"the {name} of {value:.3g} is a spike over {np.mean(earlier):.3g}"
        return None

    def state_dict(self) -> dict[str, Any]:
        """What the decisions on later steps depend on, as plain JSON."""
        return {"skipped": self.skipped, "history": list(self._history)}
