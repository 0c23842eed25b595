"""Writes the token shards that `token_shards` reads."""

from array import array
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from pipelines.files import replacing, sha256


class ShardWriter:
    """Writes one shard, as a context manager.

    `PATH.tokens` and `PATH.documents` appear when it is closed without an exception; an empty shard has no files.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], end_of_text: int) -> None:
        self._path, self._dtype, self._end_of_text = path, dtype, end_of_text
        self._starts = array("Q")  # 8 bytes for each document of a part
        """Index of the first token of each document."""
        self._tokens = 0
        self._replacing = replacing(path.with_suffix(".tokens"))

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def add(self, tokens: list[int]) -> None:
        """Append a document."""
        # The file is created with the first document, so that an empty shard leaves none.
        if not self._starts:
            self._file = self._replacing.__enter__().open("wb")
        self._starts.append(self._tokens)
        self._write([self._end_of_text, *tokens])

    def _write(self, tokens: list[int]) -> None:
        self._file.write(np.array(tokens, self._dtype).tobytes())
        self._tokens += len(tokens)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._starts:
            return
        if error is None:
            self._write([self._end_of_text])  # ends the last document
        self._file.close()
        # Rename the token file, or remove it after an exception.
        self._replacing.__exit__(kind, error, traceback)
        if error is None:
            with replacing(self._path.with_suffix(".documents")) as temporary:
                np.append(np.array(self._starts, "<u8"), np.uint64(self._tokens)).tofile(temporary)

    def entry(self) -> dict[str, Any] | None:
        """Returns the entry of the closed shard in the index; None if it is empty."""
        if not self._starts:
            return None
        hashes = {suffix: sha256(self._path.with_suffix(suffix)) for suffix in (".tokens", ".documents")}
        return {
            "name": self._path.name,
            "tokens": self._tokens,
            "documents": len(self._starts),
            "sha256": hashes,
        }
