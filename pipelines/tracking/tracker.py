"""What a tracker of a stage run is, and the names of metrics that all trackers share."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

from pipelines.configuration import TOKEN_STAGES

STEP = "step"
"""Ledger column that orders the rows of a stage run."""


class Tracker(Protocol):
    """A service that mirrors the ledger of one stage run. Every method may raise and may take any time."""

    def log(self, row: dict[str, Any]) -> None:
        """Log one ledger row. After a resumption the rows so far are logged again, first to last."""

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Show sampled responses as a table; its columns are the keys of the first row."""

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Set the numbers that summarize the stage run."""

    def finish(self, failed: bool) -> None:
        """Finish the run, as failed or as successful."""


def tracked_identity(spec: Mapping[str, Any]) -> tuple[str, str]:
    """Stage and signature of the stage run whose tracked run shows this one.

    An evaluation is shown on the run of the stage run that it measures, so that a cell has one run per training stage.
    """
    if spec["stage"] == "evaluate":
        return spec["parent"]["stage"], spec["parent"]["signature"]
    return spec["stage"], spec["signature"]


def cell_name(labels: Mapping[str, Any]) -> str:
    """The cell of a stage run, such as `nano/precision/seed1`."""
    return f"{labels['model']}/{labels['objective']}/seed{labels['seed']}"


def run_title(spec: Mapping[str, Any]) -> str:
    """The name of a tracked run: its stage and cell, and for RL from a tempered model what it is tempered to."""
    tempered = str(spec["labels"].get("control", ""))
    name = f"{tracked_identity(spec)[0]} {cell_name(spec['labels'])}"
    return f"{name} {tempered}" if tempered.startswith("tempered:") else name


def prefix_of(spec: Mapping[str, Any]) -> str:
    """What the names of a stage run's metrics begin with: the stage, and for a control its label."""
    # RL from a tempered model has a tracked run of its own, in which the names are the usual ones.
    control = spec["config"].get("variant", {}).get("name") and spec["labels"].get("control")
    return f"{spec['stage']}/{control}" if control and spec["stage"] == "evaluate" else spec["stage"]


def axis_of(stage: str) -> str:
    """Name of the metric that is the x-axis of a stage's metrics."""
    return f"{stage}/{'tokens' if stage in TOKEN_STAGES else STEP}"


def named(spec: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a ledger row under the names that trackers show, such as `grpo/entropy`.

    An evaluation's row becomes `evaluate/<benchmark>/<column>`; the rows of all its benchmarks have one step, that of
    the measured checkpoint, so that a tracker draws each measurement over the course of training.
    """
    prefix = prefix_of(spec)
    if spec["stage"] != "evaluate":
        return {f"{prefix}/{key}": value for key, value in row.items()}
    benchmark = row["benchmark"]
    values = {key if "/" in key else f"{benchmark}/{key}": value for key, value in row.items() if key != STEP}
    return {axis_of("evaluate"): step_of(spec, row)} | {f"{prefix}/{key}": value for key, value in values.items()}


def step_of(spec: Mapping[str, Any], row: Mapping[str, Any]) -> int:
    """The step of a ledger row; for an evaluation, that of the measured checkpoint (`step-000020`)."""
    return int(spec["checkpoint"].rsplit("-", 1)[-1]) if spec["stage"] == "evaluate" else int(row[STEP])


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the values, which are all that most trackers can draw."""
    return {
        name: float(value) for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)
    }
