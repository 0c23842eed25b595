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


def row(signature: str, status: str, **fields: object) -> Row:
    return replace(Row(signature, "pretrain", "nano/ce/seed1", status, {}, None, None), **fields)  # type: ignore[arg-type]


def test_of_many_that_are_not_done_the_first_forty_are_listed_and_the_others_counted() -> None:
    many = [row(f"{i:04d}", "failed") for i in range(45)] + [row("done", "done"), row("miss", "missing")]
    lines = list(status._status_lines(many, every=False))
    assert sum(line.startswith("failed") for line in lines) == 40
    assert lines[-1] == "... and 5 more; --all lists all of them"
    every = list(status._status_lines(many, every=True))
    assert [sum(line.startswith(word) for line in every) for word in ("failed", "done", "missing")] == [45, 1, 1]
    assert "more" not in every[-1]
    few = list(status._status_lines(many[40:], every=False))
    assert sum(line.startswith("failed") for line in few) == 5
    assert not any(line.startswith(("done", "missing", "...")) for line in few[3:])


def test_only_stages_that_have_stage_runs_are_counted() -> None:
    some = [row("a", "done"), replace(row("b", "failed"), stage="grpo"), replace(row("c", "done"), stage="grpo")]
    table = [line.split() for line in list(status._status_lines(some, every=False))[:3]]
    assert table == [["stage", "failed", "done"], ["pretrain", "1"], ["grpo", "1", "1"]]


@pytest.mark.parametrize("every", [False, True])
def test_watching_lists_finished_stage_runs_on_request(
    every: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(status, "rows", lambda store, filters: [row("abcd", "done")])
    monkeypatch.setattr(status.Live, "update", lambda self, text, refresh: shown.append(text.plain))
    status._watch(Store.create(tmp_path / "store"), [], every=every)
    assert ("abcd" in shown[-1]) == every


def test_a_row_shows_what_is_known_of_it() -> None:
    running = row("abcd", "running", step=5, steps=20, rate=1234.5, left=61.0, job="7_0", note="as recorded")
    assert list(status._row_lines(running)) == [
        "running     abcd  nano/ce/seed1:pretrain  step 5/20  1,234 tok/s  1:01 left  job 7_0",
        "            as recorded",
    ]
    failed = row("abcd", "failed", seconds=5.0, job="7_0", error="no room", log="a.err")
    assert list(status._row_lines(failed)) == [
        "failed      abcd  nano/ce/seed1:pretrain  0:05",
        "            no room; log: a.err",
    ]


def test_cancel_stops_the_jobs_that_are_active_and_records_it_for_those_that_have_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.create(tmp_path / "store")
    rows = [
        row("queued", "queued", job="7_1"),
        row("running", "running", job="7_0"),
        row("failed", "failed", job="6_0"),
        row("done", "done", job="5_0"),
    ]
    for one in rows:
        store.run("pretrain", one.signature).folder.mkdir(parents=True)
        store.run("pretrain", one.signature).write_state(one.status)
    commands: list[list[str]] = []
    monkeypatch.setattr("sweeps.monitor.slurm_queue.slurm", commands.append)
    monkeypatch.setattr(status, "rows", lambda store, filters: rows)
    assert status.cancel(["*"], str(store.root)) == 0
    assert commands == [["scancel", "7_0", "7_1"]]
    recorded = {one.signature: store.run("pretrain", one.signature).state["status"] for one in rows}
    assert recorded == {"queued": "cancelled", "running": "running", "failed": "failed", "done": "done"}
    assert capsys.readouterr().out == "2 stage runs stopped; shaping-sweeps retry resumes them\n"
