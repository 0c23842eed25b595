"""What `shaping-sweeps gc` may remove: nothing that is needed, in use, W&B's own, or new."""

import os
import time
from pathlib import Path

import pytest

from pipelines.files import write_sealed
from sweeps.monitor.upkeep import leftovers, removable
from sweeps.plan.graph import StageRun
from sweeps.store.leases import claim
from sweeps.store.stage_runs import Store, StoredRun


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


def planned(store: Store, signature: str, *, resumes: bool = False) -> StoredRun:
    """An unfinished stage run with a folder of work."""
    run = store.run("pretrain", signature)
    work = run.folder / "work-000001"
    work.mkdir(parents=True)
    (work / "ledger.jsonl").write_text("x" * 100)
    if resumes:
        (work / "resume").mkdir()
    write_sealed(run.folder / "spec.json", StageRun("pretrain", signature, 1, {}, None, None, 1, {}).spec)
    return run


def test_what_is_needed_or_written_to_now_stays(store: Store) -> None:
    needed, held = planned(store, "needed"), planned(store, "held")
    state, unfinished = planned(store, "state", resumes=True), planned(store, "unfinished")
    lease = claim(held.folder)
    assert lease is not None
    found = {item.path: (item.what, item.bytes) for item in removable(store, {"needed"}, weights=False)}
    assert found == {
        state.folder / "work-000001": ("trainer state", 100),
        unfinished.folder / "work-000001": ("unfinished work", 100),
    }
    whole = {item.path for item in removable(store, {needed.signature}, weights=True)}
    assert whole == {state.folder, unfinished.folder}
    lease.release()
    assert held.folder in {item.path for item in removable(store, {needed.signature}, weights=True)}


def old(path: Path, seconds: float = 3700.0) -> Path:
    os.utime(path, (time.time() - seconds,) * 2, follow_symlinks=False)
    return path


def test_what_killed_commands_left_is_an_hour_old_and_not_of_wandb(store: Store) -> None:
    run = planned(store, "kept")
    names = [".spec.json.0123abcd", ".clock-0123abcd", f".{'0' * 32}", ".step-000009.all-ranks"]
    gone = {run.folder / name for name in names}
    stays = {run.folder / name for name in (".hidden", ".spec.json.0123abcg", ".step-9")}
    for path in gone | stays:
        path.touch()
        old(path)
    (store.root / "wandb" / "run").mkdir(parents=True)
    of_wandb = store.root / "wandb" / "run" / ".spec.json.0123abcd"
    of_wandb.touch()
    old(of_wandb)
    (run.folder / ".result.json.0123abcd").touch()  # a moment ago
    assert {item.path for item in leftovers(store)} == gone


def test_a_command_that_never_began_leaves_a_folder_of_jobs(store: Store) -> None:
    jobs = store.root / "jobs"
    for name, file in (("never", None), ("submitted", "7_0_submitted.pkl"), ("ran", "7_0_log.err")):
        (jobs / name).mkdir(parents=True)
        if file:
            (jobs / name / file).touch()
        old(jobs / name)
    (jobs / "new").mkdir()
    empty = store.run("pretrain", "empty").folder
    empty.mkdir(parents=True)
    old(empty)
    assert {item.path for item in leftovers(store)} == {jobs / "never", empty}
