"""Leases: one writer at a time, dead writers are detected, and late ones cannot do harm."""

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


def lease_elsewhere(folder: Path, number: int, job: str | None = None) -> Path:
    """Writes a lease of a process on another machine that has just sent a heartbeat."""
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


def test_exactly_one_of_many_claimants_gets_the_lease(tmp_path: Path) -> None:
    """Twenty threads at once, twenty times: exactly one gets the lease each time, and no number is given twice."""
    for _ in range(20):
        barrier, leases_won = threading.Barrier(20), []

        def race(barrier: threading.Barrier = barrier, won: list[leases.Lease] = leases_won) -> None:
            barrier.wait()
            if lease := claim(tmp_path):
                won.append(lease)

        threads = [threading.Thread(target=race) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(leases_won) == 1
        leases_won[0].release()
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
    next_lease = claim(tmp_path)
    assert next_lease is not None
    next_lease.release()


def test_a_lease_on_another_machine_expires_without_heartbeats(tmp_path: Path) -> None:
    path = lease_elsewhere(tmp_path, 1)
    assert claim(tmp_path) is None
    make_old(path, leases.EXPIRY_SECONDS + 5)
    next_lease = claim(tmp_path)
    assert next_lease is not None
    next_lease.release()


def test_age_is_measured_by_the_file_servers_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease_elsewhere(tmp_path, 1)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock is decades ahead
    assert claim(tmp_path) is None


def test_a_requeued_job_takes_over_its_earlier_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease_elsewhere(tmp_path, 1, job="12_3")
    assert claim(tmp_path) is None
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    next_lease = claim(tmp_path)
    assert next_lease is not None
    next_lease.release()


def test_heartbeats_keep_a_lease_alive_and_notice_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.02)
    lease = claim(tmp_path)
    assert lease is not None
    make_old(tmp_path / "leases" / "000001.json", 1000)
    time.sleep(0.3)
    newest = holder(tmp_path)
    assert newest is not None
    assert newest.age < 100
    assert not lease.lost
    lease_elsewhere(tmp_path, 2)
    assert not lease.is_valid()
    time.sleep(0.3)
    assert lease.lost


def test_a_late_writer_can_neither_write_nor_publish(tmp_path: Path) -> None:
    """A writer that was suspended past the end of its lease finds its folder gone."""
    path = lease_elsewhere(tmp_path, 1)
    late = tmp_path / "work-000001"
    (late / "ledger.jsonl").write_text("half\n")
    make_old(path, 1000)
    lease = claim(tmp_path)
    assert lease is not None
    assert lease.work.name == "work-000002"
    assert (lease.work / "ledger.jsonl").read_text() == "half\n"  # the new holder resumes the work
    with pytest.raises(FileNotFoundError):
        (late / "more").write_text("x")
    with pytest.raises(FileNotFoundError):
        (late / "ledger.jsonl").rename(tmp_path / "ledger.jsonl")
    lease.release()


def test_an_unreadable_lease_is_judged_by_its_age(tmp_path: Path) -> None:
    path = lease_elsewhere(tmp_path, 1)
    path.write_text("{")
    assert claim(tmp_path) is None
    make_old(path, 1000)
    next_lease = claim(tmp_path)
    assert next_lease is not None
    next_lease.release()
