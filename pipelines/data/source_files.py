"""The files of a source: finding them, and looking for the fields of its documents before anything is prepared."""

import glob
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from pipelines.configuration.data import SourceConfig
from pipelines.data.compressed_files import opened, plain_name
from pipelines.errors import UserError, nearest

SUFFIXES = {"jsonl": (".jsonl", ".json", ".ndjson"), "parquet": (".parquet",), "text": (".txt",)}
"""Kind -> suffixes by which a folder's files belong to it, before that of a compression."""
LOOKED_AT = 20
"""Records at the beginning of a file in which a field must occur at least once."""


def files_of(key: str, source: SourceConfig) -> list[str]:
    """Returns the files of a source in a fixed order; `key` is that of the source, `data.sources.NAME`.

    Raises `UserError` if there are none, or if there are files of another kind among them.
    """
    pattern = os.path.expanduser(source.path)
    if os.path.isdir(pattern):
        present = sorted(_files_below(pattern))
        # A folder also has licences and indices, which are no data.
        paths = [path for path in present if _kind(path) is not None]
        if not paths:
            suffixes = ", ".join(SUFFIXES[source.kind])
            has = f"{len(present)} files, such as {os.path.basename(present[0])}" if present else "no files"
            raise UserError(
                f"{key}.path={source.path}: the folder has {has}, but none of {key}.kind={source.kind} ({suffixes}; "
                "also with .gz or .zst); name the folder of the data, or a glob of its files"
            )
    else:
        matches = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
        paths = sorted(path for path in matches if os.path.isfile(path))
        if not paths:
            raise UserError(f"{key}.path={source.path}: no file matches; give an existing path or glob")
    if other := [path for path in paths if _kind(path) not in (None, source.kind)]:
        raise UserError(
            f"{key}.path={source.path}: {os.path.basename(other[0])} is of the kind {_kind(other[0])}, but "
            f"{key}.kind={source.kind}; change the kind, or name files of one kind by a glob"
        )
    return paths


def _files_below(folder: str) -> Iterator[str]:
    """All files below a folder, without those whose name begins with a dot or, as those of Spark, a low line."""
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        yield from (os.path.join(where, name) for name in names if not name.startswith((".", "_")))


def _kind(path: str) -> str | None:
    """The kind of a file by its suffix; None for any other suffix."""
    return next((kind for kind, suffixes in SUFFIXES.items() if plain_name(path).endswith(suffixes)), None)


def check_json_fields(key: str, source: SourceConfig, path: str) -> None:
    """Raise `UserError` if none of the first records of a JSONL file has the fields of the documents."""
    names = dict.fromkeys(name for record in _first_records(path) for name in record)
    if names:
        check_fields(key, source, path, names=names)


def _first_records(path: str) -> Iterator[dict[str, Any]]:
    """The first objects of a file; what is no JSON is reported where the file is read."""
    with opened(path) as file:
        for _ in range(LOOKED_AT):
            try:
                record = json.loads(file.readline())
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def check_fields(key: str, source: SourceConfig, path: str, *, names: Iterable[str]) -> None:
    """Raise `UserError` for a field of the documents that is not among the `names` of a file's columns."""
    present = list(map(str, names))
    for field in source.fields:
        if field not in present:
            raise UserError(f"{key}.{source.setting(field)}: {path} has no column {field!r}; {nearest(field, present)}")
