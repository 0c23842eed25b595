"""Every finished stage run of a store and its measurements, cached so that each result file is read only once.

A stage run's `result.json` is written last and never changes, so its size and modification time identify what was read.
The cache is one Arrow file in the store. Deleting it costs one slower read, and a store that cannot be written to is
read in full every time.
"""

import contextlib
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

from pipelines.configuration import STAGES
from pipelines.errors import UserError
from pipelines.files import read_json, replacing
from sweeps.store.stage_runs import FORMAT, Store

logger = logging.getLogger("analysis")

CACHE_VERSION = 1
"""Version of the cache file; a file of another version is ignored and replaced."""

TEXT_COLUMNS = ("benchmark", "group", "metric", "variant")
NUMBER_COLUMNS = ("value", "stderr", "n")
SPEC_KEYS = ("stage", "signature", "version", "config", "parent", "checkpoint", "labels")
"""Keys that every `spec.json` must have."""
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


@dataclass
class StoredResults:
    """The finished stage runs of a store by signature, and all their measurements."""

    runs: dict[str, FinishedRun] = field(default_factory=dict)
    table: pa.Table = field(default_factory=lambda: _arrow_table(_empty_columns()))
    """One row per measurement: `signature` and `TEXT_COLUMNS` (dictionary-encoded), then `NUMBER_COLUMNS`."""


def read_results(store: Store) -> StoredResults:
    """Returns all finished stage runs of `store`.

    Raises `UserError` with the path of a file that is corrupt or was written by a newer version.
    """
    cached = _load_cache(store)
    stamps = dict(_stamps(store))

    # Compare the cache with the store: new or changed results are read, removed ones are dropped.
    new = [key for key, stamp in stamps.items() if _cached_stamp(cached, key) != stamp]
    removed = [signature for signature, run in cached.runs.items() if (run.stage, signature) not in stamps]
    logger.debug("%s: %d finished stage runs, %d of them not yet cached", store.root, len(stamps), len(new))
    if not new and not removed:
        return cached
    stale = {signature for _, signature in new}.union(removed)
    runs = {signature: run for signature, run in cached.runs.items() if signature not in stale}
    tables = [_without(cached.table, stale)]

    # Read in batches, so that the JSON of a large store is never in memory at once.
    for start in range(0, len(new), BATCH):
        tables.append(_read_batch(store, {key: stamps[key] for key in new[start : start + BATCH]}, runs))

    # Sort the runs, so that the same store gives the same results in whatever order it was filled.
    ordered = dict(sorted(runs.items(), key=lambda item: (item[1].stage, item[0])))
    results = StoredResults(ordered, pa.concat_tables(tables).unify_dictionaries().combine_chunks())
    _save_cache(store, results)
    return results


def read_record(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the JSON object of a store's file.

    Raises `UserError` if the file is corrupt, lacks one of `keys`, or was written by a version with another format.
    """
    fix = f"delete the folder {path.parent} and run the sweep again"
    try:
        content = read_json(path, fix=fix)
    except FileNotFoundError as error:
        raise UserError(f"{path}: the file is missing; {fix}") from error
    # Check the format first: a file of another version may lack keys for a good reason.
    if content.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{path}: its format is {content['format']!r} and this version reads {FORMAT}; "
            "use the version of shaping that wrote it, or another store"
        )
    if missing := [key for key in keys if key not in content]:
        raise UserError(f"{path}: it has no {missing[0]!r}; {fix}")
    return content


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


def _stamps(store: Store) -> Iterator[tuple[Key, Stamp]]:
    """The key and stamp of every folder that has a result."""
    for stage in STAGES:
        folder = store.root / stage
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            continue
        for name in names:
            try:
                file = os.stat(f"{folder}/{name}/result.json")
            except (FileNotFoundError, NotADirectoryError):
                continue
            yield (stage, name), (file.st_size, file.st_mtime_ns)


def _read_batch(store: Store, stamps: dict[Key, Stamp], runs: dict[str, FinishedRun]) -> pa.Table:
    """Adds the stage runs of `stamps` to `runs` and returns their measurements."""
    columns = _empty_columns()
    for (stage, signature), stamp in stamps.items():
        folder = store.root / stage / signature
        result = read_record(folder / "result.json")
        spec = read_record(folder / "spec.json", SPEC_KEYS)
        runs[signature] = FinishedRun(stage, signature, stamp, spec, result.get("seconds"), result.get("metrics") or {})
        for row in result.get("measurements") or []:
            columns["signature"].append(signature)
            for name in TEXT_COLUMNS:
                columns[name].append(row.get(name) or "")
            for name in NUMBER_COLUMNS:
                columns[name].append(row.get(name))
    return _arrow_table(columns)


def _cache_path(store: Store) -> Path:
    return store.root / "cache" / "readings.arrow"


def _load_cache(store: Store) -> StoredResults:
    """The cached results; empty if the cache is missing, damaged or of another version."""
    try:
        with pa.memory_map(str(_cache_path(store))) as source:
            table = pa.ipc.open_file(source).read_all()
        head = orjson.loads(table.schema.metadata[b"runs"])
        if head["layout"] != CACHE_VERSION:
            return StoredResults()
        # Configurations refer to shared parts by number (see `_save_cache`); put the parts back in.
        parts, runs = head["parts"], {}
        for stage, signature, (size, modified), spec, config, environment, seconds, metrics in head["runs"]:
            spec["config"] = {name: parts[number] for name, number in config.items()}
            if environment is not None:
                spec["environment"] = parts[environment]
            runs[signature] = FinishedRun(stage, signature, (size, modified), spec, seconds, metrics)
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
        rows.append([run.stage, run.signature, run.stamp, spec, config, environment, run.seconds, run.metrics])
    head = orjson.dumps({"layout": CACHE_VERSION, "parts": [orjson.Fragment(part) for part in parts], "runs": rows})
    # The table's metadata holds the stage runs, so that both are replaced together.
    table = results.table.replace_schema_metadata({b"runs": head})
    path = _cache_path(store)
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        with (
            replacing(path, durable=False) as temporary,
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, table.schema) as writer,
        ):
            writer.write_table(table)
