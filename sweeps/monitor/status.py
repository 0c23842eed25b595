"""Where each stage run stands: our own records first, leases for what should be at work, then Slurm for its jobs."""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.configuration import STAGES
from pipelines.errors import StageFailure, UserError, nearest
from sweeps.monitor.index import Summary, summaries
from sweeps.monitor.launched_sweeps import SweepRecord, records
from sweeps.monitor.slurm_queue import JobState, job_states
from sweeps.plan.names import cell_of
from sweeps.store.leases import holder, server_time
from sweeps.store.stage_runs import Store, StoredRun

ORDER = ("failed", "corrupt", "interrupted", "cancelled", "blocked", "running", "queued", "missing", "done")
"""What is shown first."""

TROUBLE = ("failed", "corrupt")
TAIL_LINES = 5


@dataclass(frozen=True)
class Row:
    """One stage run as `status` shows it."""

    signature: str
    stage: str
    cell: str
    status: str
    """`done`, `running`, `queued`, `missing` (nothing was begun), `failed`, `blocked` (an ancestor failed),
    `interrupted` (stopped, or its worker died), `cancelled`, `corrupt`."""
    labels: dict[str, Any]
    parent: str | None
    checkpoint: str | None
    attempts: int = 0
    seconds: float | None = None
    step: int | None = None
    steps: int | None = None
    rate: float | None = None
    """Tokens a second."""
    left: float | None = None
    """Seconds."""
    error: str | None = None
    log: str | None = None
    job: str | None = None
    sweeps: list[str] = field(default_factory=list)
    reference: str | None = None
    """What a control is matched to."""

    @property
    def needs(self) -> list[str]:
        """What must be done before: its parent, and a control's reference."""
        return [signature for signature in (self.parent, self.reference) if signature]

    @property
    def title(self) -> str:
        """Stage and cell, with what an evaluation measures."""
        measured = f"@{self.checkpoint}" if self.stage == "evaluate" else ""
        return f"{self.cell}:{self.stage}{measured}" + (f" {c}" if (c := self.labels.get("control")) else "")

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"stage_run": self.signature, "what": self.title, **asdict(self)}


def rows(store: Store, filters: Sequence[str] = ()) -> list[Row]:
    """A row for every stage run that the store holds or a recorded sweep needs, and that `filters` select.

    What is in trouble comes first. Raises `UserError` for a filter that is none, or that selects nothing.
    """
    known = summaries(store)
    found = select(_looked_after(store, _merge(known, records(store))), filters)
    if filters and not found:
        raise UserError(f"{' '.join(filters)}: no stage run in {store.root} is selected by that")
    return sorted(found, key=lambda row: (ORDER.index(row.status), row.cell, _depth(row), row.checkpoint or ""))


def _depth(row: Row) -> int:
    return STAGES.index(row.stage)


def _merge(known: dict[str, Summary], sweeps: Iterable[SweepRecord]) -> list[Row]:
    """Stage runs of the store and of the recorded sweeps, each once."""
    of: dict[str, list[str]] = {}
    planned: dict[str, dict[str, Any]] = {}
    for sweep in sweeps:
        for signature, entry in sweep.runs.items():
            planned[signature] = entry
            of.setdefault(signature, []).append(sweep.name or sweep.identity)
    merged = []
    for signature, entry in planned.items():
        if signature not in known:
            labels = entry["labels"]
            merged.append(
                Row(
                    signature,
                    entry["stage"],
                    cell_of(labels),
                    "missing",
                    labels,
                    entry["parent"],
                    entry["checkpoint"],
                    steps=entry["steps"],
                    sweeps=of[signature],
                    reference=entry.get("reference"),
                )
            )
    for signature, summary in known.items():
        merged.append(
            Row(
                signature,
                summary.stage,
                cell_of(summary.labels),
                summary.status,
                summary.labels,
                summary.parent,
                summary.checkpoint,
                summary.attempts,
                summary.seconds,
                steps=planned.get(signature, {}).get("steps"),
                error=summary.error if summary.status != "done" else None,
                log=summary.log,
                job=summary.job,
                sweeps=of.get(signature, []),
                reference=planned.get(signature, {}).get("reference"),
            )
        )
    return merged


KEYS = ("model", "objective", "seed", "scale", "sweep", "stage", "status", "checkpoint", "signature")


