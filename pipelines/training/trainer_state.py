"""The trainer state of an unfinished stage: whatever it needs to go on as if nothing had happened.

Written beside, flushed to the disk and renamed, so that a kill at any moment leaves the state before or the state
after. Token stages save a distributed checkpoint (`torch.distributed.checkpoint`): every rank writes what it holds, and
any other number of ranks, sharded or not, reads what it needs. RL works in one process and saves one file.
"""

import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from pipelines.errors import StageFailure

SAVE_SECONDS = 900.0
"""A stage that is not interrupted saves its state about this often, for the sake of kills that give no warning."""

STATE_FORMAT = 1
STATE = "trainer.json"


def save_tensors(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> None:
    """Save the trainer state after `step` steps as `folder / step-000123`, all ranks together; the `keep` newest stay.

    `tensors` may be sharded (DTensors); those that are not are equal on all ranks. `state` is plain JSON.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    beside, place = folder / f".step-{step:06d}", folder / f"step-{step:06d}"
    if first:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    _together()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(tensors, checkpoint_id=beside)
    if first:
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        content = {"format": STATE_FORMAT, "step": step, "shapes": shapes, **state}
        (beside / STATE).write_text(json.dumps(content))
        for path in beside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(place, ignore_errors=True)
        beside.rename(place)
        for old in saved_steps(folder)[:-keep]:
            shutil.rmtree(folder / f"step-{old:06d}")
    _together()


def saved_steps(folder: Path) -> list[int]:
    """Steps after which `folder` holds a whole trainer state, ascending."""
    return sorted(int(path.parent.name.split("-")[1]) for path in folder.glob(f"step-*/{STATE}"))


def saved_state(folder: Path) -> dict[str, Any] | None:
    """What the newest trainer state in `folder` says in plain values, or None.

    Raises `StageFailure` for one of another format.
    """
    steps = saved_steps(folder)
    if not steps:
        return None
    path = folder / f"step-{steps[-1]:06d}" / STATE
    state: dict[str, Any] = json.loads(path.read_text())
    if state.get("format") != STATE_FORMAT:
        raise StageFailure(
            f"{path.parent}: a trainer state of format {state.get('format')}, and this version reads {STATE_FORMAT}; "
            f"go on with the version that wrote it, or delete {folder} to begin anew"
        )
    return state


def load_tensors(folder: Path, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` in place from the trainer state that `state` is of; all ranks together.

    Raises `StageFailure` where it is of another model or truncated.
    """
    place = folder / f"step-{state['step']:06d}"
    ours = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(ours.keys() ^ state["shapes"].keys()) or [n for n in ours if ours[n] != state["shapes"][n]]:
        raise StageFailure(
            f"{place}: the trainer state is of another model ({name} is {state['shapes'].get(name, 'missing')} there "
            f"and {ours.get(name, 'missing')} here); delete {folder} to begin anew"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, checkpoint_id=place)
    except (Exception, CheckpointException) as error:  # which is no Exception
        older = [step for step in saved_steps(folder) if step != state["step"]]
        rest = f"delete it to go on from step {older[-1]}" if older else f"delete {folder} to begin anew"
        raise StageFailure(
            f"{place}: the trainer state cannot be read, a file of it may be cut short; {rest}"
        ) from error


def _together() -> None:
    if dist.is_initialized():
        dist.barrier()


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace the one-file trainer state in `folder` by `state`: tensors, numbers, containers of them."""
    folder.mkdir(exist_ok=True)
    beside = folder / ".state.pt"
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(folder / "state.pt")


def load_state(folder: Path) -> dict[str, Any] | None:
    """The one-file trainer state in `folder`, on the CPU, or None where there is none."""
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
