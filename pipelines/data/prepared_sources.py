"""What token shards were made of, so that a corpus that has changed since is noticed before anything is trained on it.

`sources.json` in the folder of the shards has, for each source, its settings and its files with size, time and sha256.
It is not part of the index, whose hash is in signatures: a copied file has another time and the same content.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.configuration.data import DataConfig, SourceConfig
from pipelines.data.source_files import files_of
from pipelines.data.sources import Part
from pipelines.errors import UserError
from pipelines.files import read_json, sha256, write_json

NAME = "sources.json"
SETTINGS = ("kind", "path", "subset", "split", "column", "revision", "template", "tokens")
"""Keys of a source that decide its documents."""


def write_sources(folder: Path, data: DataConfig, parts: Iterable[Part], *, used: Iterable[Part]) -> None:
    """Record the files of all `parts`; those of `used` parts, of which the shards consist, with their hashes."""
    before = _recorded(folder)
    hashed = {part.path for part in used}
    sources: dict[str, Any] = {}
    for name, source in data.sources.items():
        known = {file["path"]: file for file in before.get(name, {}).get("files", [])}
        paths = dict.fromkeys(part.path for part in parts if part.source == name and part.kind != "hub")
        files = [_file(path, known.get(path), is_hashed=path in hashed) for path in paths]
        sources[name] = {"settings": _settings(source), "files": files}
    write_json(folder / NAME, sources, key="data.shards")


def _file(path: str, known: Mapping[str, Any] | None, *, is_hashed: bool) -> dict[str, Any]:
    """The entry of a file; the hash of one that has not changed is taken from its entry `known`."""
    stamp = _stamp(path)
    if known is not None and known["stamp"] == stamp and known["sha256"]:
        return dict(known)
    return {"path": path, "stamp": stamp, "sha256": sha256(path) if is_hashed else None}


def _stamp(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _settings(source: SourceConfig) -> dict[str, Any]:
    content = asdict(source)
    return {key: content[key] for key in SETTINGS}


def _recorded(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    return read_json(path) if path.is_file() else {}


def outdated(data: DataConfig) -> str | None:
    """Returns why the token shards are not those of the sources as they are now, in one sentence; None if they are.

    Sources that are not on this machine at all cannot be compared: shards may be used where their corpus is not.
    """
    if data.shards is None:
        return None
    recorded = _recorded(Path(data.shards))
    for name, source in data.sources.items():
        if name in recorded and (reason := _difference(f"data.sources.{name}", source, recorded[name])):
            return (
                f"{reason}, so the token shards in data.shards={data.shards} are not those of this corpus; make them "
                f"again, with the words of the first time and --again: shaping-data prepare data={data.name} --again"
            )
    return None


def _difference(key: str, source: SourceConfig, recorded: Mapping[str, Any]) -> str | None:
    settings = _settings(source)
    for name, value in recorded["settings"].items():
        if settings[name] != value and not (name == "path" and _same_path(settings[name], value)):
            return f"{key}.{name}={settings[name]}: it was {value} when they were made"
    if source.kind == "hub":
        return None
    try:
        present = files_of(key, source)
    except UserError:
        return None  # none of its files is here
    return _changed_file(key, present, recorded["files"])


def _same_path(first: str, second: str) -> bool:
    first, second = (os.path.abspath(os.path.expanduser(path)) for path in (first, second))
    return first == second


def _changed_file(key: str, present: list[str], recorded: list[dict[str, Any]]) -> str | None:
    """The first file that has changed, is new or is gone; a renamed one is none of these."""
    stamps = {file["path"]: file["stamp"] for file in recorded}
    others = [path for path in present if stamps.get(path) != _stamp(path)]
    same = set(present) - set(others)
    missing = [file for file in recorded if file["path"] not in same]
    for path in others:
        size = os.path.getsize(path)
        # Only where a recorded file has this size can the content be a recorded one; no other is read.
        alike = [file for file in missing if file["stamp"][0] == size]
        content = sha256(path) if any(file["sha256"] for file in alike) else None
        match = next((file for file in alike if file["sha256"] == content), None)
        if match is None:
            what = "has changed" if path in stamps else "is new"
            return f"{key}.path: {path} {what} since the last shaping-data prepare"
        missing.remove(match)
    if missing:
        return f"{key}.path: {missing[0]['path']} is gone since the last shaping-data prepare"
    return None
