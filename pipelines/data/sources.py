"""Documents of a source, read in parts that different processes can work on, each in constant memory.

A part is a file, a stretch of a large JSONL file, every n-th block of lines of a compressed one, some row groups of a
Parquet file, or a shard of a streamed data set.
"""

import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.configuration.data import SourceConfig, template_fields
from pipelines.data.compressed_files import COMPRESSED, opened
from pipelines.data.hub import without_waiting
from pipelines.data.source_files import check_fields, check_json_fields, files_of
from pipelines.errors import StageFailure, UserError

STRETCH = 1 << 26
"""Bytes of a JSONL file per part."""
COMPRESSED_STRETCH = 1 << 20
"""Bytes of a compressed JSONL file per part, at least; several megabytes of text."""
MOST_TURNS = 8
"""Parts of a compressed file at most, since each of them decompresses all of it."""
ENOUGH_PARTS = 64
"""A source with so many compressed files keeps processes busy with one part a file."""
BLOCK = 256
"""Lines of a compressed file that one part takes in turn."""
ROW_GROUPS = 8
"""Row groups of a Parquet file per part."""
ROWS = 256
"""Rows of a Parquet file that are held as Python objects at a time."""

_SURROGATE = re.compile("[\ud800-\udfff]")


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
    """First byte (`jsonl`; its turn, if compressed), first row group (`parquet`), or index of the shard of a streamed
    data set (`hub`)."""
    stop: int | None = None
    """End of the bytes or row groups, exclusive; number of turns of a compressed file, or of shards of a data set;
    None: the end of the file."""
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    template: str | None = None
    strict: bool = False

    @property
    def fields(self) -> list[str]:
        """The fields of a record that a document consists of."""
        return [self.column] if self.template is None else template_fields(self.template)

    @property
    def size(self) -> int:
        """How large the part is among those of its source: in bytes, row groups or shards."""
        if self.kind == "hub":
            return 1
        if self.kind == "text" or self.stop is None or self.path.endswith(COMPRESSED):
            return max(1, os.path.getsize(self.path) // (self.stop or 1))
        return self.stop - self.start


def parts_of(name: str, source: SourceConfig, key: str = "data.sources") -> list[Part]:
    """Returns the parts of a source, in a fixed order; `key` is that of the mapping in which it is.

    Raises `UserError` if no file matches its path, or if a file does not have the fields of its documents.
    """
    key = f"{key}.{name}"
    if source.kind == "hub":
        shards = _hub_shards(key, source)
        ranges: list[tuple[str, int, int | None]] = [(source.path, i, shards) for i in range(shards)]
    else:
        paths = files_of(key, source)
        ranges = [(path, *span) for path in paths for span in _ranges(key, source, path, files=len(paths))]
    return [
        Part(
            name,
            f"{i:05d}",
            source.kind,
            path,
            source.column,
            start,
            stop,
            subset=source.subset,
            split=source.split,
            revision=source.revision,
            template=source.template,
            strict=source.strict,
        )
        for i, (path, start, stop) in enumerate(ranges)
    ]


def _ranges(key: str, source: SourceConfig, path: str, *, files: int) -> Iterator[tuple[int, int | None]]:
    """The (start, stop) of each part of one of the `files` files of a source. Checks the fields of its records."""
    size = os.path.getsize(path)
    if source.kind == "text":
        yield 0, None
    elif source.kind == "parquet":
        file = _open_parquet(path)
        check_fields(key, source, path, names=file.schema_arrow.names)
        for start in range(0, file.num_row_groups, ROW_GROUPS):
            yield start, min(start + ROW_GROUPS, file.num_row_groups)
    else:
        check_json_fields(key, source, path)
        if path.endswith(COMPRESSED):  # only an uncompressed file can be entered anywhere
            turns = min(-(-size // COMPRESSED_STRETCH), -(-ENOUGH_PARTS // files), MOST_TURNS)
            yield from ((turn, turns) for turn in range(max(1, turns)))
        else:
            yield from ((start, min(start + STRETCH, size)) for start in range(0, size, STRETCH))


def documents_of(part: Part) -> Iterator[str | None]:
    """Yields the document of each record of a part, None for a record without text.

    Half of a surrogate pair, which no encoding has, becomes U+FFFD. Raises `StageFailure`, with the position, for what
    is no record, and with `strict` for a record without text.
    """
    if part.kind == "text":
        with opened(part.path) as file:
            yield from filter(str.strip, _paragraphs(io.TextIOWrapper(file, "utf-8", errors="replace")))
    else:
        for position, record in records_of(part):
            yield _document(record, part, position)


def records_of(part: Part) -> Iterator[tuple[str, Any]]:
    """Yields the records of a part, each with its position in words. Raises `StageFailure` for what is no record."""
    if part.kind == "hub":
        for record in _open_hub(f"data.sources.{part.source}", part).shard(num_shards=part.stop or 1, index=part.start):
            yield "a record", record
    elif part.kind == "parquet":
        yield from _parquet_records(part)
    else:
        yield from _json_records(part)


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    """The texts between blank lines."""
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).removesuffix("\n")
            paragraph = []
    yield "".join(paragraph)


def _parquet_records(part: Part) -> Iterator[tuple[str, Any]]:
    file = _open_parquet(part.path)
    groups = range(part.start, file.num_row_groups if part.stop is None else part.stop)
    for group in groups:
        try:
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=part.fields, use_threads=False):
                for record in batch.to_pylist():
                    yield f"a record of row group {group}", record
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise StageFailure(f"{part.path}: row group {group} cannot be read ({reason}); copy it again") from error


def _json_records(part: Part) -> Iterator[tuple[str, Any]]:
    lines = _lines_in_turn(part) if part.path.endswith(COMPRESSED) else _lines_between(part)
    for offset, line in lines:
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StageFailure(f"{part.path}: the line at byte {offset} is not JSON ({error})") from error
        yield f"the line at byte {offset}", record


def _lines_between(part: Part) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that begin in [start, stop), each with the byte at which it begins."""
    with opened(part.path) as file:
        offset = part.start
        if offset:
            # The line across `start` belongs to the part before. Reading from one byte earlier also covers a line that
            # begins exactly at `start`: then only the newline before it is skipped.
            file.seek(offset - 1)
            offset += len(file.readline()) - 1
        while (part.stop is None or offset < part.stop) and (line := file.readline()):
            yield offset, line
            offset += len(line)


def _lines_in_turn(part: Part) -> Iterator[tuple[int, bytes]]:
    """Every `stop`-th block of lines of a compressed file, each line with the byte of the text at which it begins."""
    turns, offset = part.stop or 1, 0
    with opened(part.path) as file:
        for number, line in enumerate(file):
            if number // BLOCK % turns == part.start:
                yield offset, line
            offset += len(line)


def _document(record: Any, part: Part, position: str) -> str | None:
    """The document of a record: its column, or its template with the record's fields; None if it has no text."""
    document = None
    if isinstance(record, dict):
        values = [record.get(field) for field in part.fields]
        if part.template is None:
            document = values[0] if isinstance(values[0], str) else None
        elif all(isinstance(value, str | int | float) for value in values):
            document = part.template.format_map(record)
    if document is None or not document.strip():
        if part.strict:
            what = f"{part.column!r}" if part.template is None else f"a field of {part.template!r}"
            raise StageFailure(
                f"{part.path}: {position} has no text in {what}; correct it, or pass over such records with "
                f"data.sources.{part.source}.strict=false"
            )
        return None
    return encodable(document)


def encodable(text: str) -> str:
    """Returns a text with U+FFFD in place of half a surrogate pair."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _open_parquet(path: str) -> Any:
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path, pre_buffer=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: it is no Parquet file ({reason}); write or download it again") from error


def _hub_shards(key: str, source: SourceConfig) -> int:
    """The number of shards of a streamed data set; checks the fields of its records."""
    stream = _open_hub(key, source)
    names = stream.column_names or next(({**record} for record in stream), {})
    check_fields(key, source, source.path, names=names)
    return stream.num_shards


def _open_hub(key: str, source: SourceConfig | Part) -> Any:
    """The streamed data set of the Hub that a source or a part of it names. Raises `StageFailure` without it."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(f"{key}.kind=hub: it needs datasets; pip install 'shaping[data]'") from error
    if not os.path.exists(source.path):  # a folder is a data set to the library too
        without_waiting()
    try:
        return load_dataset(source.path, source.subset, split=source.split, revision=source.revision, streaming=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        way_out = f"{key}.kind=parquet (or jsonl) and {key}.path=FILE"
        raise StageFailure(
            f"{key}.path={source.path}: the data set cannot be read from the Hub ({reason}); correct its name, or name "
            f"files with the same columns in place of it: {way_out}"
        ) from error
