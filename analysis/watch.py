"""Writes a study's results again whenever a stage run has finished, until none is queued or running."""

import time
from collections.abc import Callable
from pathlib import Path

from sweeps.monitor.status import rows
from sweeps.store.stage_runs import Store

POLL_SECONDS = 3.0
"""Between two looks at the store."""
REFRESH_SECONDS = 15
"""After which an open page is read again."""


def watch(store: Store, write: Callable[[int | None], Path]) -> Path:
    """Call `write` now and after every finished stage run; returns the folder that it last wrote.

    `write` receives the seconds after which an open page reads itself again, and None for the last time, when no stage
    run is queued or running any more.
    """
    while True:
        # The statuses are read before the results, so that what finishes meanwhile is written again.
        seen = _statuses(store)
        is_active = any(status in ("running", "queued") for status in seen.values())
        folder = write(REFRESH_SECONDS if is_active else None)
        if not is_active:
            return folder
        while _statuses(store) == seen:
            time.sleep(POLL_SECONDS)


def _statuses(store: Store) -> dict[str, str]:
    """Signature -> status of every stage run of the store and of the sweeps launched into it."""
    return {row.signature: row.status for row in rows(store)}
