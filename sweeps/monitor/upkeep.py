"""Upkeep of a store: whether its files are what was published, and what can be removed to free space."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.files import sha256
from sweeps.compose.cells import compose_cells
from sweeps.compose.composer import Composer
from sweeps.compose.config_files import initialized_hydra, options_of
from sweeps.plan.planner import plan
from sweeps.plan.signatures import signature_of
from sweeps.store.stage_runs import Store, StoredRun


def faults(run: StoredRun) -> Iterator[str]:
    """What is wrong with a stage run's files, one sentence per fault."""
    # Are the files readable?
    try:
        spec, result = run.spec, run.result
    except UserError as error:
        yield str(error)
        return
    # Does the spec still have the signature that it is stored under?
    try:
        expected = signature_of(spec)
    except (KeyError, TypeError) as error:
        yield f"{run.folder}/spec.json: it is not a spec, it has no {error}"
        return
    if spec.get("signature") != run.signature or expected != run.signature:
        yield f"{run.folder}/spec.json: its content has the signature {expected}, its folder is named {run.signature}"
    if result is None:
        return
    # Is every published file unchanged?
    for name, digest in result.get("files", {}).items():
        path = run.folder / name
        if not path.is_file():
            yield f"{path}: it was published and is missing"
            continue
        if (actual := sha256(path)) != digest:
            yield f"{path}: its sha256 is {actual[:12]}, published was {digest[:12]}"


def needed_by_named_sweeps() -> set[str]:
    """Signatures of all stage runs that the sweeps of `conf/sweep` need, except sweeps that cannot be composed."""
    needed = set[str]()
    with initialized_hydra():
        composer = Composer()
        for name in options_of("sweep"):
            with contextlib.suppress(UserError):
                needed |= set(plan(compose_cells([f"+sweep={name}"], composer)).runs)
    return needed


@dataclass(frozen=True)
class Removable:
    """A folder that can be removed."""

    path: Path
    bytes: int
    what: str


def removable(store: Store, needed: set[str], *, weights: bool) -> Iterator[Removable]:
    """Folders that can be removed, from stage runs that are not in `needed` and have no live writer.

    These are trainer states and unfinished work, or with `weights` the whole stage runs.
    """
    for run in store.runs():
        if run.signature in needed or run.is_held():
            continue
        if weights:
            yield Removable(run.folder, _size(run.folder), "stage run")
            continue
        for work in run.folder.glob("work-*"):
            yield Removable(work, _size(work), "trainer state" if (work / "resume").exists() else "unfinished work")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove(items: list[Removable]) -> None:
    """Remove the folders; raises `UserError` if one of them cannot be removed."""
    for item in items:
        try:
            shutil.rmtree(item.path)
        except OSError as error:
            raise UserError(f"{item.path}: it cannot be removed ({error.strerror})") from error
