"""How the store of an interrupted run differs from that of an undisturbed one."""

import gzip
import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.configuration import STAGES

MEASURED_TIME = re.compile(r"time$|seconds|per_second|data_wait_share|memory_gib")
"""Columns and metrics that measure the machine and differ from run to run."""

RECORD, BLOCK_BYTES = struct.Struct("<IHB"), 2**15
"""The head of a record, and the blocks, of W&B's offline files."""


def differences(reference: Path, store: Path) -> list[str]:
    """Sentences about every stage run, file, weight, result or ledger row that is not as in `reference`."""
    expected, actual = _stage_runs(reference), _stage_runs(store)
    sentences = [f"{name}: the stage run is missing" for name in sorted(expected - actual)]
    sentences += [f"{name}: this stage run is not in the undisturbed run" for name in sorted(actual - expected)]
    for name in sorted(expected & actual):
        sentences += [f"{name}: {text}" for text in _compare(reference / name, store / name)]
    runs, interrupted = set(_wandb_files(reference)), set(_wandb_files(store))
    sentences += [f"W&B run {name} is one too many" for name in sorted(interrupted - runs)]
    for name in sorted(runs):
        sentences += [f"W&B run {name} {text}" for text in _compare_wandb(store, name)]
    return sentences


def leftovers(store: Path) -> list[str]:
    """Sentences about temporary files, folders of work and leases that are left in a finished store."""
    paths = [path for stage in STAGES for path in store.glob(f"{stage}/*/**/.*")]
    names = ("work-*", "leases", "resume")
    paths += [path for stage in STAGES for name in names for path in store.glob(f"{stage}/*/{name}")]
    # Several stage runs may write to `cache/evaluations`, so a killed writer's temporary file there is removed by age.
    paths += [
        path
        for path in (store / "cache").rglob(".*")
        if not path.name.endswith(".lock") and "evaluations" not in path.parts
    ]
    paths += list(store.glob(".*"))
    return [f"left behind: {path.relative_to(store)}" for path in sorted(paths)]


def _stage_runs(store: Path) -> set[str]:
    return {str(path.relative_to(store)) for stage in STAGES for path in store.glob(f"{stage}/*")}


def _wandb_files(store: Path) -> dict[str, list[Path]]:
    """The files of the offline W&B runs by their identity, which is the signature of a stage run."""
    files: dict[str, list[Path]] = {}
    for folder in sorted(store.glob("wandb/*run-*-*")):
        # Of two attempts that began in one second, the second has a folder with `-1` at the end.
        identity = folder.name.removeprefix("offline-").split("-")[2]
        files.setdefault(identity, []).extend(folder.glob("*.wandb"))
    return files


def _compare_wandb(store: Path, signature: str) -> list[str]:
    """What of a W&B run is not as in the ledger of its stage run; rows are left out once its service was killed."""
    run = next((path.parent for stage in STAGES for path in store.glob(f"{stage}/{signature}/ledger.jsonl")), None)
    if run is None:
        return []  # that is a difference already
    files = _wandb_files(store).get(signature, [])
    is_lost = tracker_was_lost(run)
    if len(files) != 1:
        return [] if is_lost else [f"has {len(files)} files"]
    expected = [json.loads(line)["step"] for line in (run / "ledger.jsonl").read_text().splitlines()]
    steps = wandb_steps(files[0])
    doubled = len(steps) - len(set(steps))
    sentences = [f"has {doubled} steps twice"] if doubled else []
    if not is_lost and sorted(set(steps)) != expected:
        sentences.append(f"has {len(set(steps))} of the {len(expected)} steps of its ledger")
    return sentences


def tracker_was_lost(run: Path) -> bool:
    """Whether an attempt of a stage run noted in its log that it had lost W&B."""
    logs = (Path(attempt["log"]) for attempt in json.loads((run / "state.json").read_text()).get("attempts", []))
    return any("W&B is lost" in log.read_text(errors="replace") for log in logs if log.exists())


def wandb_steps(file: Path) -> list[int]:
    """The steps of the history in a file of an offline W&B run, in order."""
    histories = [record.history.item for record in wandb_records(file) if record.WhichOneof("record_type") == "history"]
    items = [{item.key or "/".join(item.nested_key): item.value_json for item in history} for history in histories]
    return [int(values["_step"]) for values in items]


def wandb_records(file: Path) -> Iterator[Any]:
    """The records in a file of an offline W&B run; its end may be cut off.

    The file has a header of 7 bytes and blocks of 32 KiB with LevelDB's records: checksum, length, type (1 whole, 2
    first part, 3 middle, 4 last), content. W&B's client has no reader in Python.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    content, position, parts = file.read_bytes(), 7, b""
    while position + RECORD.size <= len(content):
        if (rest := BLOCK_BYTES - position % BLOCK_BYTES) < RECORD.size:
            position += rest
            continue
        _, length, kind = RECORD.unpack_from(content, position)
        position += RECORD.size + length
        parts += content[position - length : position]
        if kind in (1, 4) and position <= len(content):
            yield Record.FromString(parts)
            parts = b""


def _compare(expected: Path, actual: Path) -> list[str]:
    """Differences of one stage run's folder."""
    names = {str(path.relative_to(expected)) for path in expected.rglob("*") if path.is_file()}
    actual_names = {str(path.relative_to(actual)) for path in actual.rglob("*") if path.is_file()}
    sentences = [f"{name} is missing" for name in sorted(names - actual_names)]
    sentences += [f"{name} is not in the undisturbed run" for name in sorted(actual_names - names)]
    for name in sorted(names & actual_names):
        if name == "state.json":
            status = json.loads((actual / name).read_text())["status"]
            sentences += [f"its state is {status}"] if status != "done" else []
        elif _content(expected / name) != _content(actual / name):
            sentences.append(f"{name} differs{_first_difference(expected / name, actual / name)}")
    return sentences


def _content(path: Path) -> Any:
    """What must be the same: everything but times and what the machine measured."""
    if path.name == "ledger.jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "result.json":
        result = _timeless(json.loads(path.read_text()))
        return {key: value for key, value in result.items() if key not in ("files", "sha256")}
    if path.name == "spec.json":  # its environment is the machine, and a checkout that may change meanwhile
        spec = json.loads(path.read_text())
        return {key: value for key, value in spec.items() if key not in ("environment", "sha256")}
    if path.name == "README.md":  # a table with a row per column of the ledger
        return [line for line in path.read_text().splitlines() if not MEASURED_TIME.search(line.split(" | ")[0])]
    content = path.read_bytes()
    return hashlib.sha256(gzip.decompress(content) if path.suffix == ".gz" else content).hexdigest()


def _timeless(value: Any) -> Any:
    """A JSON value without the keys that measure time or memory."""
    if isinstance(value, dict):
        return {key: _timeless(v) for key, v in value.items() if not MEASURED_TIME.search(key)}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def _first_difference(expected: Path, actual: Path) -> str:
    """Where two ledgers or results part, for the report."""
    first, second = _content(expected), _content(actual)
    if expected.suffix == ".jsonl" and isinstance(first, list):
        if len(first) != len(second):
            return f": {len(second)} rows for {len(first)}"
        row = next(i for i, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1])
        keys = [key for key in first[row] if first[row][key] != second[row].get(key)]
        return f" in row {row + 1}, {', '.join(keys[:4])}"
    if isinstance(first, dict):
        return " in " + ", ".join(key for key in first if first[key] != second.get(key))
    return ""
