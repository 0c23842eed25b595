"""The status of each stage run: from the store's records, then from leases if it should be running, then from Slurm."""

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.configuration import STAGES
from pipelines.errors import UserError, nearest
from sweeps.monitor.index import Summary, summaries
from sweeps.monitor.launched_sweeps import SweepRecord, records
from sweeps.monitor.slurm_queue import JobState, SlurmUnreachable, job_states
from sweeps.plan.names import cell_of
from sweeps.store.leases import holder, server_time
from sweeps.store.stage_runs import Store, StoredRun

ORDER = (
    "failed",
    "corrupt",
    "interrupted",
    "cancelled",
    "blocked",
    "running",
    "queued",
    "missing",
    "dismissed",
    "done",
)
"""The order in which statuses are shown."""

TROUBLE = ("failed", "corrupt")
OUT_OF_MEMORY = re.compile(r"slurmstepd.* oom.kill|Exceeded job memory limit", re.IGNORECASE)
"""What Slurm writes into the log of a job that used more memory than its limit."""
TAIL_LINES = 5
TAIL_BYTES = 2**14
"""How much of the end of a log is read to find its last lines."""


@dataclass(frozen=True)
class Row:
    """One stage run as `status` shows it."""

    signature: str
    stage: str
    cell: str
    status: str
    """`done`, `running`, `queued`, `missing` (never started), `failed`, `blocked` (an ancestor failed),
    `interrupted` (stopped, or its worker died), `cancelled`, `corrupt`, `dismissed` (it, or what it needs, is not
    wanted any more)."""
    labels: dict[str, Any]
    parent: str | None
    checkpoint: str | None
    attempts: int = 0
    seconds: float | None = None
    step: int | None = None
    steps: int | None = None
    rate: float | None = None
    """Tokens per second."""
    left: float | None = None
    """Seconds to its last step."""
    error: str | None = None
    log: str | None = None
    job: str | None = None
    note: str | None = None
    """Why a queued one does not start yet, or why its status may be out of date."""
    sweeps: list[str] = field(default_factory=list)
    reference: str | None = None
    """The stage run that a control is matched to."""
    parent_stage: str | None = None
    """The stage of its parent, where that is known."""

    @property
    def needs(self) -> list[str]:
        """Signatures of the stage runs that must be done before: its parent, and the reference of a control."""
        return [signature for signature in (self.parent, self.reference) if signature]

    @property
    def title(self) -> str:
        """Cell and stage, with the stage and checkpoint that an evaluation measures."""
        measured = f"@{self.measured}" if self.stage == "evaluate" else ""
        return f"{self.cell}:{self.stage}{measured}" + (f" {c}" if (c := self.labels.get("control")) else "")

    @property
    def measured(self) -> str:
        """The checkpoint it reads: `midtrain/step-000781`; checkpoints of two stages may have one name."""
        return f"{self.parent_stage}/{self.checkpoint}" if self.parent_stage else self.checkpoint or ""

    def to_json(self) -> dict[str, Any]:
        """The row as values that JSON can hold."""
        return {"stage_run": self.signature, "what": self.title, **asdict(self)}


def rows(store: Store, filters: Sequence[str] = ()) -> list[Row]:
    """A row for every stage run that the store holds or a recorded sweep needs, and that `filters` select.

    They are ordered as in `ORDER`, failures first. Raises `UserError` for an unknown filter, or if nothing is selected.
    """
    selected = select(_updated(store, _merge(summaries(store), records(store))), filters)
    if filters and not selected:
        raise UserError(f"{' '.join(filters)}: no stage run in {store.root} matches")
    return sorted(
        selected, key=lambda row: (ORDER.index(row.status), row.cell, STAGES.index(row.stage), row.checkpoint or "")
    )


