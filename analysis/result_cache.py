"""Every finished stage run of a store, read once: what has been read before is kept in one file of the store's cache.

A stage run's `result.json` is written last and never changes, so its size and time of writing say whether it was read
already. The file is a reading aid: deleting it costs one slower reading, and a store that cannot be written to is
read in full every time.
"""

import contextlib
import json
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
from sweeps.store.stage_runs import FORMAT, Store

LAYOUT = 1
"""Version of the cache file; another one is ignored and written anew."""

TEXT = ("benchmark", "group", "metric", "variant")
NUMBERS = ("value", "stderr", "n")
SPEC = ("stage", "signature", "version", "config", "parent", "checkpoint", "labels")
"""What is read of a `spec.json`."""
READ_AT_ONCE = 1000


@dataclass
class Finished:
    """One finished stage run as its `spec.json` and `result.json` tell it, less its measurements."""

    stage: str
    signature: str
    stamp: tuple[int, int]
    """Size and time of writing (ns) of `result.json`."""
    spec: dict[str, Any]
    seconds: float | None
    metrics: dict[str, Any]


@dataclass
class Readings:
    """The finished stage runs of a store and all their measurements."""

    runs: dict[str, Finished] = field(default_factory=dict)
    table: pa.Table = field(default_factory=lambda: _empty())
    """Columns `signature`, `TEXT` (dictionary-encoded) and `NUMBERS`: one row a measurement."""


def _empty() -> pa.Table:
    return _table({name: [] for name in ("signature", *TEXT, *NUMBERS)})


def _table(columns: dict[str, list[Any]]) -> pa.Table:
    arrays: dict[str, Any] = {
        name: pa.array(columns[name], pa.string()).dictionary_encode() for name in ("signature", *TEXT)
    }
    arrays |= {name: pa.array(columns[name], pa.float64()) for name in NUMBERS}
    return pa.table(arrays)


def read_store(store: Store) -> Readings:
    """All finished stage runs of `store`; raises `UserError` naming a file that is corrupt or of a newer format."""
    known = _load(store)
    stamps = dict(_stamps(store))
    fresh = [place for place, stamp in stamps.items() if _stamp(known.runs.get(place[1])) != stamp]
    gone = [signature for signature, run in known.runs.items() if (run.stage, signature) not in stamps]
    if not fresh and not gone:
        return known
    stale = {signature for _, signature in fresh}.union(gone)
    runs = {signature: run for signature, run in known.runs.items() if signature not in stale}
    tables = [_without(known.table, stale)]
    for start in range(0, len(fresh), READ_AT_ONCE):  # parts, so that a large store's JSON is never all in memory
        part = {place: stamps[place] for place in fresh[start : start + READ_AT_ONCE]}
        tables.append(_read(store, part, runs))
    ordered = dict(sorted(runs.items(), key=lambda item: (item[1].stage, item[0])))
    readings = Readings(ordered, pa.concat_tables(tables).unify_dictionaries().combine_chunks())
    _save(store, readings)
    return readings


def _stamp(run: Finished | None) -> tuple[int, int] | None:
    return run.stamp if run else None


def _without(table: pa.Table, signatures: Iterable[str]) -> pa.Table:
    if not len(table):
        return table
    column = table["signature"].combine_chunks()
    dropped = np.isin(np.array(column.dictionary.to_pylist(), dtype=object), list(signatures))
    return table.filter(pa.array(~dropped[column.indices.to_numpy()]))


def _stamps(store: Store) -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
    """(stage, signature) and stamp of every folder with a result."""
    for stage in STAGES:
        folder = store.root / stage
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            continue
        for name in names:
            try:
                found = os.stat(f"{folder}/{name}/result.json")
            except (FileNotFoundError, NotADirectoryError):
                continue
            yield (stage, name), (found.st_size, found.st_mtime_ns)


def _read(store: Store, stamps: dict[tuple[str, str], tuple[int, int]], runs: dict[str, Finished]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in ("signature", *TEXT, *NUMBERS)}
    for (stage, signature), stamp in stamps.items():
        folder = store.root / stage / signature
        result = read_object(folder / "result.json")
        spec = read_object(folder / "spec.json", SPEC)
        runs[signature] = Finished(stage, signature, stamp, spec, result.get("seconds"), result.get("metrics") or {})
        for row in result.get("measurements") or []:
            columns["signature"].append(signature)
            for name in TEXT:
                columns[name].append(row.get(name) or "")
            for name in NUMBERS:
                columns[name].append(row.get(name))
    return _table(columns)


def read_object(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """The JSON object in `path`; raises `UserError` where it is none, lacks one of `keys`, or is of a format that this
    version cannot read."""
    try:
        text = path.read_bytes()
        try:
            content = orjson.loads(text)
        except orjson.JSONDecodeError:
            content = json.loads(text)  # slower, and takes the NaN of a metric that nothing was there to measure
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: it is not readable JSON ({error}); delete the folder {path.parent} and run the sweep again"
        ) from error
    if content.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{path}: its format is {content['format']!r} and this version reads {FORMAT}; "
            "use the version of shaping that wrote it, or another store"
        )
    if lacking := [key for key in keys if key not in content]:
        raise UserError(f"{path}: it has no {lacking[0]!r}; delete the folder {path.parent} and run the sweep again")
    return content


def _place(store: Store) -> Path:
    return store.root / "cache" / "readings.arrow"


def _load(store: Store) -> Readings:
    """What the cache file holds; nothing where it is missing, damaged or of another layout."""
    try:
        with pa.memory_map(str(_place(store))) as source:
            table = pa.ipc.open_file(source).read_all()
        head = orjson.loads(table.schema.metadata[b"runs"])
        if head["layout"] != LAYOUT:
            return Readings()
        parts, runs = head["parts"], {}
        for stage, signature, (size, written), spec, config, environment, seconds, metrics in head["runs"]:
            spec["config"] = {name: parts[number] for name, number in config.items()}
            if environment is not None:
                spec["environment"] = parts[environment]
            runs[signature] = Finished(stage, signature, (size, written), spec, seconds, metrics)
    except (OSError, pa.ArrowException, KeyError, IndexError, TypeError, ValueError):
        return Readings()
    return Readings(runs, table.replace_schema_metadata(None))


def _save(store: Store, readings: Readings) -> None:
    """Configurations repeat from run to run, so each different part of them is kept once."""
    parts: dict[bytes, int] = {}

    def number(part: Any) -> int:
        return parts.setdefault(orjson.dumps(part), len(parts))

    rows = []
    for run in readings.runs.values():
        rest = {name: value for name, value in run.spec.items() if name not in ("config", "environment")}
        config = {name: number(part) for name, part in run.spec["config"].items()}
        environment = number(run.spec["environment"]) if "environment" in run.spec else None
        rows.append([run.stage, run.signature, run.stamp, rest, config, environment, run.seconds, run.metrics])
    head = orjson.dumps({"layout": LAYOUT, "parts": [orjson.Fragment(part) for part in parts], "runs": rows})
    table = readings.table.replace_schema_metadata({b"runs": head})
    path = _place(store)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        beside.rename(path)
