"""TensorBoard, CSV files and MLflow, through Lightning's loggers.

TensorBoard and CSV have no ids: an attempt replaces the files of earlier ones, and the rows of a resumed stage run are
logged again. MLflow keeps one run per stage run, found by a tag, and is sent only the steps that it does not have.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

from pipelines.configuration.tracking import TrackingConfig
from pipelines.tracking.tracker import STEP, cell_name, named, numbers, prefix_of, run_title, step_of, tracked_identity

Spec = Mapping[str, Any]


class _LoggerTracker:
    """A `pipelines.tracking.tracker.Tracker` over a Lightning logger."""

    def __init__(self, spec: Spec, logger: Any) -> None:
        self._spec, self._logger = spec, logger
        self._step = 0

    def log(self, row: dict[str, Any]) -> None:
        """Log the numbers of one ledger row."""
        self._step = step_of(self._spec, row)
        self._logger.log_metrics(numbers(named(self._spec, row)), step=self._step)
        self._logger.save()

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Not shown, unless the tracker has a place for text."""

    def summarize(self, metrics: dict[str, Any]) -> None:
        """These trackers show the last row."""

    def finish(self, failed: bool) -> None:
        """Close the tracker's files."""
        self._logger.finalize("failed" if failed else "success")


def _run_folder(spec: Spec) -> Path:
    """The folder of a tracked run, relative to that of the tracker."""
    stage, signature = tracked_identity(spec)
    return Path(cell_name(spec["labels"])) / f"{stage}-{signature}"


class TensorBoardTracker(_LoggerTracker):
    """Event files in `tensorboard/<cell>/<stage>-<signature>` of the store, with those of its evaluations."""

    def __init__(self, spec: Spec, root: Path, tracking: TrackingConfig) -> None:
        folder = root / "tensorboard" / _run_folder(spec)
        suffix = f".{spec['stage']}-{spec['signature']}"
        for earlier in folder.glob(f"events.out.tfevents.*{suffix}"):
            earlier.unlink()
        logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False, filename_suffix=suffix)
        super().__init__(spec, logger)
        if spec["stage"] != "evaluate":
            logger.log_hyperparams({"signature": spec["signature"], **spec["labels"], "stage": spec["config"]})

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Show sampled responses as a table in Markdown."""
        columns = list(rows[0])
        cells = [[_cell(row.get(column)) for column in columns] for row in rows]
        lines = [" | ".join(columns), " | ".join("---" for _ in columns), *(" | ".join(row) for row in cells)]
        self._logger.experiment.add_text(f"{prefix_of(self._spec)}/{name}", "\n".join(lines), self._step)


def _cell(value: object) -> str:
    """A value in one cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", "<br>")


class CSVTracker(_LoggerTracker):
    """`csv/<cell>/<stage>-<signature>/metrics.csv` of the store; an evaluation has a folder next to that file."""

    def __init__(self, spec: Spec, root: Path, tracking: TrackingConfig) -> None:
        version = f"evaluate-{spec['signature']}" if spec["stage"] == "evaluate" else ""
        folder = root / "csv" / _run_folder(spec)
        (folder / version / "metrics.csv").unlink(missing_ok=True)
        super().__init__(spec, CSVLogger(folder, name="", version=version))


class MLflowTracker(_LoggerTracker):
    """A run of MLflow at MLFLOW_TRACKING_URI, or in the folder `mlflow` of the store."""

    def __init__(self, spec: Spec, root: Path, tracking: TrackingConfig) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (root.resolve() / "mlflow").as_uri()
        stage, signature = tracked_identity(spec)
        arguments: dict[str, Any] = {"experiment_name": tracking.project, "tracking_uri": uri}
        earlier = _earlier_run(MLFlowLogger(**arguments), signature)
        tags = {"signature": signature, "stage": stage, "cell": cell_name(spec["labels"])}
        super().__init__(spec, MLFlowLogger(**arguments, run_id=earlier, run_name=run_title(spec), tags=tags))
        if earlier is None and spec["stage"] != "evaluate":
            self._logger.log_hyperparams({**spec["labels"], "stage": spec["config"]})
        if earlier is not None:
            self._logger.experiment.update_run(earlier, status="RUNNING")
        self._logged: dict[str, set[int]] = {}
        """Name of a row's step -> the steps that MLflow had at the start."""

    def log(self, row: dict[str, Any]) -> None:
        """Log the numbers of one ledger row, unless an earlier attempt has logged it."""
        self._step = step_of(self._spec, row)
        values = {_metric_name(name): value for name, value in numbers(named(self._spec, row)).items()}
        benchmark = f"{row['benchmark']}/seconds" if self._spec["stage"] == "evaluate" else STEP
        if self._step not in self._steps(_metric_name(f"{prefix_of(self._spec)}/{benchmark}")):
            self._logger.log_metrics(values, step=self._step)

    def _steps(self, name: str) -> set[int]:
        if name not in self._logged:
            history = self._logger.experiment.get_metric_history(self._logger.run_id, name)
            self._logged[name] = {metric.step for metric in history}
        return self._logged[name]

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Attach sampled responses as a file."""
        file = f"{prefix_of(self._spec)}/{name}-{self._step:06d}.json"
        self._logger.experiment.log_text(self._logger.run_id, json.dumps(rows, indent=1), file)


def _earlier_run(logger: MLFlowLogger, signature: str) -> str | None:
    """The id of the MLflow run of a stage run's earlier attempts."""
    client = logger._mlflow_client  # not `experiment`, which creates a run
    experiment = client.get_experiment_by_name(logger._experiment_name)
    if experiment is None:
        return None
    runs = client.search_runs([experiment.experiment_id], f"tags.signature = '{signature}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _metric_name(name: str) -> str:
    """A name that MLflow accepts: `avg@16` becomes `avg_16`."""
    return re.sub(r"[^a-zA-Z0-9_/. -]", "_", name)
