"""What has been measured of a benchmark on a checkpoint, kept piece by piece in the store's cache.

An evaluation measures a whole table on one checkpoint, but its work is kept by checkpoint, benchmark and setting: an
evaluation with one benchmark more finds the others here, and one that was killed goes on after its last finished
piece. A piece is some of a benchmark's items; several processes share them out. Which pieces are there changes no
result, and `store/cache/evaluations` may be deleted.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.evaluation.samples import read_rows, write_rows

Rows = list[dict[str, Any]]

PATIENCE_SECONDS = 0.5
"""Between two looks for a piece that another process makes."""
TELL_SECONDS = 10.0
"""Between two lines on how far a benchmark is."""


@dataclass(frozen=True)
class Share:
    """Which of several processes at one evaluation this is, and whether they are to stop."""

    rank: int = 0
    tasks: int = 1
    interrupted: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Pieces:
    """The pieces of all benchmarks on one checkpoint; `identity` is what they depend on besides a benchmark's own."""

    root: Path
    identity: Mapping[str, Any]
    share: Share = Share()

    def folder(self, benchmark: Mapping[str, Any]) -> Path:
        """Where the pieces of a benchmark lie, made if need be."""
        content = json.dumps({**self.identity, **benchmark}, sort_keys=True)
        folder = self.root / hashlib.sha256(content.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def rows(
        self, name: str, benchmark: Mapping[str, Any], ranges: Sequence[range], make: Callable[[range], Rows]
    ) -> Rows:
        """The rows of all `ranges` of items, made by `make` where they are not there yet.

        Each process makes its share and returns once all are there. Raises `Interrupted` between two pieces.
        """
        from pipelines.errors import Interrupted

        folder = self.folder(benchmark)
        mine = [r for i, r in enumerate(ranges) if i % self.share.tasks == self.share.rank]
        missing = [r for r in mine if not _path(folder, r).exists()]
        began = told = time.monotonic()
        for done, items in enumerate(missing):
            if self.share.interrupted():
                raise Interrupted("told to stop between two pieces of an evaluation")
            write_rows(_path(folder, items), make(items))
            now = time.monotonic()
            if now - told > TELL_SECONDS or (len(missing) > 1 and done + 1 == len(missing)):
                told, left = now, (now - began) / (done + 1) * (len(missing) - done - 1)
                print(f"{name}: {done + 1} of {len(missing)} pieces, {left:.0f} s left", flush=True)
        for items in ranges:
            while not _path(folder, items).exists():
                if self.share.interrupted():
                    raise Interrupted("told to stop while another process had a piece of an evaluation")
                time.sleep(PATIENCE_SECONDS)
        return [row for items in ranges for row in read_rows(_path(folder, items))]


def _path(folder: Path, items: range) -> Path:
    return folder / f"{items.start:06d}-{items.stop:06d}.jsonl.gz"


def cut(items: int, size: int) -> list[range]:
    """`items` in ranges of at most `size`."""
    return [range(start, min(start + size, items)) for start in range(0, items, max(1, size))]
