"""Documents of a source, read in parts that different processes can work on.

A part is a file, a stretch of a large JSONL file, some row groups of a Parquet file, or a shard of a streamed data set.
"""

import glob
import gzip
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.configuration.data import SourceConfig
from pipelines.errors import StageFailure, UserError, require

STRETCH = 1 << 26
"""Bytes of a JSONL file per part."""
ROW_GROUPS = 8
"""Row groups of a Parquet file per part."""


@dataclass(frozen=True)
class Part:
    """A piece of a source that one process reads."""

    source: str
    name: str
    """Number of the part in its source; names its shards."""
    kind: str
    path: str
    column: str
    start: int = 0
    """First byte (`jsonl`), first row group (`parquet`), or index of the shard of a streamed data set (`hub`)."""
    stop: int | None = None
    """End of the bytes or row groups, exclusive; of `hub`, the number of shards; None: the end of the file."""
    subset: str | None = None
    split: str = "train"
    revision: str | None = None


def parts_of(name: str, source: SourceConfig) -> list[Part]:
    """Returns the parts of a source, in a fixed order. Raises `UserError` if no file matches its path."""
    if source.kind == "hub":
        return _hub_parts(name, source)
    paths = sorted(path for path in glob.glob(source.path, recursive=True) if os.path.isfile(path))
    require(bool(paths), f"data.sources.{name}.path", source.path, fix="no file matches; give an existing path or glob")
    # Large files are cut into ranges of bytes or row groups, so that several processes can read them.
    ranges: list[tuple[str, int, int | None]] = []
    for path in paths:
        if source.kind == "jsonl" and not path.endswith(".gz"):  # only an uncompressed file can be entered anywhere
            size = os.path.getsize(path)
            ranges += [(path, start, min(start + STRETCH, size)) for start in range(0, size, STRETCH)]
        elif source.kind == "parquet":
            groups = _open_parquet(path).num_row_groups
            ranges += [(path, start, min(start + ROW_GROUPS, groups)) for start in range(0, groups, ROW_GROUPS)]
        else:
            ranges.append((path, 0, None))
    return [
        Part(name, f"{i:05d}", source.kind, path, source.column, start, stop)
        for i, (path, start, stop) in enumerate(ranges)
    ]


def _hub_parts(name: str, source: SourceConfig) -> list[Part]:
    shards = _open_hub(name, source).num_shards
    return [
        Part(
            name,
            f"{i:05d}",
            "hub",
            source.path,
            source.column,
            start=i,
            stop=shards,
            subset=source.subset,
            split=source.split,
            revision=source.revision,
        )
        for i in range(shards)
    ]


def documents_of(part: Part) -> Iterator[str]:
    """Yields the documents of a part. Raises `StageFailure`, with the position, for a record without a document."""
    if part.kind == "hub":
        for record in _open_hub(part.source, part).shard(num_shards=part.stop or 1, index=part.start):
            yield _document(record, part, "a record")
    elif part.kind == "parquet":
        yield from _parquet_documents(part)
    elif part.kind == "jsonl":
        yield from _jsonl_documents(part)
    else:
        with open_file(part.path) as file:
            text = io.TextIOWrapper(file, "utf-8", errors="replace").read()
        yield from (paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip())


def _parquet_documents(part: Part) -> Iterator[str]:
    file = _open_parquet(part.path)
    if part.column not in file.schema_arrow.names:
        raise StageFailure(f"{part.path}: it has no column {part.column!r}; it has {file.schema_arrow.names}")
    for group in range(part.start, part.stop or file.num_row_groups):
        for value in file.read_row_group(group, [part.column]).column(0).to_pylist():
            yield _document({part.column: value}, part, f"a record of row group {group}")


def _jsonl_documents(part: Part) -> Iterator[str]:
    """Documents of the lines that begin in [start, stop)."""
    with open_file(part.path) as file:
        offset = part.start
        if offset:
            # The line across `start` belongs to the part before. Reading from one byte earlier also covers a line that
            # begins exactly at `start`: then only the newline before it is skipped.
            file.seek(offset - 1)
            offset += len(file.readline()) - 1
        while part.stop is None or offset < part.stop:
            line = file.readline()
            if not line:
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise StageFailure(f"{part.path}: the line at byte {offset} is not JSON ({error})") from error
            yield _document(record, part, f"the line at byte {offset}")
            offset += len(line)


def _document(record: Any, part: Part, position: str) -> str:
    document = record.get(part.column) if isinstance(record, dict) else None
    if not isinstance(document, str):
        raise StageFailure(
            f"{part.path}: {position} has no text in {part.column!r}; set data.sources.{part.source}.column"
        )
    return document


def open_file(path: str) -> Any:
    """Opens a file for reading in binary; a `.gz` file is decompressed."""
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _open_parquet(path: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("data.sources.*.kind=parquet: it needs pyarrow; pip install 'shaping[data]'") from error
    return parquet.ParquetFile(path)


def _open_hub(name: str, source: SourceConfig | Part) -> Any:
    """The streamed data set of the Hub that a source or a part of it names. Raises `StageFailure` without it."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(f"data.sources.{name}.kind=hub: it needs datasets; pip install 'shaping[data]'") from error
    try:
        return load_dataset(source.path, source.subset, split=source.split, revision=source.revision, streaming=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise StageFailure(
            f"data.sources.{name}.path={source.path}: the data set cannot be read from the Hub ({reason}); correct its "
            f"name, or name files in place of it: 'data.sources.{name}={{kind:jsonl,path:FILE,column:{source.column}}}'"
        ) from error
