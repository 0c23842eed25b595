"""Every finished stage run of a store, its measurements and RL's course, cached so that each file is read only once.

A stage run's `result.json` is written last and never changes, so its size and modification time identify what was read.
The cache is one file in the store: the sha256 in hexadecimal of what follows, which is an Arrow file. Deleting it costs
one slower read; one that was changed is written again. A store that cannot be written to is read in full every time.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.ipc

from analysis.published_files import read_course
from pipelines.errors import StageFailure, UserError
from pipelines.files import replacing, unreadable
from sweeps.store.stage_runs import LEDGER, Store, StoredRun

logger = logging.getLogger("analysis")

CACHE_VERSION = 3
"""Version of the cache file; a file of another version is ignored and replaced."""

TEXT_COLUMNS = ("benchmark", "group", "metric", "variant")
NUMBER_COLUMNS = ("value", "stderr", "n")
SEAL_BYTES = 64
"""Length of the sha256 at the start of the cache."""
BATCH = 1000
"""Stage runs whose JSON is in memory at the same time."""

Key = tuple[str, str]
"""(stage, signature)"""
Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds of a `result.json`."""


@dataclass
class FinishedRun:
    """One finished stage run: its `spec.json` and `result.json` without the measurements."""

    stage: str
    signature: str
    stamp: Stamp
    spec: dict[str, Any]
    seconds: float | None
    metrics: dict[str, Any]
    course: list[dict[str, Any]] | None = None
    """Of an RL run, the rows that `read_course` has of its ledger; None for others, and if they cannot be read."""


@dataclass
class StoredResults:
    """The finished stage runs of a store by signature, and all their measurements."""

    runs: dict[str, FinishedRun] = field(default_factory=dict)
    table: pa.Table = field(default_factory=lambda: _arrow_table(_empty_columns()))
    """One row per measurement: `signature` and `TEXT_COLUMNS` (dictionary-encoded), then `NUMBER_COLUMNS`."""
    broken: dict[str, str] = field(default_factory=dict)
    """Signature of each stage run that has a result but cannot be read -> why, with the way out."""


def read_results(store: Store) -> StoredResults:
    """Returns all finished stage runs of `store`; those with broken files are named in warnings and in `broken`."""
    cached = _load_cache(store)
    broken: dict[str, str] = {}
    stamps = dict(_stamps(store, broken))

    # Compare the cache with the store: new or changed results are read, removed ones are dropped.
    new = [key for key, stamp in stamps.items() if _cached_stamp(cached, key) != stamp]
    removed = [signature for signature, run in cached.runs.items() if (run.stage, signature) not in stamps]
    logger.debug("%s: %d finished stage runs, %d of them not yet cached", store.root, len(stamps), len(new))
    if new or removed:
        stale = {signature for _, signature in new}.union(removed)
        runs = {signature: run for signature, run in cached.runs.items() if signature not in stale}
        tables = [_without(cached.table, stale)]
        # Read in batches, so that the JSON of a large store is never in memory at once.
        for start in range(0, len(new), BATCH):
            batch = {key: stamps[key] for key in new[start : start + BATCH]}
            tables.append(_read_batch(store, batch, runs=runs, broken=broken))
        # Sort the runs, so that the same store gives the same results in whatever order it was filled.
        ordered = dict(sorted(runs.items(), key=lambda item: (item[1].stage, item[0])))
        cached = StoredResults(ordered, pa.concat_tables(tables).unify_dictionaries().combine_chunks())
        _save_cache(store, cached)
    for sentence in broken.values():
        logger.warning("%s", sentence)
    cached.broken = broken
    return cached


def _empty_columns() -> dict[str, list[Any]]:
    return {name: [] for name in ("signature", *TEXT_COLUMNS, *NUMBER_COLUMNS)}


def _arrow_table(columns: dict[str, list[Any]]) -> pa.Table:
    arrays: dict[str, Any] = {
        name: pa.array(columns[name], pa.string()).dictionary_encode() for name in ("signature", *TEXT_COLUMNS)
    }
    arrays |= {name: pa.array(columns[name], pa.float64()) for name in NUMBER_COLUMNS}
    return pa.table(arrays)


def _cached_stamp(cached: StoredResults, key: Key) -> Stamp | None:
    run = cached.runs.get(key[1])
    return run.stamp if run else None


def _without(table: pa.Table, signatures: Iterable[str]) -> pa.Table:
    """The rows of `table` that belong to none of `signatures`."""
    if not len(table):
        return table
    # Dictionary encoding: look up each distinct signature once instead of each row.
    column = table["signature"].combine_chunks()
    dropped = np.isin(np.array(column.dictionary.to_pylist(), dtype=object), list(signatures))
    return table.filter(pa.array(~dropped[column.indices.to_numpy()]))


