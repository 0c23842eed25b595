"""The store's files: complete or missing, with errors that name corrupt ones."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.files import write_json, write_sealed
from sweeps.monitor.launched_sweeps import record, records
from sweeps.monitor.status import rows
from sweeps.plan.differences import explain
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.leases import Lease, claim
from sweeps.store.stage_runs import Store, StoredRun


def claimed(folder: Path) -> Lease:
    lease = claim(folder)
    assert lease is not None
    return lease


def test_a_store_is_created_and_opened_again(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "a" / "store")
    assert Store.open(tmp_path / "a" / "store") == store
    assert Store.create(tmp_path / "a" / "store") == store


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder does not exist"):
        Store.open(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="the folder is not a store"):
        Store.create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="it is a file"):
        Store.create(tmp_path / "notes.txt")
    other = tmp_path / "other"
    other.mkdir()
    (other / "STORE.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="its format is 99"):
        Store.open(other)


def test_a_store_may_be_a_link_to_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(tmp_path / "disk" / "stores" / "mine")
    assert Store.create(tmp_path / "store").root == tmp_path / "store"
    assert (tmp_path / "disk" / "stores" / "mine" / "STORE.json").exists()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match=r"it is a link to itself|Too many levels"):
        Store.create(tmp_path / "loop")


def test_a_folder_that_is_not_writable_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="cannot be written"):
        Store.create("/proc/store")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.errors import StageFailure

    path = tmp_path / "state.json"
    write_json(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageFailure, match="No space left"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


BROKEN = {
    "cut": b"{",
    "a list": b"[1]",
    "no text": b"\xff",
    "another object": b'{"a": 1}',
    "deep": b"[" * 10_000,
    "empty": b"",
    "zeros": bytes(100),
    "unsealed": b'{"status": "done", "stage": "pretrain"}',
    "a wrong seal": b'{\n "status": "done",\n "sha256": "' + b"0" * 64 + b'"\n}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_corrupt_files_are_named(tmp_path: Path, content: bytes) -> None:
    store = Store.create(tmp_path / "store")
    run = store.run("pretrain", "abc")
    run.folder.mkdir(parents=True)
    redo = f"shaping-sweeps verify --redo --store {store.root} abc"
    cases: list[tuple[str, Callable[[StoredRun], object], str]] = [
        ("spec.json", lambda run: run.spec, redo),
        ("result.json", lambda run: run.result, redo),
        ("state.json", lambda run: run.state, "delete only this file"),
    ]
    for name, read, fix in cases:
        path = run.folder / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path}: it.*; {fix}"):
            read(run.reread())
        path.unlink()
    (store.root / "STORE.json").write_bytes(content)
    with pytest.raises(UserError, match=r"STORE\.json: it |its format is None") as caught:
        Store.open(store.root)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_what_is_no_file_is_named(tmp_path: Path, make: Callable[[Path], object]) -> None:
    run = Store.create(tmp_path / "store").run("pretrain", "abc")
    run.folder.mkdir(parents=True)
    make(run.folder / "result.json")
    with pytest.raises(UserError, match=r"result\.json: it (is not a file|cannot be read)"):
        _ = run.result


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_records_of_one_stage_run_or_sweep_leave_the_others(
    tmp_path: Path, content: bytes, warnings: list[str]
) -> None:
    store = Store.create(tmp_path / "store")
    graph = Plan({f"{n:016x}": replace(planned(), signature=f"{n:016x}") for n in range(3)})
    for run in graph.runs.values():
        folder = store.run(run.stage, run.signature).folder
        folder.mkdir(parents=True)
        write_sealed(folder / "spec.json", run.spec)
    record(store, graph, [["seed=1"]], name="a", launcher="local", options={})
    record(store, graph, [["seed=2"]], name="b", launcher="local", options={})
    (store.run("pretrain", f"{1:016x}").folder / "spec.json").write_bytes(content)
    path = next((store.root / "sweeps").glob("*.json"))
    path.write_bytes(content)
    assert [run.signature for run in store.runs()] == [f"{0:016x}", f"{2:016x}"]
    assert f"{1:016x}/spec.json: it" in "\n".join(warnings)
    assert len(records(store)) == 1
    assert f"{path}: it" in "\n".join(warnings)
    with pytest.raises(UserError, match="delete only this file"):
        records(store, strict=True)
    assert explain(Plan(), planned(), store)[0] == f"{0:016x}"
    assert {row.status for row in rows(store)} == {"missing", "corrupt"}


def planned() -> StageRun:
    return StageRun("pretrain", "def", 1, {}, None, None, 1, {}, {})


def row(step: int, at: float) -> str:
    return json.dumps({"step": step, "time": at}) + "\n"


def test_time_left_follows_the_pace_of_the_newest_attempt(tmp_path: Path) -> None:
    """An attempt that resumed at step 90 has done ten steps in its hundred seconds, not a hundred."""
    store, now = Store.create(tmp_path / "store"), time.time()
    folder = store.run("pretrain", "abc").folder
    folder.mkdir(parents=True)
    (folder / "ledger.jsonl").write_text("".join(row(step, now - 5000 + step) for step in range(1, 90)))

    def left(*started: float) -> float | None:
        store.run("pretrain", "abc").write_state("running", attempts=[{"started": at} for at in started])
        return store.run("pretrain", "abc").time_left(110)

    assert left(now - 5000, now - 110) is None  # the second attempt has done no step yet
    with (folder / "ledger.jsonl").open("a") as ledger:
        ledger.write("".join(row(90 + n, now - 100 + 10 * n) for n in range(11)))
    assert left(now - 5000, now - 110) == pytest.approx(100, abs=2)
    (folder / "ledger.jsonl").write_text(row(1, now - 3))
    assert left(now - 13) == pytest.approx(109 * 10 - 3, abs=2)


def test_a_cut_last_line_is_skipped_and_other_broken_lines_are_named(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    run = store.run("pretrain", "abc")
    run.folder.mkdir(parents=True)
    ledger = run.folder / "ledger.jsonl"
    ledger.write_text('{"step": 1}\n{"step": 2}\n{"st')  # the last line was cut by a kill
    assert [row["step"] for row in run.ledger()] == [1, 2]
    assert run.last_row() == {"step": 2}
    ledger.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"ledger\.jsonl: line 2"):
        run.ledger()


def test_status_follows_files_and_leases(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")

    def status() -> str:
        return store.run("grpo", "abc").status

    assert status() == "missing"
    folder = store.run("grpo", "abc").folder
    folder.mkdir(parents=True)
    store.run("grpo", "abc").write_state("running")
    assert status() == "interrupted"
    with claimed(folder):
        assert status() == "running"
    assert status() == "interrupted"
    store.run("grpo", "abc").write_state("failed")
    assert status() == "failed"
    (folder / "result.json").touch()
    assert status() == "done"


def test_what_a_killed_worker_left_of_a_finished_stage_run_is_tidied(tmp_path: Path) -> None:
    """It was killed between publishing `result.json` and removing its lease."""
    folder = tmp_path / "pretrain" / "0123456789abcdef"
    lease = claim(folder)
    assert lease is not None
    StoredRun("pretrain", "0123456789abcdef", folder).write_state("running", attempts=[{"started": 1.0}])
    (folder / "result.json").touch()
    (folder / ".spec.json.0123abcd").write_text("{")
    stored = StoredRun("pretrain", "0123456789abcdef", folder)
    stored.tidy()
    assert (folder / "leases").exists(), "a live worker tidies by itself"
    lease.release()
    stored.tidy()
    assert sorted(path.name for path in folder.iterdir()) == ["result.json", "state.json"]
    state = stored.reread().state
    assert state["status"] == "done"
    assert state["attempts"][0]["ended"] > 1.0
    stored.reread().tidy()  # nothing is left to do


def test_an_attempt_that_ended_keeps_its_end_when_it_is_tidied(tmp_path: Path) -> None:
    run = StoredRun("pretrain", "0123456789abcdef", tmp_path / "pretrain" / "0123456789abcdef")
    claimed(run.folder).release()
    run.write_state("running", attempts=[{"started": 1.0}, {"started": 2.0, "ended": 5.0}])
    (run.folder / "result.json").touch()
    run.tidy()
    assert run.reread().state["attempts"] == [{"started": 1.0}, {"started": 2.0, "ended": 5.0}]


def test_the_work_of_an_unfinished_stage_run_is_that_of_its_newest_attempt(tmp_path: Path) -> None:
    run = Store.create(tmp_path / "store").run("pretrain", "abc")
    assert run.work == run.folder
    for number in (2, 10, 9):
        (run.folder / f"work-{number:06d}").mkdir(parents=True)
    assert run.work.name == "work-000010"
    (run.folder / "result.json").touch()
    assert run.work == run.folder


def test_no_time_is_left_of_a_step_that_takes_longer_than_those_before(tmp_path: Path) -> None:
    run, now = Store.create(tmp_path / "store").run("pretrain", "abc"), time.time()
    run.folder.mkdir(parents=True)
    (run.folder / "ledger.jsonl").write_text(row(1, now - 110) + row(2, now - 100))
    run.write_state("running", attempts=[{"started": now - 200}])
    assert run.reread().time_left(3) == 0.0
    assert run.reread().time_left(20) == pytest.approx(18 * 10 - 100, abs=2)
