"""The trainer state of an unfinished stage: whatever it needs to go on as if nothing had happened.

One file, written beside, flushed to the disk and renamed, so that a kill at any moment leaves the state before or the
state after.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SAVE_SECONDS = 900.0
"""A stage that is not interrupted saves its state about this often, for the sake of kills that give no warning."""


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace the trainer state in `folder` by `state`: tensors, numbers, containers of them."""
    folder.mkdir(exist_ok=True)
    beside = folder / ".state.pt"
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(folder / "state.pt")


def load_state(folder: Path) -> dict[str, Any] | None:
    """The trainer state in `folder`, on the CPU, or None where there is none."""
    path = folder / "state.pt"
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def every(seconds: float) -> Callable[[], bool]:
    """A function that is true about once in `seconds`, counted from now."""
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        if time.monotonic() - last < seconds:
            return False
        last = time.monotonic()
        return True

    return due
