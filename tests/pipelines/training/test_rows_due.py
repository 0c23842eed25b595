"""Which steps have a row in the ledger."""

from types import SimpleNamespace
from typing import Any

from pipelines.training.next_token import NextToken


def test_the_first_step_every_interval_and_milestones_have_a_row() -> None:
    due = []
    for done in range(12):
        stage: Any = SimpleNamespace(done=done, _row_interval=5, _milestones={4, 12})
        if NextToken._is_row_due(stage):
            due.append(done + 1)
    assert due == [1, 4, 5, 10, 12]
