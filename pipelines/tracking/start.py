"""Starts the trackers that a cell's configuration names."""

import pkgutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.configuration.tracking import OTHER_TRACKERS, TrackingConfig
from pipelines.tracking.delivery import Delivery
from pipelines.tracking.tracker import Tracker


def start_trackers(spec: Mapping[str, Any], root: Path, tracking: TrackingConfig) -> list[Tracker]:
    """Start the trackers of a stage run, each in its own thread, with their files below the store at `root`."""
    starts: dict[str, Callable[[], Tracker]] = {}
    # Each library is imported in the thread that uses it.
    # Offline, an evaluation has no W&B run; `shaping-sweeps sync` adds it to that of the stage run that it measures.
    if tracking.mode == "online" or (tracking.mode == "offline" and spec["stage"] != "evaluate"):
        starts["W&B"] = partial(_wandb, spec, root, tracking)
    if tracking.tensorboard:
        starts["TensorBoard"] = partial(_lightning, spec, root, tracking, name="TensorBoardTracker")
    if tracking.csv:
        starts["CSV"] = partial(_lightning, spec, root, tracking, name="CSVTracker")
    if tracking.mlflow:
        starts["MLflow"] = partial(_lightning, spec, root, tracking, name="MLflowTracker")
    for name in tracking.others:
        starts[name] = partial(_other, spec, root, tracking, name=name)
    return [Delivery(name, start, abandon=_ABANDON.get(name)) for name, start in starts.items()]


def _end_wandb() -> None:
    from pipelines.tracking.wandb_run import end_service

    end_service()


_ABANDON = {"W&B": _end_wandb}


def _wandb(spec: Mapping[str, Any], root: Path, tracking: TrackingConfig) -> Tracker:
    from pipelines.tracking.wandb_run import EvaluationOnRun, start_wandb_run

    return (EvaluationOnRun if spec["stage"] == "evaluate" else start_wandb_run)(spec, root, tracking)


def _other(spec: Mapping[str, Any], root: Path, tracking: TrackingConfig, *, name: str) -> Tracker:
    tracker: Tracker = pkgutil.resolve_name(OTHER_TRACKERS[name])(spec, root, tracking)
    return tracker


def _lightning(spec: Mapping[str, Any], root: Path, tracking: TrackingConfig, *, name: str) -> Tracker:
    from pipelines.tracking import lightning_loggers

    tracker: Tracker = getattr(lightning_loggers, name)(spec, root, tracking)
    return tracker
