"""Files that stage runs publish besides their results: ledgers and sampled answers."""

import gzip
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pipelines.errors import UserError
from pipelines.evaluation.metrics import RIGHT
from pipelines.evaluation.samples import SAMPLES
from pipelines.foreign_text import parsed
from sweeps.store.stage_runs import Store, StoredRun

logger = logging.getLogger("analysis")

CURVE_ENDS = 5
"""RL steps at either end that measures of the training curve average, since a single step is noisy."""
COURSE_COLUMNS = ("entropy", "response_length", "reward")
"""Columns of an RL ledger that are averaged at the ends."""
END_ROWS = 2 * CURVE_ENDS
"""Rows at either end that are looked into first."""
HELD_OUT = b'"held_out_reward"'


def read_samples(
    store: Store, stage_run: str, benchmark: str | None, *, limit: int | None = None
) -> list[dict[str, Any]]:
    """Returns the samples of an evaluation, at most the first `limit`, each with whether it is `right`.

    Empty if the evaluation kept no samples.
    """
    path = published(store.run("evaluate", stage_run), SAMPLES)
    if path is None:
        return []
    # Search the raw line for the benchmark's name first: parsing only the matching lines is much faster.
    encoded_name = None if benchmark is None else json.dumps(benchmark)[1:-1].encode()
    rows: list[dict[str, Any]] = []
    with gzip.open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n") or (encoded_name and encoded_name not in line):
                continue
            row = parsed(line)
            row["right"] = row["reward"] >= RIGHT
            if benchmark is None or row["benchmark"] == benchmark:
                rows.append(row)
            if limit is not None and len(rows) == limit:
                break
    return rows


def published(run: StoredRun, name: str) -> Path | None:
    """Returns the path of a file that a stage run has published, or None without one.

    None also for one that was changed since, which a warning names.
    """
    try:
        return run.published(name)
    except UserError as error:
        logger.warning("%s", error)
        return None


def read_ledger(path: Path, limit: int | None) -> list[dict[str, Any]]:
    """Returns the rows of a ledger; if it has more than `limit`, rows spread evenly from the first to the last.

    Leaves out a last line that was cut short by a kill. Raises `UserError` with the number of a line that is not JSON.
    """
    lines = _lines(path)
    chosen: Iterable[int] = range(len(lines))
    if limit is not None and len(lines) > limit:
        chosen = np.unique(np.linspace(0, len(lines) - 1, limit).round().astype(int))
    return _rows(path, lines, chosen)


def read_course(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of an RL ledger that measures of its course need, in their order.

    These are all with held-out rewards, and at either end enough for `CURVE_ENDS` numbers of each of `COURSE_COLUMNS`,
    which steps without an update lack. Only these are parsed, so that the ledgers of a large store are read in seconds.
    Raises `UserError` as `read_ledger` does.
    """
    lines = _lines(path)
    if len(lines) > 2 * END_ROWS:
        first, last = range(END_ROWS), range(len(lines) - END_ROWS, len(lines))
        ends = [_rows(path, lines, first), _rows(path, lines, last)]
        if all(_has_numbers(rows, column) for rows in ends for column in COURSE_COLUMNS):
            between = range(END_ROWS, len(lines) - END_ROWS)
            held_out = (n for n in between if HELD_OUT in lines[n])
            return [*ends[0], *_rows(path, lines, held_out), *ends[1]]
    return _rows(path, lines, range(len(lines)))


def _has_numbers(rows: list[dict[str, Any]], column: str) -> bool:
    return sum(row.get(column) is not None for row in rows) >= CURVE_ENDS


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]  # text after the last newline was never finished


def _rows(path: Path, lines: list[bytes], chosen: Iterable[int]) -> list[dict[str, Any]]:
    rows = []
    for number in chosen:
        try:
            rows.append(orjson.loads(lines[number]))
        except orjson.JSONDecodeError as error:
            raise UserError(
                f"{path}: line {number + 1} is not readable JSON ({error.msg}); "
                f"delete the folder {path.parent} and run the sweep again"
            ) from error
    return rows