def _merge(stored: dict[str, Summary], sweeps: Iterable[SweepRecord]) -> list[Row]:
    """Stage runs of the store and of the recorded sweeps, each once."""
    # What the sweeps need, and which of them needs it.
    sweep_names: dict[str, list[str]] = {}
    planned: dict[str, dict[str, Any]] = {}
    for sweep in sweeps:
        for signature, entry in sweep.runs.items():
            planned[signature] = entry
            sweep_names.setdefault(signature, []).append(sweep.name or sweep.identity)

    missing = [
        Row(
            signature,
            stage=entry["stage"],
            cell=cell_of(entry["labels"]),
            status="missing",
            labels=entry["labels"],
            parent=entry["parent"],
            checkpoint=entry["checkpoint"],
            steps=entry["steps"],
            sweeps=sweep_names[signature],
            reference=entry.get("reference"),
        )
        for signature, entry in planned.items()
        if signature not in stored
    ]
    existing = [
        Row(
            signature,
            stage=summary.stage,
            cell=cell_of(summary.labels),
            status=summary.status,
            labels=summary.labels,
            parent=summary.parent,
            checkpoint=summary.checkpoint,
            attempts=summary.attempts,
            seconds=summary.seconds,
            steps=planned.get(signature, {}).get("steps"),
            error=summary.error if summary.status != "done" else None,
            log=summary.log,
            job=summary.job,
            sweeps=sweep_names.get(signature, []),
            reference=planned.get(signature, {}).get("reference"),
        )
        for signature, summary in (
            (signature, _with_plan(summary, planned.get(signature))) for signature, summary in stored.items()
        )
    ]
    stages = {row.signature: row.stage for row in missing + existing}
    return [replace(row, parent_stage=stages.get(row.parent or "")) for row in missing + existing]


def _with_plan(summary: Summary, planned: Mapping[str, Any] | None) -> Summary:
    """The summary, with what the sweep's record says of a stage run whose own files are broken."""
    if planned is None or summary.status != "corrupt":
        return summary
    names = ("labels", "parent", "checkpoint")
    return replace(summary, **{name: planned[name] for name in names})


KEYS = ("model", "objective", "seed", "scale", "sweep", "stage", "status", "checkpoint", "signature")
"""What `key=value` filters can select by."""


def select(candidates: list[Row], filters: Sequence[str]) -> list[Row]:
    """The rows that all filters select: `key=glob,glob`, `CELL`, `CELL:stage` (globs), or the start of a signature."""
    selected = candidates
    for text in filters:
        # `objective=ce,precision`; a cell's name may contain `=` too, but only after a slash.
        if "=" in text and "/" not in text.split("=")[0]:
            key, _, values = text.lstrip("+").partition("=")
            if key not in KEYS:
                raise UserError(f"{text}: unknown key {key}; {nearest(key, KEYS)}")
            if key == "status":
                for word in values.split(","):
                    if word not in ORDER:
                        raise UserError(f"status={word}: unknown status; {nearest(word, ORDER)}")
            selected = [row for row in selected if _matches(row, key, values.split(","))]
        else:
            # `nano/*/seed1:evaluate@step-000128`, `...:evaluate@grpo/*`, or a signature.
            cell, _, stage = text.partition(":")
            stage, _, checkpoint = stage.partition("@")
            selected = [
                row
                for row in selected
                if (fnmatch.fnmatchcase(row.cell, cell) or (len(cell) >= 4 and row.signature.startswith(cell)))
                and fnmatch.fnmatchcase(row.stage, stage or "*")
                and any(fnmatch.fnmatchcase(name, checkpoint or "*") for name in (row.checkpoint or "", row.measured))
            ]
    return selected


def _matches(row: Row, key: str, globs: list[str]) -> bool:
    """Whether a value of the row for `key` matches one of `globs`."""
    values = {
        "sweep": [*row.sweeps, str(row.labels.get("sweep", ""))],
        "stage": [row.stage],
        "status": [row.status],
        "checkpoint": [row.checkpoint or ""],
        "signature": [row.signature],
    }.get(key, [str(row.labels.get(key, ""))])
    return any(fnmatch.fnmatchcase(value, glob) for value in values for glob in globs)


