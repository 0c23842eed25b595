"""The ledger: every metric of a stage run as one JSON line, flushed, and mirrored to Weights & Biases.

The file is the source of truth; W&B keeps up to 32 KiB back when a process is killed, a flushed line is kept.
"""

import json
import logging
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pipelines.configuration.tracking import TrackingConfig
from pipelines.errors import StageFailure

if TYPE_CHECKING:
    import wandb  # two seconds that a run without tracking does not pay

AXES = {"pretrain": "tokens", "midtrain": "tokens", "grpo": "step", "evaluate": "step"}
"""What a stage's metrics are drawn against."""

SERVER_SECONDS = 15
"""How long a W&B server may take to answer at the start and the end of a stage run; its metrics stay on disk."""


class Ledger:
    """Writes `ledger.jsonl` in a stage run's folder and one W&B run unless tracking is off.

    Where a trainer state is there to go on from, the rows of the steps before it are kept: the first new row says
    which those are.
    """

    def __init__(self, spec: dict[str, Any], folder: Path, root: Path, tracking: TrackingConfig) -> None:
        self._path = path = folder / "ledger.jsonl"
        self._before = path.read_text().split("\n")[:-1] if (folder / "resume").exists() and path.exists() else []
        beside = folder / ".ledger.jsonl"  # a file of its own: an attempt that was given up may still hold the old one
        self._file = beside.open("w")
        self._file.writelines(line + "\n" for line in self._before)
        self._file.flush()
        beside.rename(path)
        self.newest: dict[str, Any] = {}
        """The newest row."""
        self._run = None if tracking.mode == "off" else _wandb_run(spec, root, tracking)

    def log(self, row: dict[str, Any]) -> None:
        """Append one row; its `time` (Unix seconds) is added. NaN and infinities become null."""
        if self._before:
            self._rewind(int(row["step"]))
        row = row | {"time": time.time()}
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.newest = plain
        self._file.write(json.dumps(plain) + "\n")
        self._file.flush()
        if self._run:
            self._run.log(row)

    def _rewind(self, step: int) -> None:
        """Drop the rows of `step` and after, which are about to be written again."""
        try:
            kept = [line for line in self._before if json.loads(line)["step"] < step]
        except (ValueError, KeyError, TypeError) as error:
            raise StageFailure(
                f"{self._path}: a line of it is no row ({error}); delete the folder resume beside it, and the stage "
                "run begins anew"
            ) from error
        self._file.truncate(0)
        self._file.seek(0)
        self._file.writelines(line + "\n" for line in kept)
        self._before = []

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Show sampled responses as a W&B table; keys of the first row are its columns."""
        if self._run and rows:
            import wandb

            columns: list[str | int] = list(rows[0])
            table = wandb.Table(columns=columns, data=[list(row.values()) for row in rows])
            self._run.log({name: table})

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Set the W&B run's summary."""
        if self._run:
            self._run.summary.update(metrics)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._run:
            self._run.finish(exit_code=0 if kind is None else 1)


def _wandb_run(spec: dict[str, Any], root: Path, tracking: TrackingConfig) -> "wandb.Run":
    import wandb

    labels, stage = spec["labels"], spec["stage"]
    cell = f"{labels['model']}/{labels['objective']}/seed{labels['seed']}"
    measured = [spec["parent"]["stage"], spec["checkpoint"], labels.get("control")] if stage == "evaluate" else []
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    (root / "wandb").mkdir(exist_ok=True)
    arguments: dict[str, Any] = {
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
            "stage": spec["config"],  # apart: its `model` and `objective` are not the names that the labels hold
        },
    }
    settings: dict[str, Any] = {"console": "off", "silent": True, "x_disable_stats": True, "x_disable_meta": False}
    # Listing the installed packages takes a fifth of a nano evaluation, and the training that it measures did it.
    settings["x_save_requirements"] = stage != "evaluate"
    try:
        waits: dict[str, Any] = {"init_timeout": SERVER_SECONDS, "finish_timeout": SERVER_SECONDS}
        mode: Literal["online", "offline"] = "online" if tracking.mode == "online" else "offline"
        run = wandb.init(**arguments, mode=mode, settings=wandb.Settings(**settings, **waits))
    except wandb.Error as error:  # no server is a reason to log offline, not to stop training
        logging.getLogger(__name__).warning("W&B: %s; this run is kept offline", " ".join(str(error).split()))
        run = wandb.init(**arguments, mode="offline", settings=wandb.Settings(**settings))
    axis = AXES[stage]
    run.define_metric(axis)
    run.define_metric("*", step_metric=axis)
    return run
