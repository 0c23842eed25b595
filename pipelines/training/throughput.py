"""Training speed as columns of the ledger: tokens and operations per second, waiting for data, and memory."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.configuration.start_checkpoint import shape_of
from pipelines.models.sizes import PEAKS, forward_operations


class Speed:
    """Times the steps between two rows of the ledger. A step lasts from one call of `step` to the next."""

    def __init__(self, operations: float, tokens: int, ranks: int) -> None:
        """`operations` and `tokens` are those of one step on all ranks."""
        self._operations, self._tokens, self._ranks = operations, tokens, ranks
        self._peak = peak_operations()
        self._seconds: list[float] = []
        self._waited_seconds = 0.0
        self._steps = 0
        self._started = self._last_step = self._last_micro_batch = time.perf_counter()

    @property
    def overall(self) -> dict[str, float]:
        """Tokens per second since the start, including everything between steps; nothing before the first step."""
        if not self._steps:
            return {}
        return {"tokens_per_second": self._steps * self._tokens / (time.perf_counter() - self._started)}

    def begin(self) -> None:
        """A micro-batch is loaded: the time since `end` was spent waiting for it."""
        self._waited_seconds += time.perf_counter() - self._last_micro_batch

    def end(self) -> None:
        """A micro-batch is done."""
        self._last_micro_batch = time.perf_counter()

    def step(self) -> None:
        """An optimizer step is done."""
        now = time.perf_counter()
        self._seconds.append(now - self._last_step)
        self._last_step = now
        self._steps += 1

    def row(self) -> dict[str, float]:
        """The columns for the steps since the last call; `mfu` only if the device's peak is known."""
        total, steps = sum(self._seconds), len(self._seconds)
        median, slow = np.percentile(self._seconds, (50, 95))
        # Operations per second on all ranks together, so the peak is multiplied by the ranks below.
        operations = self._operations * steps / total
        row = {
            "tokens_per_second": self._tokens * steps / total,
            "operations_per_second": operations,
            "data_wait_share": self._waited_seconds / total,
            "step_seconds_p50": float(median),
            "step_seconds_p95": float(slow),
            "memory_gib": memory_bytes() / 2**30,
        }
        if self._peak:
            row["mfu"] = operations / (self._peak * self._ranks)
        self._seconds, self._waited_seconds = [], 0.0
        return row


def step_operations(model: Any, tokens: int, length: int) -> float:
    """Operations of one training step of a transformers model; the masked half of attention is not counted."""
    # Backward costs twice the forward pass: 3 forward passes in all.
    shape, vocabulary = shape_of(model.config.to_dict()), model.config.vocab_size
    return 3 * forward_operations(shape, vocabulary, tokens=tokens, length=length)


def peak_operations() -> float | None:
    """Operations per second of this process's GPU by its data sheet; None for a CPU or an unknown GPU."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name().lower()
    return next((value for key, value in PEAKS.items() if key in name), None)


def device_name(device: torch.device) -> str:
    """A GPU's product name, or the type of any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_bytes() -> int:
    """The peak of the GPU's allocator or, without a GPU, the current memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # The second field of statm is the resident size in pages.
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
