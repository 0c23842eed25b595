"""Benchmark results of one checkpoint, stored in the store's cache as ranges of items.

An evaluation measures a whole table of benchmarks, but the results are stored by checkpoint, benchmark and setting: an
evaluation with one more benchmark reuses the others, and one that was killed resumes after its last finished range.
Several processes share the ranges. How the items are divided changes no result, and `store/cache/evaluations` may be
deleted. Each file begins with the hash of its rows; rows that do not have it are computed again.
"""

import gzip
import hashlib
import json
import logging
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import Interrupted
from pipelines.files import cannot_write, remove_leftovers, replacing, sha256_of
from pipelines.stage_context import Ranks, never_interrupted

logger = logging.getLogger("pipelines")

Rows = list[dict[str, Any]]

RANGE_TOKENS = 1 << 18
"""Most tokens that the sampled answers of one range may have; an item is never divided."""
POLL_SECONDS = 0.5
"""Time between two checks for a range that another process computes."""
PROGRESS_SECONDS = 10.0
"""Time between two log lines on the progress of a benchmark."""
LEFTOVER_SECONDS = 3600.0
"""Age at which a temporary file counts as left by a killed writer; writing one takes seconds."""


@dataclass(frozen=True)
class BenchmarkCache:
    """The stored results of all benchmarks on one checkpoint."""

    root: Path
    identity: Mapping[str, Any]
    """What every result depends on, such as the checkpoint."""
    ranks: Ranks = field(default_factory=Ranks)
    interrupted: Callable[[], bool] = never_interrupted

    def ranges(self, items: int, *, most: int) -> list[range]:
        """`items` divided into ranges of at most `most`, and into one for each process if there are enough items."""
        size = max(1, min(most, -(-items // self.ranks.tasks)))
        return [range(start, min(start + size, items)) for start in range(0, items, size)]

    def rows(
        self, name: str, key: Mapping[str, Any], *, ranges: Sequence[range], compute: Callable[[range], Rows]
    ) -> Rows:
        """The rows of all `ranges` of the benchmark `name`; `compute` makes those of a range that is not stored whole.

        `key` is what the rows depend on in addition to `identity`. Each process computes its share and returns when all
        ranges are stored. Raises `Interrupted` between two ranges, and `UserError` if several processes share them
        and one cannot write.
        """
        folder = self._folder(key)
        # This process computes every `tasks`-th range, unless an earlier evaluation has stored it.
        share = ranges[self.ranks.rank :: self.ranks.tasks]
        stored = {items: rows for items in share if (rows := _read(_path(folder, items))) is not None}
        missing = [items for items in share if items not in stored]
        started = logged = time.monotonic()
        for done, items in enumerate(missing, start=1):
            if self.interrupted():
                raise Interrupted("asked to stop between two ranges of items of an evaluation")
            stored[items] = self._computed(_path(folder, items), items, compute)
            now = time.monotonic()
            if now - logged > PROGRESS_SECONDS:
                logged, left = now, (now - started) / done * (len(missing) - done)
                logger.info("%s: %d of %d ranges, %.0f s left", name, done, len(missing), left)
        # The other processes compute the remaining ranges.
        for items in ranges:
            while items not in stored:
                path = _path(folder, items)
                if (rows := _read(path)) is not None:
                    stored[items] = rows
                elif path.exists():  # it was changed since it was written
                    stored[items] = self._computed(path, items, compute)
                elif self.interrupted():
                    raise Interrupted("asked to stop while another process computed a range of items of an evaluation")
                else:
                    time.sleep(POLL_SECONDS)
        return [row for items in ranges for row in stored[items]]

    def _computed(self, path: Path, items: range, compute: Callable[[range], Rows]) -> Rows:
        """The rows of a range, which are stored. Where nobody waits for them, another user's folder may stay closed."""
        content = _sealed_rows(path, compute(items))
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(gzip.compress(content, 6, mtime=0))
        except OSError as error:
            if self.ranks.tasks > 1:
                raise cannot_write(path, error) from error
            logger.warning("%s: it cannot be written (%s), so its rows are not kept", path, error.strerror)
        return _rows(content)

    def _folder(self, key: Mapping[str, Any]) -> Path:
        """The folder of a benchmark's ranges, created if it does not exist."""
        folder = self.root / sha256_of({**self.identity, **key})[:16]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        # Other stage runs may measure the same benchmark now, so only what no living writer can still need.
        remove_leftovers(folder, "*.jsonl.gz", unchanged_seconds=LEFTOVER_SECONDS)
        return folder


def _path(folder: Path, items: range) -> Path:
    return folder / f"{items.start:06d}-{items.stop:06d}.jsonl.gz"


def _sealed_rows(path: Path, rows: Rows) -> bytes:
    """Lines of JSON after their hash, which also holds their place: another range's file has another hash."""
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return _hash(path, body) + b"\n" + body


def _hash(path: Path, body: bytes) -> bytes:
    return hashlib.sha256(f"{path.parent.name}/{path.name}\n".encode() + body).hexdigest().encode()


def _read(path: Path) -> Rows | None:
    """The rows of a range; None if the file is missing, was changed or cannot be read."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.is_file() else b""
    except (OSError, EOFError, zlib.error):
        return None
    seal, _, body = content.partition(b"\n")
    return _rows(content) if seal == _hash(path, body) else None


def _rows(content: bytes) -> Rows:
    return [json.loads(line) for line in content.splitlines()[1:]]
