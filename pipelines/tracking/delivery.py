"""Delivers a ledger to a tracker from a thread, so that its cost, its delays and its loss do not reach the stage."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from pipelines.tracking.tracker import Tracker

logger = logging.getLogger("pipelines")

WAITING_CALLS = 100_000
"""Calls that may wait for a slow tracker before it is given up."""

FINISH_SECONDS = 30.0
"""How long the end of a stage run waits for a tracker to receive the rest; a third of it if the stage was interrupted
or failed, since Slurm kills a job 30 seconds after it asked it to stop."""

Call = Callable[[Tracker], None]


class Delivery:
    """A `Tracker` that passes every call to another one in a thread; its first failure is logged and ends it."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Tracker],
        *,
        finish_seconds: float = FINISH_SECONDS,
        abandon: Callable[[], None] | None = None,
    ) -> None:
        """`abandon` ends what the tracker runs, if that does not finish in time."""
        self._name, self._start, self._finish_seconds, self._abandon = name, start, finish_seconds, abandon
        self._calls: queue.Queue[Call | None] = queue.Queue(WAITING_CALLS)
        self._lost = False
        self._thread = threading.Thread(target=self._deliver, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, row: dict[str, Any]) -> None:
        """Log one ledger row."""
        self._pass(lambda tracker: tracker.log(row))

    def samples(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Show sampled responses as a table."""
        self._pass(lambda tracker: tracker.samples(name, rows))

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Set the numbers that summarize the stage run."""
        self._pass(lambda tracker: tracker.summarize(metrics))

    def finish(self, failed: bool) -> None:
        """Finish the run; waits at most `finish_seconds` for the tracker, a third of that if the stage failed."""
        seconds = self._finish_seconds / (3 if failed else 1)
        self._pass(lambda tracker: tracker.finish(failed))
        if not self._lost:
            self._calls.put(None)
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._give_up(f"it did not finish within {seconds:g} s")
                if self._abandon:
                    self._abandon()

    def _pass(self, call: Call) -> None:
        if self._lost:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._give_up("it does not keep up")

    def _deliver(self) -> None:
        """The body of the thread."""
        try:
            tracker = self._start()
            while not self._lost and (call := self._calls.get()):
                call(tracker)
        except BaseException as error:  # a client may raise anything, SystemExit included
            self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _give_up(self, reason: str) -> None:
        if not self._lost:
            self._lost = True
            logger.warning("%s is lost (%s); the stage run continues, and its ledger has every row", self._name, reason)
