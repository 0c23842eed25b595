"""Trainer states: what was changed is refused by name, and a crafted one executes nothing."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from pipelines.errors import StageFailure
from pipelines.files import read_sealed, sealed, sha256
from pipelines.training.plain_checkpoint import METADATA
from pipelines.training.trainer_state import load_tensors, save_tensors, saved_state


class Payload:
    """Pickled as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"model.weight": torch.full((64, 4), value), "optimizer.step": torch.full((), value, dtype=torch.int64)}


def saved(folder: Path) -> Path:
    for step in (1, 2):
        save_tensors(folder, step, tensors(step), state={"last": {}}, keep_last=2)
    return folder / "step-000002"


def load(folder: Path) -> dict[str, torch.Tensor]:
    filled = tensors(0)
    state = saved_state(folder)
    assert state is not None
    load_tensors(folder, state, filled)
    return filled


def reseal(state: Path) -> None:
    """What somebody who knows the format would do: give the changed files the right hashes."""
    content = read_sealed(state / "trainer.json")
    content["files"] = {name: sha256(state / name) for name in content["files"]}
    (state / "trainer.json").write_bytes(sealed(content))


def test_a_saved_state_is_read_back(tmp_path: Path) -> None:
    saved(tmp_path)
    assert load(tmp_path)["model.weight"].eq(2).all()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["__0_0.distcp", METADATA, "trainer.json"])
@pytest.mark.parametrize(
    "damage", [flip, Path.unlink, lambda path: path.write_bytes(b""), lambda p: p.write_text("[]")]
)
def test_a_changed_file_is_named_with_the_way_out(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    state = saved(tmp_path)
    damage(state / name)
    if name == "trainer.json" and damage is Path.unlink:
        assert load(tmp_path)["model.weight"].eq(1).all()  # an unfinished state does not count
        return
    with pytest.raises(StageFailure, match=f"{state / name}: .*; delete {state} to resume from step 1"):
        load(tmp_path)


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("where", ["whole", "inside", "as bytes"])
def test_a_crafted_state_executes_nothing(tmp_path: Path, where: str, is_sealed: bool) -> None:
    state, made = saved(tmp_path), tmp_path / "made"
    with (state / METADATA).open("rb") as file:
        metadata = pickle.load(file)
    payload: Any = Payload(made)
    if where == "whole":
        metadata = payload
    elif where == "inside":
        metadata.planner_data = {"model.weight": payload}
    else:
        # torch unpickles values that are no tensors.
        metadata.state_dict_metadata["model.weight"] = BytesStorageMetadata()
        index = MetadataIndex("model.weight")
        stored = next(entry for key, entry in metadata.storage_data.items() if key.fqn == "model.weight")
        metadata.storage_data[index] = stored
        torch.save(payload, state / "__0_0.distcp")
        stored.offset, stored.length = 0, (state / "__0_0.distcp").stat().st_size
    (state / METADATA).write_bytes(pickle.dumps(metadata))
    if is_sealed:
        reseal(state)
    with pytest.raises(StageFailure, match=str(state)):
        load(tmp_path)
    assert not made.exists()


def test_a_state_names_no_file_of_another_folder(tmp_path: Path) -> None:
    state = saved(tmp_path)
    with (state / METADATA).open("rb") as file:
        metadata = pickle.load(file)
    for stored in metadata.storage_data.values():
        stored.relative_path = "../step-000001/__0_0.distcp"
    (state / METADATA).write_bytes(pickle.dumps(metadata))
    reseal(state)
    with pytest.raises(StageFailure, match="it names a file of another folder"):
        load(tmp_path)
