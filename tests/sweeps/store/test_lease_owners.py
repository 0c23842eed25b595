"""When a lease is dead, for every kind of owner and age; and what a holder's own clock has to do with it."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.store import leases
from sweeps.store.leases import Holder, Owner, claim, holder

HERE = Owner.myself()
ELSEWHERE = replace(HERE, host="elsewhere", boot="another/1")


def alive(owner: Owner | None, *, age: float = 0.0, released: bool = False) -> bool:
    return Holder(1, owner, released, age).alive


def test_a_process_of_this_machine_lives_as_long_as_it_runs_whatever_its_heartbeat() -> None:
    assert alive(HERE)
    assert alive(HERE, age=1e6)
    assert not alive(HERE, released=True)


def test_a_process_id_that_is_used_again_keeps_no_lease_alive() -> None:
    """A live process with the number of a dead one began at another time."""
    assert not alive(replace(HERE, began=HERE.began + 1))
    assert not alive(replace(HERE, began=HERE.began - 1))
    assert alive(replace(HERE, pid=os.getppid(), began=leases._start_time(os.getppid()) or 0))


def test_a_zombie_holds_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 30
    while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    began = int(Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    assert not alive(replace(HERE, pid=process.pid, began=began))
    process.wait()
    assert not alive(replace(HERE, pid=process.pid, began=began))


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"boot": "another/1"}, {"host": "elsewhere", "boot": "x"}])
def test_elsewhere_only_heartbeats_tell(other: dict[str, str]) -> None:
    """On another machine, after another boot, or in another container of this machine: 60 seconds."""
    owner = replace(HERE, **other)  # type: ignore[arg-type]
    assert alive(owner, age=59.9)
    assert not alive(owner, age=60.0)
    assert not alive(owner, released=True)
    gone = replace(owner, pid=2**22 + 1)
    assert alive(gone, age=59.9), "a process id of another machine says nothing here"


def test_a_lease_without_an_owner_is_judged_by_its_age() -> None:
    assert alive(None, age=59.9)
    assert not alive(None, age=60.1)


@pytest.mark.parametrize(("restart", "lives"), [(0, False), (1, False), (2, True), (3, True)])
def test_only_earlier_runs_of_the_same_job_are_over(monkeypatch: pytest.MonkeyPatch, restart: int, lives: bool) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert alive(replace(ELSEWHERE, job="7", restart=restart)) == lives
    assert alive(replace(ELSEWHERE, job="8", restart=restart))
    assert alive(replace(ELSEWHERE, job=None, restart=restart))


def test_a_holder_has_time_for_several_heartbeats_before_others_may_take_over() -> None:
    assert leases.HEARTBEAT_SECONDS * 5 < leases.EXPIRY_SECONDS


def test_the_newest_of_many_leases_counts(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    folder.mkdir()
    for number in (2, 10, 9):
        (folder / f"{number:06d}.json").write_text(json.dumps(vars(replace(ELSEWHERE, user=f"u{number}"))))
    (folder / "000009.released").touch()
    (folder / "0000011.json").touch()  # of another length: no lease
    newest = holder(tmp_path, now=time.time() + 30)
    assert newest is not None
    assert newest.owner is not None
    assert (newest.number, newest.owner.user, newest.released) == (10, "u10", False)
    assert newest.age == pytest.approx(30, abs=5)
    assert claim(tmp_path) is None
    (folder / "000010.released").touch()
    lease = claim(tmp_path)
    assert lease is not None
    assert (lease.number, lease.work.name) == (11, "work-000011")
    lease.release()


def test_the_work_of_the_newest_holder_is_taken_over_and_that_of_others_removed(tmp_path: Path) -> None:
    for number in (1, 3, 2):
        work = tmp_path / f"work-{number:06d}"
        work.mkdir()
        (work / "of").write_text(str(number))
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "000003.json").write_text(json.dumps(vars(ELSEWHERE)))
    (tmp_path / "leases" / "000003.released").touch()
    lease = claim(tmp_path)
    assert lease is not None
    assert [path.name for path in tmp_path.glob("work-*")] == ["work-000004"]
    assert (lease.work / "of").read_text() == "3"
    lease.release()


@pytest.mark.parametrize(
    "content",
    [
        {**vars(HERE), "pid": "7"},
        {**vars(HERE), "more": 1},
        {key: value for key, value in vars(HERE).items() if key != "restart"},
        {**vars(HERE), "job": 7},
        [1],
        "text",
    ],
)
def test_what_is_not_the_content_of_a_lease_names_no_owner(content: object) -> None:
    assert Owner.from_json(content) is None


def test_an_owner_survives_its_file() -> None:
    assert Owner.from_json(json.loads(json.dumps(vars(HERE)))) == HERE
