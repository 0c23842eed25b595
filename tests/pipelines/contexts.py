"""Stage contexts for tests, with one process and milestones that are passed to a function; and captured log lines."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.data.corpus import Corpus
from pipelines.ledger import Ledger
from pipelines.stage_context import StageContext


@dataclass(frozen=True)
class RecordedContext(StageContext):
    """A context that calls `on_milestone(model, step)` where a stage run would save a checkpoint."""

    on_milestone: Callable[[Any, int], object] = lambda model, step: None

    def save_milestone(self, model: Any, step: int, weights: Any = None) -> None:
        self.on_milestone(model, step)


@contextlib.contextmanager
def stage_context(corpus: Corpus, folder: Path, **fields: Any) -> Iterator[RecordedContext]:
    """A context whose results are written to `folder`, which is created; `fields` are those of `RecordedContext`."""
    folder.mkdir(parents=True, exist_ok=True)
    with Ledger(folder) as ledger:
        yield RecordedContext(folder, corpus, ledger, **fields)


@contextlib.contextmanager
def captured_log(level: int = logging.INFO) -> Iterator[list[logging.LogRecord]]:
    """The records that `pipelines` logs inside this context, whatever its handlers and its level."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("pipelines")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
