"""The ledger: every metric of a stage run as one JSON line, flushed, logged, and mirrored to a tracker.

The file is the source of truth: a flushed line survives a killed process.
"""

import json
import logging
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pipelines.errors import StageFailure
from pipelines.files import replacing

logger = logging.getLogger("pipelines")

LOGGED_VALUES = 7
"""Values of a row that its log line shows: the first ones, since a row starts with its main numbers."""


class Tracker(Protocol):
    """A service that mirrors the ledger, such as `pipelines.wandb_run.WandbRun`."""

    def log(self, row: dict[str, Any]) -> None:
        """Log one ledger row."""

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Show sampled responses as a table; its columns are the keys of the first row."""

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Set the numbers that summarize the stage run."""

    def finish(self, failed: bool) -> None:
        """Finish the run, as failed or as successful."""


class Ledger:
    """Writes `ledger.jsonl` in a stage run's folder and mirrors it to a tracker if there is one.

    If the folder has a trainer state to resume from, the rows of earlier steps are kept: the step of the first new row
    decides which those are.
    """

    def __init__(self, folder: Path, tracker: Tracker | None = None) -> None:
        self._path = path = folder / "ledger.jsonl"
        self._tracker = tracker
        self._earlier = path.read_text().split("\n")[:-1] if (folder / "resume").exists() and path.exists() else []
        # A new file, because an attempt that lost its lease may still write to the old one.
        with replacing(path) as temporary:
            self._file = temporary.open("w")
            self._file.writelines(line + "\n" for line in self._earlier)
            self._file.flush()
        self.newest: dict[str, Any] = {}
        """The newest row."""

    def log(self, row: dict[str, Any]) -> None:
        """Append one row; its `time` (Unix seconds) is added. NaN and infinities become null."""
        if self._earlier:
            self._drop_rows_from(int(row["step"]))
        row = row | {"time": time.time()}
        # JSON has no NaN; the tracker receives it unchanged.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.newest = finite
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        if self._tracker:
            self._tracker.log(row)
        logger.info("%s", _log_line(row))

    def _drop_rows_from(self, step: int) -> None:
        """Drop the rows of `step` and later, which are about to be written again."""
        try:
            kept = [line for line in self._earlier if json.loads(line)["step"] < step]
        except (ValueError, KeyError, TypeError) as error:
            raise StageFailure(
                f"{self._path}: one of its lines is not a ledger row ({error}); delete the folder resume next to it to "
                "start the stage run from the beginning"
            ) from error
        # The file is already open for the new rows, so it is rewritten in place.
        self._file.truncate(0)
        self._file.seek(0)
        self._file.writelines(line + "\n" for line in kept)
        self._earlier = []

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Show sampled responses as a table in the tracker; its columns are the keys of the first row."""
        if self._tracker and rows:
            self._tracker.samples(name, rows)

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Set the tracker's summary."""
        if self._tracker:
            self._tracker.summarize(metrics)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._tracker:
            self._tracker.finish(failed=kind is not None)


def _log_line(row: dict[str, Any]) -> str:
    """The first values of a row, such as `step 12  loss 2.513  entropy 1.204`."""
    values = [(key, value) for key, value in row.items() if isinstance(value, int | float | str) and key != "time"]
    shown = values[:LOGGED_VALUES]
    shown += [(key, value) for key, value in values[LOGGED_VALUES:] if key == "tokens_per_second"]
    return "  ".join(f"{key} {_shortened(value)}" for key, value in shown)


def _shortened(value: float | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
