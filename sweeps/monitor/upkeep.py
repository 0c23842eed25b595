"""Upkeep of a store: whether its files are what was published, and what can be removed to free space."""

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.files import UnreadableError, unreadable
from pipelines.published import broken, checkpoint_hash, read_result, redo
from sweeps.compose.cells import compose_cells
from sweeps.compose.composer import Composer
from sweeps.compose.config_files import initialized_hydra, options_of
from sweeps.plan.planner import plan
from sweeps.plan.signatures import signature_of
from sweeps.store.stage_runs import Store, StoredRun

LEFTOVER_SECONDS = 3600.0
"""Age at which a temporary file counts as left by a killed writer."""
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}|\.clock-[0-9a-f]{8}|\.[0-9a-f]{32}|\.step-\d+\.all-ranks")
"""Names of temporary files and folders."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file of a stage run."""

    sentence: str
    is_broken: bool = True
    """Whether the stage run has to be run again; otherwise the sentence says what to do with the file."""
    spreads: bool = True
    """Whether what descends from the stage run is doubtful too."""


def faults(run: StoredRun) -> Iterator[Fault]:
    """What is wrong with a stage run's files; a folder that nothing was published in has no fault."""
    try:
        names = os.listdir(run.folder)
    except NotADirectoryError:
        return
    except OSError as error:
        yield Fault(str(unreadable(run.folder, error)), is_broken=False, spreads=False)
        return
    if not {"spec.json", "result.json"} & set(names):
        return
    yield from _record_faults(run)
    try:
        result = run.result
    except UserError:  # is among the faults of its records
        return
    if result is not None:
        yield from _file_faults(run, result["files"])


def _record_faults(run: StoredRun) -> Iterator[Fault]:
    """What is wrong with the JSON files."""
    try:
        if run.result is None and run.readable_state.get("status") == "done":
            yield Fault(f"{run.folder}/result.json: it was published and is missing; {redo(run.folder)}")
    except UserError as error:
        yield _fault(error)
    try:
        if signature_of(run.spec) != run.signature:
            yield Fault(
                f"{run.folder}/spec.json: its content has the signature {signature_of(run.spec)}; {redo(run.folder)}"
            )
    except (KeyError, TypeError) as error:
        yield Fault(f"{run.folder}/spec.json: it is not a spec, it has no {error}; {redo(run.folder)}")
    except UserError as error:
        yield _fault(error)
    try:
        _ = run.state
    except UserError as error:
        yield Fault(str(error), is_broken=False, spreads=False)


def _file_faults(run: StoredRun, files: Mapping[str, str]) -> Iterator[Fault]:
    """Published files that have changed, are missing or were added, and models that are not what was loaded."""
    added = {str(path.relative_to(run.folder)): "" for path in (run.folder / "checkpoints").rglob("*")}
    for name in {**added, **files}:
        path = run.folder / name
        try:
            # The spec is sealed; its own fault is reported already.
            if name == "spec.json" or (name not in files and path.is_dir()):
                continue
            if sentence := broken(path, files.get(name)):
                yield Fault(sentence, spreads=name.startswith("checkpoints/"))
        except (UnreadableError, PermissionError) as error:
            problem = error if isinstance(error, UnreadableError) else unreadable(path, error)
            yield Fault(str(problem), is_broken=False, spreads=False)


def input_faults(run: StoredRun, store: Store) -> Iterator[Fault]:
    """Models that the stage run loaded and that were published again since, with other weights."""
    with contextlib.suppress(UserError):  # is among the faults of its records
        for loaded, digest in (run.result or {}).get("inputs", {}).items():
            stage, signature, checkpoint = loaded.split("/")
            with contextlib.suppress(FileNotFoundError, UserError):
                if checkpoint_hash(read_result(store.run(stage, signature).folder)["files"], checkpoint) != digest:
                    yield Fault(f"{run.folder}: it was computed from other weights than {stage}/{signature} has now")


def _fault(error: UserError) -> Fault:
    is_broken = not isinstance(error, UnreadableError)
    return Fault(str(error), is_broken=is_broken, spreads=is_broken)


def descendants(runs: Iterable[StoredRun], ancestors: Iterable[str]) -> dict[str, str]:
    """Signature of each stage run that was computed from one of `ancestors`, directly or not -> that one."""
    needs: dict[str, set[str]] = {}
    for run in runs:
        with contextlib.suppress(UserError):
            needs[run.signature] = run.needs if run.is_planned else set()
    found = {signature: signature for signature in ancestors}
    while new := {
        signature: found[need]
        for signature, needed in needs.items()
        for need in sorted(needed & found.keys())
        if signature not in found
    }:
        found |= new
    return {signature: ancestor for signature, ancestor in found.items() if signature != ancestor}


def discard(run: StoredRun) -> bool:
    """Remove the folder of a stage run at once, unless a live process holds it; returns whether it was removed.

    Raises `UserError` if this user may not remove it.
    """
    lease = run.claim()
    if lease is None:
        return False
    # Renamed first, so that no reader sees half of it.
    removed = run.folder.with_name(f".{run.folder.name}.{uuid.uuid4().hex[:8]}")
    with lease:
        try:
            run.folder.rename(removed)
            shutil.rmtree(removed)
        except OSError as error:
            raise UserError(f"{run.folder}: it cannot be removed ({error.strerror})") from error
    return True


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
    """A file or folder that can be removed."""

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


def leftovers(store: Store) -> Iterator[Removable]:
    """What killed commands left: temporary files, and folders of stage runs and commands that had not begun."""
    for folder, folders, files in os.walk(store.root):
        names = [name for name in (*folders, *files) if TEMPORARY.fullmatch(name)]
        # W&B's files are its own, and what is in a temporary folder goes with it.
        folders[:] = [name for name in folders if name not in names and Path(folder, name) != store.root / "wandb"]
        yield from _old(Path(folder, name) for name in names)
    for run in store.folders([]):
        if not run.is_planned and not run.is_done and run.folder.is_dir() and not run.is_held():
            yield from _old([run.folder])
    # A job has its call as soon as it is submitted, and its log as soon as it runs.
    jobs = (store.root / "jobs").glob("*")
    yield from _old(folder for folder in jobs if not [*folder.glob("*_submitted.pkl"), *folder.glob("*_log.*")])


def _old(paths: Iterable[Path]) -> Iterator[Removable]:
    for path in paths:
        with contextlib.suppress(OSError):  # another command removes it too
            if time.time() - path.lstat().st_mtime >= LEFTOVER_SECONDS:
                yield Removable(path, _size(path), "left by a killed command")


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def remove(items: list[Removable]) -> None:
    """Remove the files and folders; raises `UserError` if one of them cannot be removed."""
    for item in items:
        try:
            shutil.rmtree(item.path) if item.path.is_dir() else item.path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{item.path}: it cannot be removed ({error.strerror})") from error
