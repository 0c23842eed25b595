"""The trainer state of an unfinished stage: everything that is needed to resume to the same results.

A state is written to a temporary path, flushed to disk and renamed, so that a kill at any moment leaves the state
before or the state after. Token stages save a distributed checkpoint (`torch.distributed.checkpoint`): every rank
writes its part, and any other number of ranks, sharded or not, reads what it needs. RL runs in one process and saves
one file.
"""

import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from pipelines.errors import StageFailure
from pipelines.files import remove_leftovers, replacing
from pipelines.training.parallel import local_tensors

SAVE_SECONDS = 900.0
"""Seconds between two saved states of a stage that is not interrupted, for kills that give no warning."""

STATE_FORMAT = 1
STATE = "trainer.json"


def trainer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that later steps depend on, by name: weights, router biases and AdamW's state.

    Rows and rates are functions of the step, and nothing else draws random numbers. Before the first step AdamW's
    state is created here, with the values that the first step would start from.
    """
    tensors = {f"model.{name}": tensor for name, tensor in local_tensors(model).items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        tensors |= {f"optimizer.{name}.{key}": state[key].detach() for key in ("step", "exp_avg", "exp_avg_sq")}
    return tensors


def save_tensors(
    folder: Path, step: int, tensors: dict[str, Tensor], *, state: Mapping[str, Any], keep_last: int
) -> None:
    """Save the trainer state after `step` steps as `folder / step-000123`; the `keep_last` newest states are kept.

    All ranks call this together. `tensors` may be sharded (DTensors); the others are equal on all ranks. `state` is
    plain JSON.
    """
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    path, shared = _path(folder, step), folder / f".step-{step:06d}.all-ranks"
    if is_first:
        remove_leftovers(folder, "step-*")
        shared.mkdir(parents=True)
    _barrier()
    # Every rank writes its part of the tensors into the same folder.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(tensors, checkpoint_id=shared)
    if is_first:
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        # `STATE` is written last: `saved_steps` only counts folders that have it.
        content = {"format": STATE_FORMAT, "step": step, "shapes": shapes, **state}
        (shared / STATE).write_text(json.dumps(content))
        with replacing(path) as temporary:
            shared.rename(temporary)
        for old in saved_steps(folder)[:-keep_last]:
            shutil.rmtree(_path(folder, old))
    _barrier()


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def saved_steps(folder: Path) -> list[int]:
    """Steps after which `folder` has a whole trainer state, ascending."""
    return sorted(int(path.parent.name.split("-")[1]) for path in folder.glob(f"step-*/{STATE}"))


def saved_state(folder: Path) -> dict[str, Any] | None:
    """The plain values of the newest trainer state in `folder`, or None if there is no state.

    Raises `StageFailure` if it has another format.
    """
    steps = saved_steps(folder)
    if not steps:
        return None
    path = _path(folder, steps[-1]) / STATE
    state: dict[str, Any] = json.loads(path.read_text())
    if state.get("format") != STATE_FORMAT:
        raise StageFailure(
            f"{path.parent}: a trainer state of format {state.get('format')}, but this version reads {STATE_FORMAT}; "
            f"resume with the version that wrote it, or delete {folder} to start from the beginning"
        )
    return state


def load_tensors(folder: Path, state: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` in place from the trainer state whose plain values are `state`. All ranks call this together.

    Raises `StageFailure` if the state belongs to another model or is truncated.
    """
    path = _path(folder, state["step"])
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    # Names that only one side has, or else names whose shapes differ.
    different = sorted(shapes.keys() ^ state["shapes"].keys()) or [n for n in shapes if shapes[n] != state["shapes"][n]]
    if different:
        name = different[0]
        raise StageFailure(
            f"{path}: the trainer state belongs to another model ({name} is {state['shapes'].get(name, 'missing')} in "
            f"the state and {shapes.get(name, 'missing')} in the model); delete {folder} to start from the beginning"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, checkpoint_id=path)
    except (Exception, CheckpointException) as error:  # CheckpointException does not derive from Exception
        older = [step for step in saved_steps(folder) if step != state["step"]]
        fix = f"delete it to resume from step {older[-1]}" if older else f"delete {folder} to start from the beginning"
        raise StageFailure(
            f"{path}: the trainer state cannot be read, one of its files may be truncated; {fix}"
        ) from error


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace the one-file trainer state in `folder` by `state`: tensors, numbers, containers of them."""
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder, "state.pt")
    with replacing(folder / "state.pt") as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The one-file trainer state in `folder`, on the CPU, or None if the file does not exist."""
    path = folder / "state.pt"
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def every(seconds: float) -> Callable[[], bool]:
    """Returns a function that is true about once in `seconds`, counted from now."""
    last = time.monotonic()

    def is_due() -> bool:
        nonlocal last
        if time.monotonic() - last < seconds:
            return False
        last = time.monotonic()
        return True

    return is_due
