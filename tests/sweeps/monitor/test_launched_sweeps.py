"""The records of launched sweeps: which launch replaces which, and their order."""

from pathlib import Path

import pytest

from sweeps.monitor import launched_sweeps
from sweeps.monitor.launched_sweeps import record, records
from sweeps.plan.graph import Plan
from sweeps.store.stage_runs import Store


def launch(store: Store, *jobs: list[str], name: str = "") -> str:
    return record(store, Plan(), jobs, name=name, launcher="local", options={}).identity


def test_the_same_cells_in_another_order_replace_the_record(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    first = launch(store, ["seed=1"], ["seed=2"], name="before")
    assert launch(store, ["seed=2"], ["seed=1"], name="after") == first
    assert launch(store, ["seed=1", "objective=ce"]) != first
    assert sorted(sweep.name for sweep in records(store)) == ["", "after"]


def test_the_newest_launch_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "store")
    for moment in (5.0, 2.0, 9.0, 1.0, 7.0):
        monkeypatch.setattr(launched_sweeps.time, "time", lambda moment=moment: moment)
        launch(store, [f"seed={moment:.0f}"])
    assert [sweep.launched for sweep in records(store)] == [1.0, 2.0, 5.0, 7.0, 9.0]
    monkeypatch.setattr(launched_sweeps.time, "time", lambda: 10.0)
    launch(store, ["seed=1"])
    assert [sweep.jobs for sweep in records(store)][-1] == [["seed=1"]]
