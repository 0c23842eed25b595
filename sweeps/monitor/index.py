"""A summary of every stage run in a store, kept so that `status` reads one file rather than thousands.

`index.json` may be deleted at any time. An entry counts as long as its folder's modification time is the one that it
was made for: every change of a stage run's state is a rename in its folder, which changes that time. Entries of folders
changed in the last moments are made anew each time, since two changes may fall into one tick.
"""

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import StageFailure, UserError
from pipelines.files import write_json
from sweeps.store.stage_runs import Store, StoredRun

FORMAT = 1
SETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class Summary:
    """What there is to say of a stage run in a line."""

    stage: str
    signature: str
    status: str
    """As `state.json` has it; whether a `running` one still runs is for its lease to say."""
    labels: dict[str, Any]
    parent: str | None
    checkpoint: str | None
    attempts: int
    started: float | None
    """When the newest attempt began."""
    seconds: float | None
    error: str | None
    log: str | None
    job: str | None
    """Its Slurm job."""


def summaries(store: Store) -> dict[str, Summary]:
    """Signature -> summary of every stage run in the store; brings the index up to date where it can be written.

    A stage run whose files are corrupt has the status `corrupt` and the reason as its error.
    """
    path = store.root / "index.json"
    before = _load(path)
    entries: dict[str, Any] = {}
    found: dict[str, Summary] = {}
    now = time.time()
    changed = False
    for stage in sorted(entry.name for entry in os.scandir(store.root) if entry.is_dir()):
        if stage in ("cache", "jobs", "sweeps", "wandb"):
            continue
        for folder in os.scandir(store.root / stage):
            with contextlib.suppress(FileNotFoundError):
                modified = folder.stat().st_mtime_ns
                key = f"{stage}/{folder.name}"
                entry = before.get(key)
                if entry and entry[0] == modified:
                    summary = Summary(**entry[1])
                else:
                    if not os.path.exists(f"{folder.path}/spec.json"):
                        continue
                    summary = _summary(StoredRun(stage, folder.name, Path(folder.path)))
                    changed = True
                    entry = [modified, asdict(summary)]
                found[summary.signature] = summary
                if now - modified / 1e9 > SETTLED_SECONDS:
                    entries[key] = entry
    if changed or len(entries) != len(before):
        with contextlib.suppress(UserError, StageFailure):  # another's store that we may only read, or a full disk
            write_json(path, {"format": FORMAT, "runs": entries})
    return found


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        return content["runs"] if content["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _summary(run: StoredRun) -> Summary:
    try:
        spec, state = run.spec, run.state
        result = run.result
        attempts = state.get("attempts", [])
        last = attempts[-1] if attempts else {}
        job = state.get("job") or {}
        return Summary(
            run.stage,
            run.signature,
            "done" if result is not None else str(state.get("status", "missing")),
            spec["labels"],
            spec["parent"] and spec["parent"]["signature"],
            spec["checkpoint"],
            len(attempts),
            last.get("started"),
            result["seconds"] if result else None,
            last.get("error"),
            last.get("log") or job.get("log"),
            job.get("id"),
        )
    except (UserError, KeyError, TypeError) as error:
        why = str(error) if isinstance(error, UserError) else f"{run.folder}/spec.json: it has no {error}"
        return Summary(run.stage, run.signature, "corrupt", {}, None, None, 0, None, None, why, None, None)
