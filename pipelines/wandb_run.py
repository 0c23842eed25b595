"""The Weights & Biases run that mirrors a ledger.

W&B keeps up to 32 KiB back when a process is killed, so the ledger file stays the source of truth.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.configuration.tracking import TrackingConfig

if TYPE_CHECKING:
    import wandb  # its import takes two seconds, which a run without tracking does not pay

logger = logging.getLogger("pipelines")

AXES = {"pretrain": "tokens", "midtrain": "tokens", "grpo": "step", "evaluate": "step"}
"""The x-axis of a stage's metrics."""

SERVER_SECONDS = 15
"""How long a W&B server may take to answer at the start and the end of a stage run; its metrics stay on disk."""


class WandbRun:
    """One W&B run, as a `pipelines.ledger.Tracker`."""

    def __init__(self, run: "wandb.Run") -> None:
        self._run = run

    def log(self, row: dict[str, Any]) -> None:
        """Log one ledger row."""
        self._run.log(row)

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Log sampled responses as a table; its columns are the keys of the first row."""
        import wandb

        columns: list[str | int] = list(rows[0])
        self._run.log({name: wandb.Table(columns=columns, data=[list(row.values()) for row in rows])})

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Set the run's summary."""
        self._run.summary.update(metrics)

    def finish(self, failed: bool) -> None:
        """Finish the run, as failed or as successful."""
        self._run.finish(exit_code=int(failed))


def start_wandb_run(spec: Mapping[str, Any], root: Path, tracking: TrackingConfig) -> WandbRun | None:
    """Start the W&B run of a stage run, with its files below `root`; None if tracking is off.

    Logs offline where the server does not answer: a missing server must not stop training.
    """
    if tracking.mode == "off":
        return None
    import wandb

    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    (root / "wandb").mkdir(exist_ok=True)
    arguments = _arguments(spec, root, tracking)
    settings: dict[str, Any] = {"console": "off", "silent": True, "x_disable_stats": True, "x_disable_meta": False}
    # Listing the installed packages takes a fifth of a nano evaluation, and the training that it measures did it.
    settings["x_save_requirements"] = spec["stage"] != "evaluate"
    try:
        timeouts: dict[str, Any] = {"init_timeout": SERVER_SECONDS, "finish_timeout": SERVER_SECONDS}
        mode: Literal["online", "offline"] = "online" if tracking.mode == "online" else "offline"
        run = wandb.init(**arguments, mode=mode, settings=wandb.Settings(**settings, **timeouts))
    except wandb.Error as error:
        logger.warning("W&B: %s; this run is kept offline", " ".join(str(error).split()))
        run = wandb.init(**arguments, mode="offline", settings=wandb.Settings(**settings))
    axis = AXES[spec["stage"]]
    run.define_metric(axis)
    run.define_metric("*", step_metric=axis)
    return WandbRun(run)


def _arguments(spec: Mapping[str, Any], root: Path, tracking: TrackingConfig) -> dict[str, Any]:
    """The arguments of `wandb.init` that name and describe the run."""
    labels, stage = spec["labels"], spec["stage"]
    cell = f"{labels['model']}/{labels['objective']}/seed{labels['seed']}"
    measured = [spec["parent"]["stage"], spec["checkpoint"], labels.get("control")] if stage == "evaluate" else []
    return {
        "project": tracking.project,
        "entity": tracking.entity,
        "dir": root,
        "name": " ".join(filter(None, [stage, cell, *measured])),
        "group": f"{labels['sweep']}/{cell}" if labels["sweep"] else cell,
        "job_type": stage,
        "tags": [tag for tag in (labels["objective"], labels["model"], labels["scale"], labels["sweep"]) if tag],
        "config": {
            "stage_run": spec["signature"],
            "parent": spec["parent"],
            "checkpoint": spec["checkpoint"],
            **labels,
            "stage": spec["config"],  # nested: its `model` and `objective` are not the names in the labels
        },
    }
