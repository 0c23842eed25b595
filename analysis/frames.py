"""What a sweep planned and what its store holds, as tidy pandas frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sweeps.plan import Plan, StageRun
from sweeps.store import Store

SETTING = ["model", "objective", "beta", "lam_head", "lam_tail", "top_k", "seed"]
"""Columns that say which cell a row belongs to; `top_k` is empty where the head plays no part."""

MEASUREMENTS = [
    *SETTING,
    "stage",
    "step",
    "tokens",
    "group",
    "benchmark",
    "metric",
    "value",
    "stderr",
    "n",
    "stage_run",
]
"""Columns of `measurements.csv`: one row a measurement; `stage_run` is the evaluation it came from."""


@dataclass(frozen=True)
class Study:
    """A plan, read against a store."""

    measurements: pd.DataFrame
    """Columns `MEASUREMENTS`; RL's step 0 is the last mid-trained checkpoint, listed again under stage `grpo`."""
    curves: pd.DataFrame
    """Ledger rows of the training stages, with `SETTING`, `stage` and `stage_run`."""
    runs: pd.DataFrame
    """One row a planned stage run: signature, stage, cell, checkpoint, status, seconds, seed."""
    specs: Mapping[str, dict[str, Any]]
    """Signature -> spec of every planned stage run."""


def read_study(plan: Plan, store: Store | None) -> Study:
    """Everything that `plan` names and `store` holds; with no store all stage runs are missing.

    Raises `UserError` naming the file where one of the store's files is corrupt.
    """
    measurements: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for run in plan.runs.values():
        setting = _setting(plan, run)
        stored = store.run(run.stage, run.signature) if store else None
        status = stored.status if stored else "missing"
        result = stored.result if stored else None
        runs.append(
            {
                "stage_run": run.signature,
                "stage": run.stage,
                **setting,
                "measures": run.parent[0] if run.parent and run.stage == "evaluate" else None,
                "checkpoint": run.checkpoint,
                "status": status,
                "seconds": result["seconds"] if result else None,
                "parameters": (result or {}).get("metrics", {}).get("parameters"),
            }
        )
        if stored is None or result is None:
            continue
        if run.stage == "evaluate":
            for place in _places(plan, run):
                rows = result["measurements"]
                measurements += [{**setting, **place, **row, "stage_run": run.signature} for row in rows]
        else:
            curves += [{**setting, "stage": run.stage, "stage_run": run.signature, **row} for row in stored.ledger()]
    frame = pd.DataFrame(measurements, columns=MEASUREMENTS).astype({"step": "Int64", "tokens": "Int64"})
    return Study(
        frame,
        pd.DataFrame(curves) if curves else pd.DataFrame(columns=[*SETTING, "stage", "stage_run", "step"]),
        pd.DataFrame(runs),
        {run.signature: run.spec for run in plan.runs.values()},
    )


def _setting(plan: Plan, run: StageRun) -> dict[str, Any]:
    """The `SETTING` columns: the objective is that of the pre-training a stage run descends from."""
    first = run
    while first.parent:
        first = plan.runs[first.parent[1]]
    knobs = first.config["objective"]
    return {
        "model": first.labels["model"],
        "objective": first.labels["objective"],
        "beta": knobs["beta"],
        "lam_head": knobs["lam_head"],
        "lam_tail": knobs["lam_tail"],
        "top_k": knobs["top_k"],
        "seed": run.config["seed"],
    }


def _places(plan: Plan, run: StageRun) -> list[dict[str, Any]]:
    """Where an evaluation stands in the tables: its stage and step, and for the mid-trained model also RL's step 0."""
    assert run.parent is not None
    assert run.checkpoint is not None
    stage, signature = run.parent
    places = [{"stage": stage, "step": int(run.checkpoint.split("-")[1]), "tokens": run.labels.get("tokens")}]
    if any(child.stage == "grpo" and child.checkpoint == run.checkpoint for child in plan.children(signature)):
        places.append({"stage": "grpo", "step": 0, "tokens": None})
    return places