def select(found: list[Row], filters: Sequence[str]) -> list[Row]:
    """The rows that all filters select: `key=glob,glob`, `CELL`, `CELL:stage` (globs), or a signature's beginning."""
    for text in filters:
        if "=" in text and "/" not in text.split("=")[0]:
            key, _, wanted = text.lstrip("+").partition("=")
            if key not in KEYS:
                raise UserError(f"{text}: {key} is nothing to select by; {nearest(key, KEYS)}")
            if key == "status":
                for word in wanted.split(","):
                    if word not in ORDER:
                        raise UserError(f"status={word}: there is no such status; {nearest(word, ORDER)}")
            found = [row for row in found if _matches(row, key, wanted.split(","))]
        else:
            cell, _, stage = text.partition(":")
            stage, _, checkpoint = stage.partition("@")
            found = [
                row
                for row in found
                if (fnmatch.fnmatchcase(row.cell, cell) or (len(cell) >= 4 and row.signature.startswith(cell)))
                and fnmatch.fnmatchcase(row.stage, stage or "*")
                and fnmatch.fnmatchcase(row.checkpoint or "", checkpoint or "*")
            ]
    return found


def _matches(row: Row, key: str, wanted: list[str]) -> bool:
    values = {
        "sweep": [*row.sweeps, str(row.labels.get("sweep", ""))],
        "stage": [row.stage],
        "status": [row.status],
        "checkpoint": [row.checkpoint or ""],
        "signature": [row.signature],
    }.get(key, [str(row.labels.get(key, ""))])
    return any(fnmatch.fnmatchcase(value, glob) for value in values for glob in wanted)


def _looked_after(store: Store, found: list[Row]) -> list[Row]:
    """The rows with the statuses that leases and Slurm give them, progress for those at work, blocked ones marked."""
    live = [row for row in found if row.status in ("running", "interrupted", "queued")]
    now = server_time(store.root) if live else 0.0
    states = _states(row.job for row in live if row.job)
    looked = {row.signature: _look(store, row, states, now) for row in live}
    found = [looked.get(row.signature, row) for row in found]
    trouble = {row.signature for row in found if row.status in (*TROUBLE, "cancelled", "blocked")}
    by_signature = {row.signature: row for row in found}

    def is_blocked(row: Row) -> bool:
        return any(need in trouble or (need in by_signature and is_blocked(by_signature[need])) for need in row.needs)

    return [Row(**{**vars(row), "status": "blocked"}) if row.status == "missing" and is_blocked(row) else row
            for row in found]  # fmt: skip


def _states(jobs: Iterable[str]) -> dict[str, JobState] | None:
    """What Slurm says; None where it does not answer."""
    try:
        return job_states(jobs)
    except StageFailure:
        return None


def _look(store: Store, row: Row, states: dict[str, JobState] | None, now: float) -> Row:
    """One stage run that should be queued or at work."""
    stored = store.run(row.stage, row.signature)
    held = holder(stored.folder, now)
    change: dict[str, Any] = {}
    if held and held.alive:
        change = {"status": "running", "error": None, **_progress(stored, row)}
    elif row.status == "interrupted":
        pass  # stopped in order; its job is over
    elif row.job and states is not None:
        change = _by_slurm(row, states[row.job])
    elif row.status == "running":
        change = {"status": "interrupted", "error": "its worker died without a word"}
    return Row(**{**vars(row), **change})


def _by_slurm(row: Row, state: JobState) -> dict[str, Any]:
    """What a job without a living worker comes to."""
    if state.waits:
        return {"status": "queued", "error": None}
    if state.runs:
        return {"status": "running", "error": None}  # it is starting, or ending
    if state.blocked:
        return {"status": "blocked", "error": None}
    if state.name == "CANCELLED":
        return {"status": "cancelled", "error": None}
    said = f"{state}; job {row.job}"
    lines = tail(Path(row.log)) if row.log else []
    return {"status": "failed", "error": said + (f"; its log ends: {' | '.join(lines)}" if lines else "")}


def tail(path: Path, count: int = TAIL_LINES) -> list[str]:
    """The last lines of a log that say something."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 16_384))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()][-count:]


def _progress(stored: StoredRun, row: Row) -> dict[str, Any]:
    """How far a stage run at work is, from its ledger."""
    last = stored.last_row()
    return {
        "step": int(last.get("step") or 0),
        "rate": last.get("tokens_per_second"),
        "left": stored.time_left(row.steps) if row.steps else None,
    }
