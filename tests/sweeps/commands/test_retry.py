"""What `retry` and `dismiss` choose, and how it is launched again; nothing is run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from sweeps.commands import retry
from sweeps.monitor import launched_sweeps
from sweeps.monitor.launched_sweeps import SweepRecord, record
from sweeps.monitor.status import Row
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import Store

STATUSES = [
    "failed",
    "interrupted",
    "cancelled",
    "blocked",
    "dismissed",
    "missing",
    "queued",
    "running",
    "corrupt",
    "done",
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


def row(signature: str, status: str, parent: str | None = None) -> Row:
    return Row(signature, "pretrain", "nano/ce/seed1", status, {}, parent, None)


def launched(store: Store, monkeypatch: pytest.MonkeyPatch, rows: list[Row]) -> list[tuple[str, set[str]]]:
    """The name of each sweep that `retry` launches again, with the stage runs."""
    calls: list[tuple[str, set[str]]] = []

    def launch(sweep: SweepRecord, opened: Store, signatures: set[str]) -> None:
        calls.append((sweep.name, signatures))

    monkeypatch.setattr(retry, "_launch", launch)
    monkeypatch.setattr(retry, "rows", lambda opened, filters=(): rows)
    retry.retry([], str(store.root))
    return calls


def sweep(store: Store, monkeypatch: pytest.MonkeyPatch, name: str, at: float, *signatures: str) -> None:
    monkeypatch.setattr(launched_sweeps.time, "time", lambda: at)
    graph = Plan({s: StageRun("pretrain", s, 1, {}, None, None, 1, {}) for s in signatures})
    record(store, graph, [[f"sweep={name}"]], name=name, launcher="local", options={"workers": 1})


def test_what_failed_or_was_stopped_is_run_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(store, monkeypatch, "one", 1.0, *STATUSES)
    assert launched(store, monkeypatch, [row(status, status) for status in STATUSES]) == [
        ("one", {"failed", "interrupted", "cancelled", "blocked"})
    ]


def test_what_it_needs_and_what_needs_it_comes_with_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(store, monkeypatch, "one", 1.0, "a", "b", "c", "d", "other")
    rows = [
        row("a", "done"),
        row("b", "missing", "a"),
        row("c", "failed", "b"),
        row("d", "missing", "c"),
        row("other", "missing", "a"),
    ]
    assert launched(store, monkeypatch, rows) == [("one", {"b", "c", "d"})]


def test_of_several_sweeps_the_newest_launches_what_it_needs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(store, monkeypatch, "new", 9.0, "a", "b")
    sweep(store, monkeypatch, "old", 1.0, "b", "c")
    rows = [row(name, "failed") for name in ("a", "b", "c")]
    assert launched(store, monkeypatch, rows) == [("new", {"a", "b"}), ("old", {"c"})]
    with pytest.raises(UserError, match=r"1 stage runs \(d, ...\): no recorded sweep needs them"):
        launched(store, monkeypatch, [row("d", "failed")])


def test_only_what_ended_without_a_result_can_be_dismissed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(status, status) for status in STATUSES]
    monkeypatch.setattr(retry, "rows", lambda opened, filters: rows)
    for one in rows:
        store.run("pretrain", one.signature).folder.mkdir(parents=True)
        store.run("pretrain", one.signature).write_state(one.status)
    retry.dismiss(["*"], str(store.root))
    dismissed = [s for s in STATUSES if store.run("pretrain", s).state["status"] == "dismissed"]
    assert dismissed == ["failed", "interrupted", "cancelled", "dismissed"]


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_only_the_chosen_stage_runs_are_launched_again(
    launcher: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the options of the first launch, in its folder, and into the store that was named."""
    calls: list[tuple[str, Any, Any, dict[str, Any]]] = []

    def launch(name: str) -> Callable[..., None]:
        return lambda cells, jobs, **options: calls.append((name, cells, jobs, options | {"folder": Path.cwd()}))

    monkeypatch.setattr("sweeps.execute.launch.launch_locally", launch("local"))
    monkeypatch.setattr("sweeps.execute.launch.launch_on_slurm", launch("slurm"))
    options = {"workers": 3} if launcher == "local" else {"partition": "big"}
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    record(store, Plan(), [["seed=5"]], name="one", launcher=launcher, options=options)
    monkeypatch.chdir(tmp_path)
    (only,) = launched_sweeps.records(store)
    retry._launch(only, store, {"a", "b"})
    ((name, (cell,), jobs, given),) = calls
    assert (name, jobs, given["only"], given["folder"]) == (launcher, [["seed=5"]], {"a", "b"}, tmp_path / "first")
    assert (cell.seed, cell.store) == (5, str(store.root))
    assert (given["workers"] if launcher == "local" else given["options"].partition) == options.popitem()[1]
