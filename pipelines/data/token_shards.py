"""Tokens on disk: one flat file per shard, read through a memory map. Loads no torch.

    FOLDER/index.json                        format, tokenizer, vocabulary, sources -> splits -> shards with sha256
    FOLDER/tokenizer/                        for `from_pretrained`
    FOLDER/<source>/<split>/00000.tokens     token ids, uint16 or, for a vocabulary above 65,536, uint32, little-endian
    FOLDER/<source>/<split>/00000.documents  index of the first token of each document, and the number of tokens; uint64

Every document begins with the end-of-text token, and one more ends a shard. This is Megatron's layout without its
header: a file of tokens only can be mapped by numpy, cut by `dd` and hashed by `sha256sum`. Formats with compressed
chunks (litdata, MosaicML's) save disk space and cost a copy; tokens in 16 bits compress little.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StageFailure
from pipelines.files import read_json, sha256

FORMAT = 1
SPLITS = ("train", "validation")
FIX = "copy the shards again, or delete their folder and run shaping-data prepare"
VERIFIED_BYTES = 1 << 28
"""Shards of at most this size in total are hashed whenever they are opened."""
OPEN_FILES = 128
"""Token files that are mapped at a time. Each takes a file descriptor, of which a process usually has 1,024."""


def token_type(vocabulary: int) -> np.dtype[Any]:
    """Returns the type in which tokens of a vocabulary of this size are stored."""
    return np.dtype("<u2") if vocabulary <= 2**16 else np.dtype("<u4")


def fingerprint(folder: str | Path) -> str | None:
    """Returns the sha256 of a folder's index, which contains those of all shards; None if there is no index yet."""
    path = Path(folder) / "index.json"
    return sha256(path) if path.is_file() else None


@dataclass(frozen=True)
class ShardRows:
    """The rows of a list of shards, each of `length` + 1 tokens.

    Consecutive rows overlap by one token, and no row crosses from one shard to the next.
    """

    files: list[Path]
    """The token file of each shard."""
    tokens: list[int]
    """Number of tokens of each shard."""
    length: int
    open: Callable[[Path], NDArray[Any]]
    """Returns the tokens of a file."""

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Number of rows up to the end of each shard."""
        return np.cumsum([(tokens - 1) // self.length for tokens in self.tokens], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int | NDArray[np.int64]) -> NDArray[Any]:
        """Returns a copy of row `index`, shape [length + 1], or of n rows, [n, length + 1]."""
        if isinstance(index, np.ndarray):
            return np.stack([self[int(i)] for i in index])
        # The shard that contains the row, and the row's first token in it.
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first_row = int(self._ends[shard - 1]) if shard else 0
        start = (index - first_row) * self.length
        # A view would keep the file open.
        return np.array(self.open(self.files[shard])[start : start + self.length + 1])


class TokenShards:
    """A folder of token shards.

    Opening it checks the sizes of all files, and their hashes too if the folder is small; `verify` checks the hashes of
    any folder. Raises `StageFailure` if a file is missing, truncated, of another format version, or has another hash.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "index.json"
        if not path.is_file():
            raise StageFailure(f"{path}: there is none; make it with shaping-data prepare")
        self.index = read_json(path, fix=FIX)
        if self.index.get("format") != FORMAT:
            raise StageFailure(f"{path}: format {self.index.get('format')}, but this version reads {FORMAT}; {FIX}")
        self.type = token_type(self.index["vocabulary"])
        self._open = lru_cache(OPEN_FILES)(self._map)
        # Sizes are cheap to check and reveal an interrupted copy.
        total_bytes = 0
        for file, shard in self._files():
            expected = shard["tokens"] * self.type.itemsize
            actual = file.stat().st_size if file.is_file() else 0
            if actual != expected:
                raise StageFailure(f"{file}: it has {actual} bytes, not {expected} as in the index; {FIX}")
            total_bytes += expected
        if total_bytes <= VERIFIED_BYTES:
            self.verify()

    def _files(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The token file of each shard and its entry in the index."""
        for source, splits in self.index["sources"].items():
            for split, shards in splits.items():
                for shard in shards:
                    yield self._file(source, split, shard["name"]), shard

    def _file(self, source: str, split: str, name: str) -> Path:
        return self.folder / source / split / f"{name}.tokens"

    @property
    def sources(self) -> list[str]:
        """The names of the sources, which mixtures may use."""
        return list(self.index["sources"])

    def rows(self, source: str, split: str, length: int) -> ShardRows:
        """Returns the rows of one source and split; every split other than `train` is the validation split."""
        split = "train" if split == "train" else "validation"
        shards = self.index["sources"][source].get(split, [])
        files = [self._file(source, split, shard["name"]) for shard in shards]
        return ShardRows(files, [shard["tokens"] for shard in shards], length, self._open)

    def _map(self, file: Path) -> NDArray[Any]:
        return np.memmap(file, self.type, "r")

    def document_tokens(self, source: str, split: str) -> Iterator[list[int]]:
        """Yields the tokens of each document of one source and split, without the end-of-text token before it."""
        for shard in self.index["sources"][source].get(split, []):
            tokens = self._map(self._file(source, split, shard["name"]))
            starts = self.documents(source, split, shard["name"]).astype(np.int64)
            # The last entry is the number of tokens, of which the last one ends the last document.
            starts[-1] -= 1
            for start, stop in pairwise(starts):
                yield tokens[start + 1 : stop].tolist()

    def documents(self, source: str, split: str, name: str) -> NDArray[np.uint64]:
        """Returns the index of the first token of each document of a shard, ascending, and the number of its tokens."""
        return np.fromfile(self._file(source, split, name).with_suffix(".documents"), "<u8")

    def verify(self) -> int:
        """Compare every file with its hash in the index. Returns the number of shards."""
        files = list(self._files())
        for tokens, shard in files:
            for suffix, expected in shard["sha256"].items():
                file = tokens.with_suffix(suffix)
                actual = sha256(file) if file.is_file() else "missing"
                if actual != expected:
                    raise StageFailure(
                        f"{file}: its sha256 is {actual[:12]}, not {expected[:12]} as in the index; {FIX}"
                    )
        return len(files)
