"""`shaping-sweeps status --watch` ends when nothing is active any more, and `cancel` says what it cannot stop."""

from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.commands import status
from sweeps.monitor.status import Row
from sweeps.store.leases import Owner
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


@pytest.mark.parametrize(("host", "code"), [("elsewhere", 1), (None, 0)])
def test_a_stage_run_on_another_machine_is_named_and_makes_cancel_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str | None, code: int
) -> None:
    Store.create(tmp_path / "store")
    row = Row("abcd", "pretrain", "nano/ce/seed1", "running", {}, None, None)
    monkeypatch.setattr(status, "rows", lambda store, filters: [row])
    monkeypatch.setattr(status, "_running_owner", lambda stored: host and replace(Owner.myself(), host=host))
    assert status.cancel(["*"], str(tmp_path / "store")) == code
    written = capsys.readouterr()
    assert written.out.startswith("0 stage runs stopped")
    assert written.err == ("nano/ce/seed1:pretrain: it runs on elsewhere; stop it there\n" if host else "")
