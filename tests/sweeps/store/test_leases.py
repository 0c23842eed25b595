"""Leases: one writer at a time, dead writers are detected, and late ones cannot do harm."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    assert claim(tmp_path) is None, "another node of the same allocation holds it"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
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


class NFSClient:
    """This process as a client of NFS that remembers what a folder holds until it has changed the folder itself.

    The real one remembers for a minute. Calls also take up to `delay` seconds, before or after they reach the server.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, delay: float = 0.0) -> None:
        self.names: dict[str, list[str]] = {}
        self.delay, self.rng = delay, random.Random(os.getpid())
        self.listdir = os.listdir
        monkeypatch.setattr(os, "listdir", self.listed)
        monkeypatch.setattr(Path, "exists", lambda path, **_: self.exists(path))
        for owner, name, arguments in (
            (os, "link", (1,)), (Path, "unlink", (0,)), (Path, "touch", (0,)), (Path, "mkdir", (0,)),
            (Path, "rename", (0, 1)),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, self.changing(getattr(owner, name), arguments))

    def wait(self) -> None:
        time.sleep(self.rng.uniform(0, self.delay))

    def listed(self, folder: "str | Path") -> list[str]:
        self.wait()
        if str(folder) not in self.names:
            self.names[str(folder)] = self.listdir(folder)
        return self.names[str(folder)]

    def exists(self, path: Path) -> bool:
        with contextlib.suppress(OSError):
            return path.name in self.listed(path.parent)
        return False

    def changing(self, function: Callable[..., Any], arguments: tuple[int, ...]) -> Callable[..., Any]:
        """`function`, after which the folders of these arguments are no longer remembered."""

        def call(*values: Any, **keywords: Any) -> Any:
            self.wait()
            try:
                return function(*values, **keywords)
            finally:
                for position in arguments:
                    self.names.pop(str(Path(values[position]).parent), None)
                self.wait()

        return call


def test_a_client_of_nfs_notices_a_newer_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It remembers that there was none."""
    with monkeypatch.context() as patch:
        NFSClient(patch)
        lease = claim(tmp_path)
        assert lease is not None
        assert lease.is_valid()
        assert not (tmp_path / "leases" / "000002.json").exists()
        subprocess.run([sys.executable, "-c", f"open('{tmp_path}/leases/000002.json', 'w')"], check=True)
        assert not (tmp_path / "leases" / "000002.json").exists(), "the client remembers"
        assert not lease.is_valid()
        lease.release()


def test_a_suspended_holder_looks_before_it_writes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was suspended for so long that another machine has taken over, and its heartbeat has not run yet."""
    lease = claim(tmp_path)
    assert lease is not None
    lease_elsewhere(tmp_path, 2)
    assert not lease.lost  # no heartbeat has been sent since
    now = leases._clock()
    monkeypatch.setattr(leases, "_clock", lambda: now + leases.EXPIRY_SECONDS)
    assert lease.lost
    lease.release()


def _contend(folder: Path, machine: int, until: float) -> None:
    """Claims, writes and releases until `until`, on a slow file server, as a process of another machine.

    A write is one system call that depends on the name of the folder: nothing can stop one that was under way when the
    folder was renamed. What an earlier holder writes after this one has looked is noted.
    """
    patch = pytest.MonkeyPatch()
    patch.setattr(leases, "HEARTBEAT_SECONDS", 0.1)
    patch.setattr(leases, "EXPIRY_SECONDS", 1.0)
    patch.setattr(leases, "_boot", lambda: f"machine {machine}")
    client = NFSClient(patch, delay=0.03)
    rng = random.Random(machine)
    while time.time() < until:
        if lease := claim(folder):
            with contextlib.suppress(FileNotFoundError):  # it was suspended, and another machine has taken over
                before = set(client.listdir(lease.work))
                for row in range(rng.randrange(1, 20)):
                    if lease.lost:
                        break
                    (lease.work / f"{lease.number:06d} {machine} {row}").mkdir()
                    for name in set(client.listdir(lease.work)) - before:
                        number, writer, _ = map(int, name.split())
                        if number < lease.number or (number == lease.number and writer != machine):
                            (folder / f"late {name}").mkdir(exist_ok=True)
                    time.sleep(0.02)
            lease.release()
        time.sleep(rng.uniform(0, 0.05))


@pytest.mark.slow
def test_a_slow_file_server_and_suspended_holders_do_not_make_two_writers(tmp_path: Path) -> None:
    """Four machines write under leases while they are suspended for longer than a lease lasts."""
    context, rng = multiprocessing.get_context("fork"), random.Random(1)
    until = time.time() + 12
    processes = [context.Process(target=_contend, args=(tmp_path, machine, until)) for machine in range(4)]
    for process in processes:
        process.start()
    while time.time() < until - 3:
        process = rng.choice(processes)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(rng.uniform(0.5, 2.0))
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(rng.uniform(0.0, 0.3))
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert not list(tmp_path.glob("late *")), "a holder wrote after the next one had begun"
    (work,) = tmp_path.glob("work-*")
    writers = {tuple(row.name.split()[:2]) for row in work.iterdir()}
    numbers = {number for number, _ in writers}
    assert len(numbers) > 10
    assert len(writers) == len(numbers), "two machines had one lease"


def test_a_holder_looks_again_before_its_lease_can_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = claim(tmp_path)
    assert lease is not None
    lease_elsewhere(tmp_path, 2)
    checked = lease._checked
    for seconds, lost in ((49.0, False), (51.0, True)):
        monkeypatch.setattr(leases, "_clock", lambda seconds=seconds: checked + seconds)
        assert lease.lost == lost
    lease.release()


def test_a_process_that_has_ended_holds_nothing_though_nobody_asked_for_its_exit_code(tmp_path: Path) -> None:
    """Its parent is busy, so the kernel still lists it: as a zombie."""
    process = subprocess.Popen(["sleep", "60"])
    began = leases._start_time(process.pid)
    assert began is not None
    (tmp_path / "leases").mkdir()
    owner = replace(Owner.myself(), pid=process.pid, began=began)
    (tmp_path / "leases" / "000001.json").write_text(json.dumps(vars(owner)))
    assert claim(tmp_path) is None
    process.kill()
    while ") Z " not in Path(f"/proc/{process.pid}/stat").read_text():
        time.sleep(0.01)
    lease = claim(tmp_path)
    assert lease is not None
    lease.release()
    process.wait()
