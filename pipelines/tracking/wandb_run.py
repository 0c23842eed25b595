"""The Weights & Biases run that mirrors a ledger; its id is the signature, so that all attempts continue one run.

W&B keeps up to 32 KiB back when a process is killed, so the ledger file stays the source of truth. A resumed stage run
logs its earlier rows again. Online, W&B says how far the run is, and rows up to there are skipped; offline, the new
files hold the whole run and replace those of earlier attempts.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import wandb
from filelock import FileLock

from pipelines.configuration.tracking import NAME_LENGTH, TAG_LENGTH, TrackingConfig
from pipelines.files import write_sealed
from pipelines.tracking import unsignalled
from pipelines.tracking.tracker import axis_of, cell_name, named, prefix_of, run_title, step_of, tracked_identity

logger = logging.getLogger("pipelines")

Spec = Mapping[str, Any]

TRACKING = "tracking.json"
"""File in the folder of a W&B run with the tracking configuration of its cell."""

SERVER_SECONDS = 15
"""How long a W&B server may take to answer at the start and the end of a stage run; its metrics stay on disk."""

SURROUNDING = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SERVICE", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")
"""Variables that describe a run around this process, such as that of a W&B agent, whose id no stage run may take."""


_services: list["subprocess.Popen[bytes]"] = []
"""W&B's services that this process started."""


class WandbRun:
    """One W&B run, as a `pipelines.tracking.tracker.Tracker`."""

    def __init__(self, run: "wandb.Run", spec: Spec) -> None:
        self._run, self._spec = run, spec
        self._first_step = run.step
        """Rows of earlier steps have arrived already."""
        self._step = 0

    def log(self, row: dict[str, Any]) -> None:
        """Log one ledger row."""
        self._step = step_of(self._spec, row)
        self._log(named(self._spec, row))

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Log sampled responses as a table; its columns are the keys of the first row."""
        self._log({f"{prefix_of(self._spec)}/{name}": _table(rows)})

    def _log(self, values: dict[str, Any], *, commit: bool | None = None) -> None:
        if self._step >= self._first_step:
            self._run.log(values, step=self._step, commit=commit)

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Set the run's summary."""
        # The last row is open until now, in case a table joins it, and would replace the summary.
        self._log({}, commit=True)
        self._run.summary.update({f"{prefix_of(self._spec)}/{name}": value for name, value in metrics.items()})

    def finish(self, failed: bool) -> None:
        """Finish the run, as failed or as successful."""
        self._run.finish(exit_code=int(failed))


class EvaluationOnRun:
    """An evaluation, as one row of the W&B run of the stage run that it measures; a `Tracker`.

    It is sent when the evaluation is finished, because a W&B run has one writer at a time. Only online: files that were
    written offline would replace the summary of the run; `sweeps.monitor.wandb_sync` sends the evaluations of those.
    """

    def __init__(self, spec: Spec, root: Path, tracking: TrackingConfig) -> None:
        self._spec, self._root, self._tracking = spec, root, tracking
        self._values: dict[str, Any] = {}

    def log(self, row: dict[str, Any]) -> None:
        """Keep one benchmark's ledger row."""
        self._values |= named(self._spec, row)

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Keep sampled responses."""
        self._values[f"{prefix_of(self._spec)}/{name}"] = _table(rows)

    def summarize(self, metrics: dict[str, Any]) -> None:
        """W&B's summary is the last row."""

    def finish(self, failed: bool) -> None:
        """Send the row, unless the evaluation failed."""
        if not failed:
            send_evaluations([(self._spec, self._values)], self._root, self._tracking)


def send_evaluations(evaluations: Sequence[tuple[Spec, dict[str, Any]]], root: Path, tracking: TrackingConfig) -> None:
    """Add evaluations of one stage run to its W&B run, each with its values; those that it has are skipped."""
    spec = evaluations[0][0]
    lock = _files(root) / "wandb" / f"{tracked_identity(spec)[1]}.lock"
    with FileLock(lock, timeout=2 * SERVER_SECONDS):
        run = _init(spec, root, tracking, resume="allow")
        for evaluation, values in evaluations:
            sent = f"{prefix_of(evaluation)}/{evaluation['checkpoint']}"
            if run.summary.get(sent) is None:
                tokens = evaluation["labels"].get("tokens")
                run.log(values | ({"evaluate/tokens": tokens} if tokens is not None else {}))
                run.summary[sent] = evaluation["signature"]
        run.finish()


def start_wandb_run(spec: Spec, root: Path, tracking: TrackingConfig) -> WandbRun:
    """Start or resume the W&B run of a stage run, with its files below `root` or WANDB_DIR.

    Logs offline where the server does not answer: a missing server must not stop training.
    """
    try:
        run = _init(spec, root, tracking, resume="allow" if tracking.mode == "online" else None)
    except wandb.Error as error:
        logger.warning("W&B: %s; this run is kept offline", " ".join(str(error).split()))
        run = _init(spec, root, replace(tracking, mode="offline"), resume=None)
    folder = Path(run.dir).parent
    write_sealed(folder / TRACKING, asdict(tracking))
    if run.offline:
        _remove_earlier(run, folder)
    return WandbRun(run, spec)


