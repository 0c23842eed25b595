"""Records of the sweeps that were launched into a store: one `sweeps/ID.json` per sweep, written at the launch.

A record holds the override lists of the cells, so that the sweep can be planned again, and the graph without
configurations, so that `status` knows which stage runs are missing without planning anything.
"""

import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import UserError
from pipelines.files import read_sealed, sha256_of, unreadable, write_sealed
from sweeps.compose.config_files import CONFIG_DIR_VARIABLE
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import FORMAT, Store

logger = logging.getLogger("sweeps")

KEYS = ("name", "jobs", "launcher", "options", "launched", "cells", "runs")
"""What every record has."""


@dataclass(frozen=True)
class SweepRecord:
    """One launched sweep."""

    identity: str
    name: str
    """Name of the sweep in `conf/sweep`; empty if the overrides were typed."""
    jobs: list[list[str]]
    """One list of overrides per cell."""
    launcher: str
    options: dict[str, Any]
    """Options of the launcher."""
    launched: float
    cells: dict[str, list[str]]
    runs: dict[str, dict[str, Any]]
    """Signature -> stage, parent, checkpoint, steps, labels."""
    folder: str
    """The working directory of the launch, to which paths in the overrides are relative."""
    config_dir: str = ""
    """The folder of `--config-dir`, where options of the overrides may be; empty: none."""


def record(
    store: Store,
    plan: Plan,
    jobs: Sequence[Sequence[str]],
    *,
    name: str,
    launcher: str,
    options: dict[str, Any],
) -> SweepRecord:
    """Record that a sweep was launched; launching the same sweep again replaces its record."""
    overrides = [list(job) for job in jobs]
    identity = _identity(overrides)
    content = {
        "format": FORMAT,
        "name": name,
        "jobs": overrides,
        "launcher": launcher,
        "options": options,
        "launched": time.time(),
        "cells": plan.cells,
        "runs": {signature: _graph_entry(run) for signature, run in plan.runs.items()},
        "folder": os.getcwd(),
        "config_dir": os.environ.get(CONFIG_DIR_VARIABLE, ""),
    }
    folder = store.root / "sweeps"
    folder.mkdir(exist_ok=True)
    write_sealed(folder / f"{identity}.json", content)
    return _sweep_record(identity, content)


def _identity(jobs: Sequence[Sequence[str]]) -> str:
    """What the record of a sweep is called: a hash of its cells' overrides."""
    return sha256_of(sorted(map(list, jobs)))[:12]


def _graph_entry(run: StageRun) -> dict[str, Any]:
    """A stage run without its configuration."""
    return {
        "stage": run.stage,
        "parent": run.parent and run.parent[1],
        "checkpoint": run.checkpoint,
        "reference": run.reference,
        "steps": run.steps,
        "labels": run.labels,
    }


def _sweep_record(identity: str, content: dict[str, Any]) -> SweepRecord:
    # Older records have no folder; their paths are then relative to the working directory of the command.
    later = {key: content.get(key, "") for key in ("folder", "config_dir")}
    return SweepRecord(identity, **{key: content[key] for key in KEYS}, **later)


def records(store: Store, *, strict: bool = False) -> list[SweepRecord]:
    """Every recorded sweep, the newest last.

    A broken record is named in a warning and left out; with `strict` it raises `UserError`.
    """
    fix = "delete only this file; the command that launched the sweep writes it again"
    folder = store.root / "sweeps"
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".json") and not name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error
    sweeps = []
    for name in names:
        try:
            content = read_sealed(folder / name, KEYS, fix)
            identity = _identity(content["jobs"])
            if name != f"{identity}.json":
                raise UserError(f"{folder / name}: it is the record of the sweep {identity}; {fix}")
            sweeps.append(_sweep_record(identity, content))
        except UserError as error:
            if strict:
                raise
            logger.warning("%s", error)
    return sorted(sweeps, key=lambda sweep: sweep.launched)


def needed(sweeps: Iterable[SweepRecord]) -> set[str]:
    """Signatures of all stage runs that `sweeps` need."""
    return {signature for sweep in sweeps for signature in sweep.runs}