def _stamps(store: Store, broken: dict[str, str]) -> Iterator[tuple[Key, Stamp]]:
    """The key and stamp of every folder that has a result; adds what cannot be entered to `broken`."""
    unlisted: list[UserError] = []
    for run in store.folders(unlisted):
        try:
            file = os.stat(f"{run.folder}/result.json")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            broken[run.signature] = str(unreadable(run.folder, error))
            continue
        yield (run.stage, run.signature), (file.st_size, file.st_mtime_ns)
    broken.update({f"unlisted {number}": str(error) for number, error in enumerate(unlisted)})


def _read_batch(
    store: Store, stamps: dict[Key, Stamp], *, runs: dict[str, FinishedRun], broken: dict[str, str]
) -> pa.Table:
    """Adds the stage runs of `stamps` to `runs`, or to `broken`, and returns their measurements."""
    columns = _empty_columns()
    for (stage, signature), stamp in stamps.items():
        stored = store.run(stage, signature)
        try:
            spec, result = stored.spec, stored.result
        except UserError as error:
            broken[signature] = str(error)
            continue
        if result is None:  # it was removed meanwhile
            continue
        course = _course(stored) if stage == "grpo" else None
        runs[signature] = FinishedRun(stage, signature, stamp, spec, result["seconds"], result["metrics"], course)
        for row in result["measurements"]:
            columns["signature"].append(signature)
            for name in TEXT_COLUMNS:
                columns[name].append(row.get(name) or "")
            for name in NUMBER_COLUMNS:
                columns[name].append(row.get(name))
    return _arrow_table(columns)


def _course(run: StoredRun) -> list[dict[str, Any]] | None:
    """The course of an RL run; what is wrong with its ledger is said where it is needed."""
    with contextlib.suppress(UserError, OSError):
        if path := run.published(LEDGER):
            return read_course(path)
    return None


def _cache_path(store: Store) -> Path:
    return store.root / "cache" / "readings.arrow"


def _load_cache(store: Store) -> StoredResults:
    """The cached results; empty if the cache is missing, was changed, or is of another version."""
    try:
        with pa.memory_map(str(_cache_path(store))) as source:
            content = source.read_buffer()
        seal, arrow = content.slice(0, SEAL_BYTES), content.slice(SEAL_BYTES)
        if seal.to_pybytes() != hashlib.sha256(arrow).hexdigest().encode():
            return StoredResults()
        table = pa.ipc.open_file(arrow).read_all()
        head = orjson.loads(table.schema.metadata[b"runs"])
        if head["layout"] != CACHE_VERSION:
            return StoredResults()
        # Configurations refer to shared parts by number (see `_save_cache`); put the parts back in.
        parts, runs = head["parts"], {}
        for stage, signature, (size, modified), spec, config, environment, *rest in head["runs"]:
            spec["config"] = {name: parts[number] for name, number in config.items()}
            if environment is not None:
                spec["environment"] = parts[environment]
            runs[signature] = FinishedRun(stage, signature, (size, modified), spec, *rest)
    except (OSError, pa.ArrowException, KeyError, IndexError, TypeError, ValueError):
        return StoredResults()
    return StoredResults(runs, table.replace_schema_metadata(None))


def _save_cache(store: Store, results: StoredResults) -> None:
    """Write the cache file, if the store can be written to.

    Parts of configurations repeat from run to run, so each distinct part is stored once and referred to by number.
    """
    parts: dict[bytes, int] = {}

    def number(part: Any) -> int:
        return parts.setdefault(orjson.dumps(part), len(parts))

    rows = []
    for run in results.runs.values():
        spec = {name: value for name, value in run.spec.items() if name not in ("config", "environment")}
        config = {name: number(part) for name, part in run.spec["config"].items()}
        environment = number(run.spec["environment"]) if "environment" in run.spec else None
        rest = run.seconds, run.metrics, run.course
        rows.append([run.stage, run.signature, run.stamp, spec, config, environment, *rest])
    head = orjson.dumps({"layout": CACHE_VERSION, "parts": [orjson.Fragment(part) for part in parts], "runs": rows})
    # The table's metadata holds the stage runs, so that both are replaced together.
    table = results.table.replace_schema_metadata({b"runs": head})
    path = _cache_path(store)
    with contextlib.suppress(OSError, StageFailure):
        path.parent.mkdir(exist_ok=True)
        arrow = pa.BufferOutputStream()
        with pa.ipc.new_file(arrow, table.schema) as writer:
            writer.write_table(table)
        content = arrow.getvalue()
        with replacing(path, durable=False) as temporary, temporary.open("wb") as file:
            file.write(hashlib.sha256(content).hexdigest().encode())
            file.write(content)
