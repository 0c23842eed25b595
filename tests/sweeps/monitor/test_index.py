"""The index of a store: one line for each stage run, read again only where something has changed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.files import read_sealed, write_sealed
from sweeps.monitor import index
from sweeps.monitor.index import summaries
from sweeps.store.stage_runs import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two stage runs that were planned long ago."""
    store = Store.create(tmp_path / "store")
    for name, parent in (("abc", None), ("def", {"stage": "pretrain", "signature": "abc"})):
        folder = store.root / "pretrain" / name
        folder.mkdir(parents=True)
        spec = {"stage": "pretrain", "signature": name, "version": 3, "parent": parent, "checkpoint": None}
        write_sealed(folder / "spec.json", {"format": 2, **spec, "labels": {"seed": 1}, "config": {}})
        settle(folder)
    return store


def settle(folder: Path, seconds: int = 100) -> None:
    """Let the newest change of a folder be some time ago."""
    os.utime(folder, (1_700_000_000 + seconds, 1_700_000_000 + seconds))


def count_opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function that returns how many stage runs were opened since it was last called."""
    opened: list[object] = []
    summary = index._summary
    monkeypatch.setattr(index, "_summary", lambda run: (opened.append(run), summary(run))[1])

    def count() -> int:
        number = len(opened)
        opened.clear()
        return number

    return count


def test_what_has_not_changed_is_not_opened_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = count_opened(monkeypatch)
    first = summaries(store)
    assert (opened(), len(first)) == (2, 2)
    assert (first["abc"].parent, first["def"].parent) == (None, "abc")
    assert all(summary.error is None and summary.job is None for summary in first.values())
    assert summaries(store) == first
    assert opened() == 0
    # A change of one is read and remembered, though there are as many as before.
    store.run("pretrain", "abc").write_state("failed", attempts=[{"started": 1.0, "error": "no room"}])
    settle(store.root / "pretrain" / "abc", 200)
    changed = summaries(store)
    assert opened() == 1
    assert (changed["abc"].status, changed["abc"].error) == ("failed", "no room")
    assert summaries(store) == changed
    assert opened() == 0


def test_what_was_removed_leaves_the_index(store: Store) -> None:
    summaries(store)
    assert set(read_sealed(store.root / "index.json")["runs"]) == {"pretrain/abc", "pretrain/def"}
    (store.root / "pretrain" / "def" / "spec.json").unlink()
    (store.root / "pretrain" / "def").rmdir()
    assert set(summaries(store)) == {"abc"}
    assert set(read_sealed(store.root / "index.json")["runs"]) == {"pretrain/abc"}


def test_a_broken_stage_run_is_named_and_read_every_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (store.root / "pretrain" / "def" / "spec.json").write_text("{")
    settle(store.root / "pretrain" / "def")
    opened = count_opened(monkeypatch)
    for _ in range(2):
        broken = summaries(store)["def"]
        assert (broken.status, broken.parent) == ("corrupt", None)
        assert "spec.json" in str(broken.error)
    assert opened() == 3


def test_a_stage_that_cannot_be_listed_is_a_warning_and_hides_no_other(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    (store.root / "midtrain").write_text("not a folder")
    with caplog.at_level("WARNING", "sweeps"):
        assert set(summaries(store)) == {"abc", "def"}
    (record,) = caplog.records
    assert record.name == "sweeps"
    assert str(store.root / "midtrain") in record.message


def test_a_queued_stage_run_has_the_log_of_its_job_until_an_attempt_has_one(store: Store) -> None:
    run = store.run("pretrain", "abc")
    run.write_state("queued", job={"id": "7_0", "log": "of the job"})
    assert (summaries(store)["abc"].job, summaries(store)["abc"].log) == ("7_0", "of the job")
    run.write_state("running", attempts=[{"started": 1.0, "log": "first"}, {"started": 2.0, "log": "second"}])
    summary = summaries(store)["abc"]
    assert (summary.log, summary.attempts, summary.started, summary.job) == ("second", 2, 2.0, "7_0")
