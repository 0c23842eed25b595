"""The trainer state of an unfinished stage: everything that is needed to resume to the same results.

A state is written to a temporary path, flushed to disk and renamed, so that a kill at any moment leaves the state
before or the state after. Its tensors are a distributed checkpoint (`torch.distributed.checkpoint`): every rank writes
its part, and any other number of ranks, sharded or not, reads what it needs. `trainer.json` has the hash of every file,
which are checked before anything is read, and of itself.
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

from pipelines.errors import StageFailure, UserError
from pipelines.files import read_sealed, remove_leftovers, replacing, sealed, sha256
from pipelines.training.parallel import local_tensors
from pipelines.training.plain_checkpoint import METADATA, PlainPlanner, PlainReader

SAVE_SECONDS = 900.0
"""Seconds between two saved states of a stage that is not interrupted, for kills that give no warning."""

STATE_FORMAT = 2
STATE = "trainer.json"


def trainer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that later steps depend on, by name: weights, router biases and AdamW's state.

    Rows and rates are functions of the step, and nothing else draws random numbers. Before the first step AdamW's
    state is created here, with the values that the first step would start from.
    """
    tensors = {f"model.{name}": tensor for name, tensor in local_tensors(model).items()}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
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
    _note_hashes(shared)
    _barrier()
    if is_first:
        hashes = {METADATA: sha256(shared / METADATA)}
        for note in shared.glob("hashes-*.json"):
            hashes |= json.loads(note.read_text())
            note.unlink()
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        # `STATE` is written last: `saved_steps` only counts folders that have it.
        content = {"format": STATE_FORMAT, "step": step, "shapes": shapes, "files": hashes, **state}
        (shared / STATE).write_bytes(sealed(content))
        with replacing(path) as temporary:
            shared.rename(temporary)
        for old in saved_steps(folder)[:-keep_last]:
            shutil.rmtree(_path(folder, old))
    _barrier()


def _note_hashes(shared: Path) -> None:
    """Write down the hashes of the files that this rank has written, for the first rank: each reads its own."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    hashes = {path.name: sha256(path) for path in shared.glob(f"__{rank}_*")}
    (shared / f"hashes-{rank}.json").write_text(json.dumps(hashes))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def saved_steps(folder: Path) -> list[int]:
    """Steps after which `folder` has a whole trainer state, ascending."""
    names = (path.parent.name.removeprefix("step-") for path in folder.glob(f"step-*/{STATE}"))
    return sorted(int(name) for name in names if name.isdigit())


def saved_state(folder: Path) -> dict[str, Any] | None:
    """The plain values of the newest trainer state in `folder`, or None if there is no state.

    Raises `StageFailure` if it was changed or has another format.
    """
    steps = saved_steps(folder)
    if not steps:
        return None
    path = _path(folder, steps[-1]) / STATE
    try:
        state = read_sealed(path, ("format", "step"), _way_out(folder, steps[-1]))
    except UserError as error:
        raise StageFailure(str(error)) from error
    if state["format"] != STATE_FORMAT:
        raise StageFailure(
            f"{path.parent}: a trainer state of format {state['format']}, but this version reads {STATE_FORMAT}; "
            f"resume with the version that wrote it, or delete {folder} to start from the beginning"
        )
    if state["step"] != steps[-1]:
        raise StageFailure(f"{path}: it is the state after step {state['step']}; {_way_out(folder, steps[-1])}")
    return state


def _way_out(folder: Path, step: int) -> str:
    """What to do with the state after `step`, which cannot be used."""
    older = [other for other in saved_steps(folder) if other != step]
    if older:
        return f"delete {_path(folder, step)} to resume from step {older[-1]}"
    return f"delete {folder} to start from the beginning"


def load_tensors(folder: Path, state: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` in place from the trainer state whose plain values are `state`. All ranks call this together.

    Raises `StageFailure` if the state belongs to another model, or if one of its files was changed.
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
    if fault := _fault_on_any_rank(path, state["files"]):
        raise StageFailure(f"{fault}; {_way_out(folder, state['step'])}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, storage_reader=PlainReader(path), planner=PlainPlanner())
    except (Exception, CheckpointException) as error:  # CheckpointException does not derive from Exception
        reason = " ".join(str(error).split())
        raise StageFailure(
            f"{path}: the trainer state cannot be read ({reason}); {_way_out(folder, state['step'])}"
        ) from error


def _fault_on_any_rank(path: Path, hashes: Mapping[str, str]) -> str | None:
    """What is wrong with the files of a trainer state, of which each rank checks a share."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = sorted(hashes)[rank::ranks]
    faults = [_fault(path / name, hashes[name]) for name in share]
    fault = next((sentence for sentence in faults if sentence), None)
    if ranks == 1:
        return fault
    of_ranks: list[str | None] = [None] * ranks
    dist.all_gather_object(of_ranks, fault)
    return next((sentence for sentence in of_ranks if sentence), None)


def _fault(path: Path, digest: str) -> str | None:
    try:
        actual = sha256(path)
    except OSError as error:
        return f"{path}: a file of the trainer state cannot be read ({error.strerror})"
    return None if actual == digest else f"{path}: its sha256 is {actual[:12]}, saved was {digest[:12]}"


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


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
