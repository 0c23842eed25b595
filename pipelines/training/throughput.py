"""How fast training goes: tokens, operations, waiting and memory, as columns of the ledger."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.models.sizes import PEAKS, forward_operations


class Speed:
    """Clocks the steps between two rows of the ledger. A step runs from one call of `step` to the next."""

    def __init__(self, operations: float, tokens: int, ranks: int) -> None:
        """`operations` and `tokens` of one step on all ranks."""
        self._operations, self._tokens, self._ranks = operations, tokens, ranks
        self._peak = peak()
        self._seconds: list[float] = []
        self._waited = 0.0
        self._steps = 0
        self._began = self._last = self._ended = time.perf_counter()

    @property
    def overall(self) -> float:
        """Tokens a second from the first step on, everything counted."""
        return self._steps * self._tokens / (time.perf_counter() - self._began)

    def begin(self) -> None:
        """A micro-batch has come: what passed since `end` was waiting for it."""
        self._waited += time.perf_counter() - self._ended

    def end(self) -> None:
        """A micro-batch is done."""
        self._ended = time.perf_counter()

    def step(self) -> None:
        """An optimizer step is done."""
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._last = now
        self._steps += 1

    def row(self) -> dict[str, float]:
        """The columns since the last call. `mfu` is there where the device's peak is known."""
        total, steps = sum(self._seconds), len(self._seconds)
        half, most = np.percentile(self._seconds, (50, 95))
        operations = self._operations * steps / total
        row = {
            "tokens_per_second": self._tokens * steps / total,
            "operations_per_second": operations,
            "data_wait_share": self._waited / total,
            "step_seconds_p50": float(half),
            "step_seconds_p95": float(most),
            "memory_gib": memory() / 2**30,
        }
        if self._peak:
            row["mfu"] = operations / (self._peak * self._ranks)
        self._seconds, self._waited = [], 0.0
        return row


def step_operations(model: Any, tokens: int, length: int) -> float:
    """Operations of one training step of a model of transformers: exact but for the masked half of attention."""
    config = model.config
    shape: Mapping[str, Any] = {
        "layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "ffn": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "experts": getattr(config, "num_local_experts", 0),
        "active_experts": getattr(config, "num_experts_per_tok", 0),
    }
    return 3 * forward_operations(shape, config.vocab_size, tokens, length)


def peak() -> float | None:
    """Operations a second of this process's GPU by its maker's sheet; None for a CPU or an unknown one."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name().lower()
    return next((value for key, value in PEAKS.items() if key in name), None)


def memory() -> int:
    """Bytes: the most that the GPU's allocator has held, or what this process holds now where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
