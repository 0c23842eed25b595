"""Which sweeps were launched into a store: `sweeps/ID.json`, one a sweep, written when it is launched.

A record keeps the override lists of the cells, so that the sweep can be planned again, and the graph without its
configurations, so that `status` knows what is still to come without planning anything.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.files import read_json, write_json
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import FORMAT, Store


@dataclass(frozen=True)
class SweepRecord:
    """One launched sweep."""

    identity: str
    name: str
    """The named sweep, or empty for one typed by hand."""
    jobs: list[list[str]]
    """Override lists of its cells."""
    launcher: str
    options: dict[str, Any]
    """The launcher's own."""
    launched: float
    cells: dict[str, list[str]]
    runs: dict[str, dict[str, Any]]
    """Signature -> stage, parent, checkpoint, steps, labels."""


def record(
    store: Store, plan: Plan, jobs: Sequence[Sequence[str]], name: str, launcher: str, options: dict[str, Any]
) -> SweepRecord:
    """Write down that a sweep was launched; the same sweep again replaces its record."""
    listed = [list(job) for job in jobs]
    identity = hashlib.sha256(json.dumps(sorted(listed)).encode()).hexdigest()[:12]
    content = {
        "format": FORMAT,
        "name": name,
        "jobs": listed,
        "launcher": launcher,
        "options": options,
        "launched": time.time(),
        "cells": plan.cells,
        "runs": {signature: _graph_entry(run) for signature, run in plan.runs.items()},
    }
    folder = store.root / "sweeps"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{identity}.json", content)
    return _sweep(identity, content)


def _graph_entry(run: StageRun) -> dict[str, Any]:
    return {
        "stage": run.stage,
        "parent": run.parent and run.parent[1],
        "checkpoint": run.checkpoint,
        "reference": run.reference,
        "steps": run.steps,
        "labels": run.labels,
    }


KEYS = ("name", "jobs", "launcher", "options", "launched", "cells", "runs")


def _sweep(identity: str, content: dict[str, Any]) -> SweepRecord:
    return SweepRecord(identity, **{key: content[key] for key in KEYS})


def records(store: Store) -> list[SweepRecord]:
    """Every recorded sweep, the newest last."""
    way_out = "delete this file alone; the command that launched the sweep writes it again"
    files = (store.root / "sweeps").glob("*.json")
    found = [_sweep(path.stem, read_json(path, KEYS, way_out)) for path in files]
    return sorted(found, key=lambda sweep: sweep.launched)


def needed(sweeps: Iterable[SweepRecord]) -> set[str]:
    """Signatures of all stage runs that some sweeps need."""
    return {signature for sweep in sweeps for signature in sweep.runs}
