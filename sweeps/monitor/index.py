"""A summary of every stage run in a store, in one file, so that `status` does not read thousands.

`index.json` may be deleted at any time. An entry is valid while the modification time of its folder is the recorded
one: every change of a stage run's state is a rename in its folder, which changes that time. Folders that changed in the
last moments are read every time, since two changes may have the same modification time.
"""

import contextlib
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import StageFailure, UserError
from pipelines.files import read_sealed, write_sealed
from pipelines.published import redo
from sweeps.store.stage_runs import Store, StoredRun

FORMAT = 2
SETTLED_SECONDS = 2.0
"""Age of a change after which another one is sure to have a different modification time."""

logger = logging.getLogger("sweeps")


@dataclass(frozen=True)
class Summary:
    """One stage run in a line."""

    stage: str
    signature: str
    status: str
    """As in `state.json`; whether a `running` one still runs, its lease tells."""
    labels: dict[str, Any] = field(default_factory=dict)
    parent: str | None = None
    checkpoint: str | None = None
    attempts: int = 0
    started: float | None = None
    """When the newest attempt started."""
    seconds: float | None = None
    error: str | None = None
    log: str | None = None
    job: str | None = None
    """Its Slurm job, if any."""


def summaries(store: Store) -> dict[str, Summary]:
    """Signature -> summary of every stage run in the store; updates the index if it is writable.

    A stage run with broken or unreadable files has the status `corrupt` and the reason as its error; a stage's folder
    that cannot be listed is named in a warning.
    """
    path = store.root / "index.json"
    indexed = _load(path)
    entries: dict[str, Any] = {}
    by_signature: dict[str, Summary] = {}
    now = time.time()
    changed = False
    unlisted: list[UserError] = []
    for stored in store.folders(unlisted):
        with contextlib.suppress(FileNotFoundError):  # the folder was removed meanwhile
            modified = stored.folder.stat().st_mtime_ns
            key = f"{stored.stage}/{stored.signature}"
            # A folder that has not changed since it was indexed is not opened.
            entry = indexed.get(key)
            if entry and entry[0] == modified:
                summary = Summary(**entry[1])
            else:
                if not stored.is_planned and not stored.is_done:
                    continue
                summary = _summary(stored)
                changed = True
                entry = [modified, asdict(summary)]
            by_signature[summary.signature] = summary
            # A change of this moment might be followed by another one with the same modification time, and a change of
            # the right to read a file leaves no trace in its folder.
            if now - modified / 1e9 > SETTLED_SECONDS and summary.status != "corrupt":
                entries[key] = entry
    for error in unlisted:
        logger.warning("%s", error)
    # Also written when stage runs were deleted.
    if changed or len(entries) != len(indexed):
        with contextlib.suppress(UserError, StageFailure):  # a read-only store, or a full disk
            write_sealed(path, {"format": FORMAT, "runs": entries})
    return by_signature


def _load(path: Path) -> dict[str, Any]:
    """The entries of the index; none if it is missing, broken or of another format."""
    try:
        content = read_sealed(path, ("format", "runs"))
    except (OSError, UserError):
        return {}
    return content["runs"] if content["format"] == FORMAT else {}


def _summary(run: StoredRun) -> Summary:
    """The summary of a stage run from its files."""
    try:
        spec, result = run.spec, run.result
        # What attempts were like does not matter once the stage run is done.
        state = run.state if result is None else run.readable_state
        if result is None and state.get("status") == "done":
            raise UserError(f"{run.folder}/result.json: it was published and is missing; {redo(run.folder)}")
        attempts = state.get("attempts", [])
        last = attempts[-1] if attempts else {}
        job = state.get("job") or {}
        return Summary(
            stage=run.stage,
            signature=run.signature,
            status="done" if result is not None else str(state.get("status", "missing")),
            labels=spec["labels"],
            parent=spec["parent"] and spec["parent"]["signature"],
            checkpoint=spec["checkpoint"],
            attempts=len(attempts),
            started=last.get("started"),
            seconds=result["seconds"] if result else None,
            error=last.get("error"),
            log=last.get("log") or job.get("log"),
            job=job.get("id"),
        )
    except UserError as error:
        return Summary(run.stage, run.signature, status="corrupt", error=str(error))
