"""Tokens on disk: one flat file a shard, read by memory map. Loads no torch.

    FOLDER/index.json                        format, tokenizer, vocabulary, sources -> splits -> shards with sha256
    FOLDER/tokenizer/                        as `from_pretrained` reads it
    FOLDER/<source>/<split>/00000.tokens     token ids, uint16 or, for a vocabulary above 65,536, uint32, little-endian
    FOLDER/<source>/<split>/00000.documents  where each document begins, in tokens, uint64; and the number of tokens

Every document begins with the end-of-text token, and one more ends a shard. Megatron's layout, less its header: a file
that is nothing but tokens can be mapped by numpy, cut by `dd` and hashed by `sha256sum`. Formats with compressed chunks
(litdata, MosaicML's) save disk and cost a copy; tokens in 16 bits compress little.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StageFailure

FORMAT = 1
SPLITS = ("train", "validation")
VERIFIED_BYTES = 1 << 28
"""Shards that take no more than this are read and hashed whenever they are opened."""


def token_type(vocabulary: int) -> np.dtype[Any]:
    """The type that tokens of a vocabulary are kept in."""
    return np.dtype("<u2") if vocabulary <= 2**16 else np.dtype("<u4")


def fingerprint(folder: str | Path) -> str | None:
    """The sha256 of a folder's index, which holds those of all shards; None where there is no index yet."""
    path = Path(folder) / "index.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


@dataclass(frozen=True)
class ShardRows:
    """Rows of `length` + 1 tokens out of a list of shards; consecutive rows overlap by one token, and no row crosses
    from one shard to the next."""

    shards: list[NDArray[Any]]
    length: int

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([(len(shard) - 1) // self.length for shard in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int | NDArray[np.int64]) -> NDArray[Any]:
        """Row `index` [length + 1], a view of the file; or copies of several [n, length + 1]."""
        if isinstance(index, np.ndarray):
            return np.stack([self[int(i)] for i in index])
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        start = (index - first) * self.length
        return self.shards[shard][start : start + self.length + 1]


class TokenShards:
    """A folder of token shards. Sizes are checked when it is opened; hashes too where it is small, else by `verify`.

    Raises `StageFailure` where something is missing, truncated, of another version or does not fit its hash.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "index.json"
        if not path.is_file():
            raise StageFailure(f"{path}: there is none; make it with shaping-data prepare")
        self.index: dict[str, Any] = json.loads(path.read_text())
        if self.index.get("format") != FORMAT:
            raise StageFailure(f"{path}: format {self.index.get('format')}, and this version reads {FORMAT}")
        self.type = token_type(self.index["vocabulary"])
        for source, splits in self.index["sources"].items():
            for split, shards in splits.items():
                for shard in shards:
                    file = self._file(source, split, shard["name"])
                    found = file.stat().st_size if file.is_file() else None
                    if found != shard["tokens"] * self.type.itemsize:
                        raise StageFailure(
                            f"{file}: it has {found} bytes and the index says {shard['tokens'] * self.type.itemsize}; "
                            "copy it again or delete its folder and run shaping-data prepare"
                        )
        if self._bytes() <= VERIFIED_BYTES:
            self.verify()

    def _bytes(self) -> int:
        found = [shard["tokens"] for splits in self.index["sources"].values() for s in splits.values() for shard in s]
        return sum(found) * self.type.itemsize

    @property
    def sources(self) -> list[str]:
        """The names that mixtures may use."""
        return list(self.index["sources"])

    def _file(self, source: str, split: str, name: str) -> Path:
        return self.folder / source / split / f"{name}.tokens"

    def rows(self, source: str, split: str, length: int) -> ShardRows:
        """The rows of one source and split (`train`; anything else is the validation split)."""
        split = "train" if split == "train" else "validation"
        names = [shard["name"] for shard in self.index["sources"][source].get(split, [])]
        maps = [np.memmap(self._file(source, split, name), self.type, "r") for name in names]
        return ShardRows([shard for shard in maps if len(shard) > length], length)

    def documents(self, source: str, split: str, name: str) -> NDArray[np.uint64]:
        """Where the documents of a shard begin, ascending, and the number of its tokens at the end."""
        return np.fromfile(self._file(source, split, name).with_suffix(".documents"), "<u8")

    def verify(self) -> int:
        """Read every shard and compare it with its hash; returns how many there are."""
        count = 0
        for source, splits in self.index["sources"].items():
            for split, shards in splits.items():
                for shard in shards:
                    count += 1
                    for suffix in (".tokens", ".documents"):
                        file = self._file(source, split, shard["name"]).with_suffix(suffix)
                        with file.open("rb") as opened:
                            found = hashlib.file_digest(opened, "sha256").hexdigest()
                        if found != shard["sha256"][suffix]:
                            raise StageFailure(
                                f"{file}: its sha256 is {found[:12]} and the index says "
                                f"{shard['sha256'][suffix][:12]}; copy it again or make it again"
                            )
        return count
