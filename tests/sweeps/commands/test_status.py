"""`shaping-sweeps status --watch` ends when nothing is queued or running any more."""

from pathlib import Path

import pytest

from sweeps.commands import status
from sweeps.monitor.status import Row
from sweeps.store.stage_runs import Store


def test_it_looks_again_until_nothing_is_active(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [["queued", "done"], ["running", "done"], ["done", "failed"]]
    waits: list[float] = []

    def rows(store: Store, filters: list[str]) -> list[Row]:
        return [
            Row(f"abcd{i}", "pretrain", "nano/ce/seed1", word, {}, None, None)
            for i, word in enumerate(states[len(waits)])
        ]

    monkeypatch.setattr(status, "rows", rows)
    monkeypatch.setattr(status.time, "sleep", waits.append)
    last = status._watch(Store.create(tmp_path / "store"), [], every=False)
    assert [row.status for row in last] == ["done", "failed"]
    assert waits == [2.0, 2.0]
