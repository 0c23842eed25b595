"""Benchmark results of one checkpoint, stored in the store's cache as ranges of items.

An evaluation measures a whole table of benchmarks, but the results are stored by checkpoint, benchmark and setting: an
evaluation with one more benchmark reuses the others, and one that was killed resumes after its last finished range.
Several processes share the ranges. How the items are divided changes no result, and `store/cache/evaluations` may be
deleted.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import Interrupted
from pipelines.evaluation.samples import read_rows, write_rows
from pipelines.files import remove_leftovers, sha256_of
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
        """The rows of all `ranges` of the benchmark `name`; `compute` makes those of a range that is not stored yet.

        `key` is what the rows depend on in addition to `identity`. Each process computes its share and returns when all
        ranges are stored. Raises `Interrupted` between two ranges.
        """
        folder = self._folder(key)
        # This process computes every `tasks`-th range, unless an earlier evaluation has stored it.
        share = ranges[self.ranks.rank :: self.ranks.tasks]
        missing = [items for items in share if not _path(folder, items).exists()]
        started = logged = time.monotonic()
        for done, items in enumerate(missing, start=1):
            if self.interrupted():
                raise Interrupted("asked to stop between two ranges of items of an evaluation")
            write_rows(_path(folder, items), compute(items))
            now = time.monotonic()
            if now - logged > PROGRESS_SECONDS:
                logged, left = now, (now - started) / done * (len(missing) - done)
                logger.info("%s: %d of %d ranges, %.0f s left", name, done, len(missing), left)
        # The other processes compute the remaining ranges.
        for items in ranges:
            while not _path(folder, items).exists():
                if self.interrupted():
                    raise Interrupted("asked to stop while another process computed a range of items of an evaluation")
                time.sleep(POLL_SECONDS)
        return [row for items in ranges for row in read_rows(_path(folder, items))]

    def _folder(self, key: Mapping[str, Any]) -> Path:
        """The folder of a benchmark's ranges, created if it does not exist."""
        folder = self.root / sha256_of({**self.identity, **key})[:16]
        folder.mkdir(parents=True, exist_ok=True)
        # Other stage runs may measure the same benchmark now, so only what no living writer can still need.
        remove_leftovers(folder, "*.jsonl.gz", unchanged_seconds=LEFTOVER_SECONDS)
        return folder


def _path(folder: Path, items: range) -> Path:
    return folder / f"{items.start:06d}-{items.stop:06d}.jsonl.gz"
