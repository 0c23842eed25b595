"""Leases: one writer at a time, dead ones found out, and late ones kept from doing harm."""

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.store import leases
from sweeps.store.leases import Owner, claim, holder


def elsewhere(folder: Path, number: int, job: str | None = None) -> Path:
    """A lease of a process on another machine, with a heartbeat just now."""
    path = folder / "leases" / f"{number:06d}.json"
    path.parent.mkdir(exist_ok=True)
    owner = replace(Owner.myself(), host="elsewhere", boot="another", job=job)
    path.write_text(json.dumps(vars(owner)))
    (folder / f"work-{number:06d}").mkdir()
    return path


def make_old(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    first = claim(tmp_path)
    assert first is not None
    assert claim(tmp_path) is None
    first.release()
    second = claim(tmp_path)
    assert second is not None
    assert (first.number, second.number) == (1, 2)
    second.release()


def test_of_many_who_want_it_one_gets_it(tmp_path: Path) -> None:
    """Twenty threads at once, many times over: exactly one lease of each number, and nobody shares."""
    for _ in range(20):
        barrier, won = threading.Barrier(20), []

        def race(barrier: threading.Barrier = barrier, won: list[leases.Lease] = won) -> None:
            barrier.wait()
            if lease := claim(tmp_path):
                won.append(lease)

        threads = [threading.Thread(target=race) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].release()
    assert len(list((tmp_path / "leases").glob("*.json"))) == 20


def _hold(folder: Path, ready: "multiprocessing.synchronize.Event") -> None:
    assert claim(folder)
    ready.set()
    signal.pause()


def test_a_lease_on_this_machine_dies_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    assert claim(tmp_path) is None
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    after = claim(tmp_path)
    assert after is not None
    after.release()


def test_a_lease_elsewhere_lives_by_its_heartbeat(tmp_path: Path) -> None:
    path = elsewhere(tmp_path, 1)
    assert claim(tmp_path) is None
    make_old(path, leases.EXPIRY_SECONDS + 5)
    after = claim(tmp_path)
    assert after is not None
    after.release()


def test_age_is_told_by_the_file_servers_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(tmp_path, 1)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock is decades ahead
    assert claim(tmp_path) is None


def test_a_requeued_job_takes_its_own_lease_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(tmp_path, 1, job="12_3")
    assert claim(tmp_path) is None
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    after = claim(tmp_path)
    assert after is not None
    after.release()


def test_a_heartbeat_keeps_a_lease_up_and_sees_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.02)
    lease = claim(tmp_path)
    assert lease is not None
    make_old(tmp_path / "leases" / "000001.json", 1000)
    time.sleep(0.3)
    seen = holder(tmp_path)
    assert seen is not None
    assert seen.age < 100
    assert not lease.lost
    elsewhere(tmp_path, 2)
    assert not lease.is_mine()
    time.sleep(0.3)
    assert lease.lost


def test_a_late_writer_is_fenced_off(tmp_path: Path) -> None:
    """A writer that slept through its lease finds its folder gone: it can neither write nor publish."""
    path = elsewhere(tmp_path, 1)
    late = tmp_path / "work-000001"
    (late / "ledger.jsonl").write_text("half\n")
    make_old(path, 1000)
    lease = claim(tmp_path)
    assert lease is not None
    assert lease.work.name == "work-000002"
    assert (lease.work / "ledger.jsonl").read_text() == "half\n"  # its work goes on from there
    with pytest.raises(FileNotFoundError):
        (late / "more").write_text("x")
    with pytest.raises(FileNotFoundError):
        (late / "ledger.jsonl").rename(tmp_path / "ledger.jsonl")
    lease.release()


def test_an_unreadable_lease_is_judged_by_its_age(tmp_path: Path) -> None:
    path = elsewhere(tmp_path, 1)
    path.write_text("{")
    assert claim(tmp_path) is None
    make_old(path, 1000)
    after = claim(tmp_path)
    assert after is not None
    after.release()
