"""The ledger: every metric of a stage run as one JSON line, flushed, logged, and mirrored to trackers.

The file is the source of truth: a flushed line survives a killed process.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pipelines.errors import StageFailure
from pipelines.files import replacing
from pipelines.tracking.tracker import Tracker

logger = logging.getLogger("pipelines")

LOGGED_VALUES = 7
"""Values of a row that its log line shows: the first ones, since a row starts with its main numbers."""


class Ledger:
    """Writes `ledger.jsonl` in a stage run's folder and mirrors it to trackers.

    If the folder has a trainer state to resume from, the rows of earlier steps are kept: the step of the first new row
    decides which those are. Trackers are passed the kept rows again, since they may have lost some.
    """

    def __init__(self, folder: Path, trackers: Sequence[Tracker] = ()) -> None:
        self._path = path = folder / "ledger.jsonl"
        self._trackers = trackers
        self._earlier = path.read_text().split("\n")[:-1] if (folder / "resume").exists() and path.exists() else []
        # A new file, because an attempt that lost its lease may still write to the old one.
        self._file = self._started_with(self._earlier)
        self.newest: dict[str, Any] = {}
        """The newest row."""

    def _started_with(self, lines: Sequence[str]) -> TextIO:
        """A new file in place of the one before, with these rows; a kill leaves one or the other."""
        with replacing(self._path) as temporary:
            file = temporary.open("w")
            file.writelines(line + "\n" for line in lines)
            file.flush()
        return file

    def log(self, row: dict[str, Any]) -> None:
        """Append one row; its `time` (Unix seconds) is added. NaN and infinities become null."""
        self._keep_earlier(int(row["step"]) if self._earlier else None)
        row = row | {"time": time.time()}
        # JSON has no NaN; the trackers receive it unchanged.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.newest = finite
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(row)
        logger.info("%s", _log_line(row))

    def _keep_earlier(self, before: int | None = None) -> None:
        """Keep the rows of an earlier attempt whose step is below `before`, or all; the others are written again."""
        if not self._earlier:
            return
        try:
            rows = {line: json.loads(line) for line in self._earlier}
            kept = {line: row for line, row in rows.items() if before is None or row["step"] < before}
        except (ValueError, KeyError, TypeError) as error:
            raise StageFailure(
                f"{self._path}: one of its lines is not a ledger row ({error}); delete the folder resume next to it to "
                "start the stage run from the beginning"
            ) from error
        if len(kept) < len(self._earlier):
            self._file.close()
            self._file = self._started_with(list(kept))
        self._earlier = []
        for tracker in self._trackers:
            for row in kept.values():
                tracker.log(row)

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Show sampled responses as a table in the trackers; its columns are the keys of the first row."""
        for tracker in self._trackers if rows else ():
            tracker.samples(name, rows)

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Set the trackers' summary."""
        self._keep_earlier()
        for tracker in self._trackers:
            tracker.summarize(metrics)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.finish(failed=kind is not None)


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