def _updated(store: Store, merged: list[Row]) -> list[Row]:
    """The rows with the statuses that leases and Slurm give, the progress of running ones, and blocked ones marked."""
    # Stage runs whose recorded status may be out of date.
    live = [row for row in merged if row.status in ("running", "interrupted", "queued")]
    now = server_time(store.root) if live else 0.0
    # What Slurm says about their jobs, or why it does not answer.
    states: dict[str, JobState] = {}
    silence: str | None = None
    try:
        states = job_states(row.job for row in live if row.job)
    except SlurmUnreachable as error:
        silence = str(error)
    checked = {row.signature: _checked(store, row, states=states, silence=silence, now=now) for row in live}
    current = {row.signature: checked.get(row.signature, row) for row in merged}

    # Missing ones are blocked if something that they need, directly or not, cannot be done, or dismissed with it.
    def waits_for(row: Row, *statuses: str) -> bool:
        needs = [current[need] for need in row.needs if need in current]
        return any(need.status in statuses or waits_for(need, *statuses) for need in needs)

    def outlook(row: Row) -> str:
        if waits_for(row, "dismissed"):
            return "dismissed"
        return "blocked" if row.status == "blocked" or waits_for(row, *TROUBLE, "cancelled", "blocked") else "missing"

    return [
        replace(row, status=outlook(row)) if row.status in ("missing", "blocked") else row for row in current.values()
    ]


def _checked(store: Store, row: Row, *, states: dict[str, JobState], silence: str | None, now: float) -> Row:
    """The row of a stage run that is recorded as queued, running or interrupted, with its status now."""
    stored = store.run(row.stage, row.signature)
    lease = holder(stored.folder, now)
    if lease and lease.alive:
        return replace(row, status="running", error=None, **_progress(stored, row))
    if row.job and silence:
        return replace(row, note=f"as recorded, since {silence}")
    if row.status == "interrupted":
        # Its worker recorded the end itself. Slurm may have requeued its job by itself, after a preemption for example,
        # and only Slurm knows whether the job was cancelled.
        state = states[row.job] if row.job else None
        is_newer = state and (state.is_waiting or state.is_running or state.name == "CANCELLED")
        return replace(row, **_status_from_slurm(row, state)) if state and is_newer else row
    if row.job:
        return replace(row, **_status_from_slurm(row, states[row.job]))
    if row.status == "running":
        return replace(row, status="interrupted", error="its worker died without an error message")
    return row


def _status_from_slurm(row: Row, state: JobState) -> dict[str, Any]:
    """Status and error of a stage run whose job has no live worker."""
    if state.is_waiting:
        return {"status": "queued", "error": None, "note": state.waits_for}
    if state.is_running:
        return {"status": "running", "error": None}  # its worker is about to start or has just ended
    if state.is_blocked:
        return {"status": "blocked", "error": None}
    if state.name == "CANCELLED":
        return {"status": "cancelled", "error": None}
    lines = tail(Path(row.log)) if row.log else []
    # A job whose step was killed for its memory has failed, for Slurm; only the log has the reason.
    if state.name == "FAILED" and any(OUT_OF_MEMORY.search(line) for line in lines):
        state = JobState("OUT_OF_MEMORY")
    end_of_log = f"; its log ends: {' | '.join(lines)}" if lines else ""
    return {"status": "failed", "error": f"{state}; job {row.job}{end_of_log}"}


def tail(path: Path, count: int = TAIL_LINES) -> list[str]:
    """The last lines of a log that are not empty; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()][-count:]


def _progress(stored: StoredRun, row: Row) -> dict[str, Any]:
    """Step, speed and time left of a running stage run, from its ledger."""
    newest = stored.last_row()
    return {
        "step": int(newest.get("step") or 0),
        "rate": newest.get("tokens_per_second"),
        "left": stored.time_left(row.steps) if row.steps else None,
    }
