"""Files that may be compressed: `.gz` and `.zst` are decompressed while they are read, in constant memory."""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from pipelines.errors import StageFailure

COMPRESSED = (".gz", ".zst")
"""Suffixes of files that are decompressed; they may have several frames."""
BUFFER = 1 << 20
"""Bytes that are decompressed at a time."""


def plain_name(path: str) -> str:
    """Returns a path without the suffix of its compression."""
    stem, suffix = os.path.splitext(path)
    return stem if suffix in COMPRESSED else path


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Opens a file for reading in binary.

    Raises `StageFailure` with the file and the position in it if the compressed data end too early or are damaged.
    """
    if not path.endswith(COMPRESSED):
        with open(path, "rb") as file:
            yield file
        return
    with open(path, "rb") as raw:
        size = os.fstat(raw.fileno()).st_size
        try:
            with io.BufferedReader(_decompressed(raw, path), BUFFER) as file:
                yield file
        except (OSError, EOFError, zlib.error) as error:  # gzip's errors, and pyarrow's for a zstd frame
            reason = " ".join(str(error).split())
            position = size if raw.closed else raw.tell()
            raise StageFailure(
                f"{path}: its compressed data are damaged at or before byte {position:,} of {size:,} ({reason}); copy "
                "or download the file again"
            ) from error


def _decompressed(raw: BinaryIO, path: str) -> Any:
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)
    import pyarrow as pa

    # Arrow would close the file with its own, and the position at which reading failed be lost.
    return pa.CompressedInputStream(_Kept(raw), "zstd")


class _Kept(io.RawIOBase):
    """A file that stays open when its reader is closed."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def readable(self) -> bool:
        """It can only be read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Returns at most `size` bytes."""
        return self._raw.read(size)
