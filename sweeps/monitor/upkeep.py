"""Keeping a store in order: is every file what was published, and what may go."""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from sweeps.compose.cells import Composer, compose_cells, initialized_hydra, options_of
from sweeps.plan.planner import plan
from sweeps.plan.signatures import signature_of
from sweeps.store.leases import holder
from sweeps.store.stage_runs import Store, StoredRun


def faults(run: StoredRun) -> Iterator[str]:
    """What is wrong with a stage run's files, a sentence each; nothing where all is as it was published."""
    try:
        spec, result = run.spec, run.result
    except UserError as error:
        yield str(error)
        return
    try:
        expected = signature_of(spec)
    except (KeyError, TypeError) as error:
        yield f"{run.folder}/spec.json: it is no spec, {error} is not there"
        return
    if spec.get("signature") != run.signature or expected != run.signature:
        yield f"{run.folder}/spec.json: its content has the signature {expected}, its folder says {run.signature}"
    if result is None:
        return
    for name, digest in result.get("files", {}).items():
        path = run.folder / name
        if not path.is_file():
            yield f"{path}: it was published and is not there"
            continue
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            yield f"{path}: its sha256 is {found[:12]}, published was {digest[:12]}"


def needed_by_named_sweeps() -> set[str]:
    """Signatures of all stage runs that the sweeps of `conf/sweep` need, as far as those can be composed."""
    needed = set[str]()
    with initialized_hydra():
        composer = Composer()
        for name in options_of("sweep"):
            with contextlib.suppress(UserError):
                needed |= set(plan(compose_cells([f"+sweep={name}"], composer)).runs)
    return needed


@dataclass(frozen=True)
class Rubbish:
    """Something that may go."""

    path: Path
    bytes: int
    what: str


def rubbish(store: Store, needed: set[str], weights: bool) -> Iterator[Rubbish]:
    """What no sweep in `needed` misses: trainer states and half-done work of stage runs that it does not name and
    nobody is at work on; with `weights`, also those stage runs themselves."""
    for run in store.runs():
        if run.signature in needed:
            continue
        held = holder(run.folder)
        if held and held.alive:
            continue
        if weights:
            yield Rubbish(run.folder, _size(run.folder), "stage run")
            continue
        for work in run.folder.glob("work-*"):
            yield Rubbish(work, _size(work), "trainer state" if (work / "resume").exists() else "unfinished work")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove(items: list[Rubbish]) -> None:
    """Remove it all; raises `UserError` where something cannot be removed."""
    for item in items:
        try:
            shutil.rmtree(item.path)
        except OSError as error:
            raise UserError(f"{item.path}: it cannot be removed ({error.strerror})") from error
