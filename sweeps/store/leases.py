"""Who may write a folder: leases with heartbeats, numbered so that a writer that lost its lease can do no harm.

Only operations that are atomic on NFS as well are relied on: link and rename. The n-th lease on a folder is the file
`leases/n.json`, made by a hard link, so that of two who want it one gets it. Its holder touches it every few seconds,
and adds `leases/n.released` in the end. A lease is dead when it is released, when its process is gone (seen from the
same machine), or when its heartbeat is old by the file server's own clock. Whoever finds the newest lease dead may make
the next.

Fencing: the holder of lease n works in the folder `work-n`, and the holder of lease n+1 begins by renaming that to
`work-n+1`. A writer that slept through its lease finds its folder gone and fails; everything it publishes leaves its
folder by a rename, which fails too.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
"""A heartbeat older than this belongs to a dead writer."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lease, so that it can be looked for."""

    host: str
    boot: str
    """Which start of which machine, and which space of process numbers in it."""
    pid: int
    began: int
    """Start time of the process in the kernel's ticks: process numbers come round again."""
    job: str | None
    """Slurm job, if it is one."""
    user: str

    @classmethod
    def myself(cls) -> "Owner":
        """This process."""
        job = None
        if "SLURM_JOB_ID" in os.environ:
            array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
            job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
        user = os.environ.get("USER") or str(os.getuid())
        return cls(socket.gethostname(), _machine(), os.getpid(), _began(os.getpid()) or 0, job, user)


@cache
def _machine() -> str:
    parts = []
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: str(os.stat("/proc/self/ns/pid").st_ino),
    ):
        with contextlib.suppress(OSError):
            parts.append(read())
    return "/".join(parts)


def _began(pid: int) -> int | None:
    """Start time of a living process; None where it is gone or a zombie."""
    try:
        values = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if values[0] in "ZX" else int(values[19])


@dataclass(frozen=True)
class Holder:
    """The newest lease on a folder, as others see it."""

    number: int
    owner: Owner | None
    """None where the file is not readable: it is being made, or was cut short by a power cut."""
    released: bool
    age: float
    """Seconds since the last heartbeat, by the file server's clock."""

    @property
    def alive(self) -> bool:
        """Whether its writer may still write."""
        if self.released:
            return False
        if self.owner and self.owner.boot == _machine() and self.owner.host == socket.gethostname():
            return _began(self.owner.pid) == self.owner.began
        if self.owner and self.owner.job and self.owner.job == Owner.myself().job:
            return False  # this job's own life before it was requeued
        return self.age < EXPIRY_SECONDS


def holder(folder: Path, now: float | None = None) -> Holder | None:
    """The newest lease on `folder`, or None where there was never one; `now` is the file server's time if known."""
    leases = folder / "leases"
    try:
        names = os.listdir(leases)
    except OSError:
        return None
    number = max((int(name[:6]) for name in names if re.fullmatch(r"\d{6}\.json", name)), default=0)
    if not number:
        return None
    path = leases / f"{number:06d}.json"
    owner, touched = None, 0.0
    try:
        with path.open() as file:  # opening makes an NFS client ask the server for the file's times
            touched = os.fstat(file.fileno()).st_mtime
            owner = Owner(**json.load(file))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError):
        pass
    age = (server_time(leases) if now is None else now) - touched
    return Holder(number, owner, f"{number:06d}.released" in names, age)


def server_time(folder: Path) -> float:
    """The time by the clock of the server that keeps `folder`; this machine's where nothing can be written there."""
    probe = folder / f".clock-{uuid.uuid4().hex[:8]}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


class Lease:
    """The right to write a folder, with a thread that keeps it up."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def work(self) -> Path:
        """Where its holder writes."""
        return self.folder / f"work-{self.number:06d}"

    @property
    def lost(self) -> bool:
        """Whether another was seen to have taken the folder over, at the last heartbeat; costs nothing to ask."""
        return self._lost.is_set()

    def is_mine(self) -> bool:
        """Whether no other has taken the folder over, by a look at it now."""
        return not self._superseded()

    def _path(self, number: int) -> Path:
        return self.folder / "leases" / f"{number:06d}.json"

    def _superseded(self) -> bool:
        if self._path(self.number + 1).exists():
            self._lost.set()
        return self._lost.is_set()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self._path(self.number))
            except FileNotFoundError:
                self._lost.set()
            except OSError:
                continue  # the server does not answer: the lease may run out, and then another's number shows it
            if self._superseded():
                return

    def release(self) -> None:
        """Give the folder free."""
        self._stop.set()
        with contextlib.suppress(OSError):
            self._path(self.number).with_suffix(".released").touch()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def claim(folder: Path) -> Lease | None:
    """A lease on `folder`, whose work so far is its own now; None while another holds it.

    Raises `OSError` where the folder cannot be written.
    """
    leases = folder / "leases"
    leases.mkdir(parents=True, exist_ok=True)
    while True:
        newest = holder(folder)
        if newest and newest.alive:
            return None
        number = newest.number + 1 if newest else 1
        beside = leases / f".{uuid.uuid4().hex}"
        try:
            with beside.open("w") as file:
                json.dump(asdict(Owner.myself()), file)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(beside, leases / f"{number:06d}.json")
            mine = beside.stat().st_nlink == 2  # an answer may be lost on its way; the count of links is not
        finally:
            beside.unlink(missing_ok=True)
        if mine:
            lease = Lease(folder, number)
            _take_over(folder, lease.work)
            return lease


def _take_over(folder: Path, work: Path) -> None:
    """Rename the newest work of those before to `work`, away from under whoever may still write there."""
    before = sorted(path for path in folder.glob("work-*") if path != work)
    for path in before[:-1]:
        shutil.rmtree(path, ignore_errors=True)
    if before:
        before[-1].rename(work)
    else:
        work.mkdir(exist_ok=True)
