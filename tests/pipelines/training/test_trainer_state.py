"""When a trainer state is saved without an interruption."""

from types import SimpleNamespace

import pytest

from pipelines.training import trainer_state
from pipelines.training.trainer_state import every


def test_a_state_is_due_once_in_each_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next interval begins where the state was due, not where the last one ended."""
    now = 100.0
    monkeypatch.setattr(trainer_state, "time", SimpleNamespace(monotonic=lambda: now))
    is_due, due = every(900.0), []
    for passed in (0, 899, 900, 901, 1799, 1800, 5000, 5001, 5899, 5900):
        now = 100.0 + passed
        if is_due():
            due.append(passed)
    assert due == [900, 1800, 5000, 5900]