def _remove_earlier(run: "wandb.Run", folder: Path) -> None:
    """Remove the offline files of earlier attempts: the rows that they hold are logged to this run again."""
    for earlier in folder.parent.glob("offline-run-*-*"):
        if run_id(earlier) == run.id and earlier.name != folder.name:
            shutil.rmtree(earlier, ignore_errors=True)


def run_id(folder: Path) -> str:
    """The id of the run in a folder of W&B: `offline-run-TIME-ID`, or `offline-run-TIME-ID-1` in the same second."""
    return folder.name.removeprefix("offline-").split("-")[2]


def _files(root: Path) -> Path:
    """The folder in which W&B's folder `wandb` is; it is created."""
    folder = Path(os.environ.get("WANDB_DIR") or root).resolve()
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    return folder


def _init(spec: Spec, root: Path, tracking: TrackingConfig, *, resume: Any) -> "wandb.Run":
    """Start the W&B run that shows this stage run."""
    for name in SURROUNDING:
        os.environ.pop(name, None)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    settings: dict[str, Any] = {"finish_timeout": SERVER_SECONDS, **_settings(spec, tracking)}
    if tracking.mode == "online":
        settings["init_timeout"] = SERVER_SECONDS
    mode: Any = tracking.mode
    arguments = _arguments(spec, tracking) | {"dir": _files(root), "mode": mode, "resume": resume}
    # W&B stages tables in the home folder, which some machines do not let a job write to.
    if not os.access(os.path.expanduser("~"), os.W_OK):
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            os.environ.setdefault(name, str(_files(root) / "wandb" / "home"))
    _protect_service()
    run = wandb.init(**arguments, settings=wandb.Settings(**settings))
    # W&B keeps the axes of the last writer, so an evaluation repeats that of the stage that it measures.
    for stage in {spec["stage"], tracked_identity(spec)[0]}:
        run.define_metric(axis_of(stage))
        run.define_metric(f"{stage}/*", step_metric=axis_of(stage))
    return run


def _protect_service() -> None:
    """Have W&B start its service, if it does not run yet, so that it ignores the signals which stop a stage run."""
    from wandb.sdk.lib.service import service_process

    def start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        service = subprocess.Popen([sys.executable, "-I", "-S", unsignalled.__file__, *command], **options)
        _services.append(service)
        return service

    # W&B has no setting for this. Only that module's view of `subprocess` is changed.
    names = {name: getattr(subprocess, name) for name in dir(subprocess) if name.isupper()}
    service_process.subprocess = SimpleNamespace(**names, Popen=start)  # type: ignore[assignment]


def end_service() -> None:
    """Kill W&B's service, so that nothing in this process waits for it any more."""
    for service in _services:
        service.kill()


def _settings(spec: Spec, tracking: TrackingConfig) -> dict[str, Any]:
    """The client's settings, except those that the user's WANDB_* variables make."""
    settings: dict[str, Any] = {
        "console": "wrap" if tracking.console else "off",
        "silent": True,
        "x_disable_stats": not tracking.system_metrics,
        "x_disable_meta": False,
        # Listing the installed packages takes a fifth of a nano evaluation, and the training that it measures did it.
        "x_save_requirements": spec["stage"] != "evaluate",
    }
    return {name: value for name, value in settings.items() if f"WANDB_{name.upper()}" not in os.environ}


def _arguments(spec: Spec, tracking: TrackingConfig) -> dict[str, Any]:
    """The arguments of `wandb.init` that name and describe the run."""
    labels, (stage, signature) = spec["labels"], tracked_identity(spec)
    cell = cell_name(labels)
    group = f"{labels['sweep']}/{cell}" if labels["sweep"] else cell
    tags = [labels["objective"], labels["model"], labels["scale"], labels["sweep"]]
    tags += os.environ.get("WANDB_TAGS", "").split(",")
    config = {"stage_run": signature, **labels, "parent": spec["parent"], "checkpoint": spec["checkpoint"]}
    # Nested, because its `model` and `objective` are not the names in the labels.
    config |= {"stage": spec["config"]}
    return {
        "project": tracking.project,
        "entity": tracking.entity,
        "id": signature,
        "name": run_title(spec)[:NAME_LENGTH],
        "group": group[:NAME_LENGTH],
        "job_type": stage,
        "tags": list(dict.fromkeys(tag[:TAG_LENGTH] for tag in tags if tag)),
        "config": {"stage_run": signature} if spec["stage"] == "evaluate" else config,
    }


def _table(rows: list[dict[str, Any]]) -> "wandb.Table":
    columns: list[str | int] = list(rows[0])
    return wandb.Table(columns=columns, data=[list(row.values()) for row in rows])
