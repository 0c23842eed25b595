"""Leases decide who may write to a folder; they are numbered, so that a writer that lost its lease can do no harm.

Only link and rename are relied on, which are atomic on NFS too. The n-th lease on a folder is the file `leases/n.json`,
made by a hard link, so that exactly one of several claimants gets it. Its holder touches the file every few seconds
(the heartbeat), and adds `leases/n.released` at the end. A lease is dead when it is released, when its process is gone
(seen from the same machine), or when its heartbeat is old by the file server's clock. If the newest lease is dead,
anyone may make the next.

Fencing: the holder of lease n works in the folder `work-n`, and the holder of lease n+1 begins by renaming that to
`work-n+1`. A writer that was suspended past the end of its lease finds its folder gone and fails; publishing moves
files out of that folder, which fails too. A client of NFS may remember names in a folder for a minute, and so miss a
newer lease; it looks again after it has changed the folder itself, which is what `server_time` does.
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
from typing import Any

HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
"""A heartbeat older than this belongs to a dead writer."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lease, described so that others can check whether it is alive."""

    host: str
    boot: str
    """Identifies the boot of the machine and the namespace of process ids in it."""
    pid: int
    began: int
    """Start time of the process in the kernel's ticks, since process ids are used again."""
    job: str | None
    """Number of its Slurm job, if any."""
    user: str
    restart: int = 0
    """How often its Slurm job had been requeued."""

    @classmethod
    def myself(cls) -> "Owner":
        """This process."""
        job = None
        if "SLURM_JOB_ID" in os.environ:
            array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
            job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
        user = os.environ.get("USER") or str(os.getuid())
        return cls(
            socket.gethostname(),
            boot=_boot(),
            pid=os.getpid(),
            began=_start_time(os.getpid()) or 0,
            job=job,
            user=user,
            restart=int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        )

    @classmethod
    def from_json(cls, content: Any) -> "Owner | None":
        """The owner that a lease names, or None if it is not the content of a lease."""
        types = {"host": str, "boot": str, "pid": int, "began": int, "job": str | None, "user": str, "restart": int}
        if not isinstance(content, dict) or content.keys() != types.keys():
            return None
        return cls(**content) if all(isinstance(content[name], kind) for name, kind in types.items()) else None


@cache
def _boot() -> str:
    """`Owner.boot` of this process."""
    parts = []
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: str(os.stat("/proc/self/ns/pid").st_ino),
    ):
        with contextlib.suppress(OSError):
            parts.append(read())
    return "/".join(parts)


def _start_time(pid: int) -> int | None:
    """Start time of a live process in ticks; None if it is gone or a zombie."""
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
    """None if the file is not readable: a power cut truncated it, or its user keeps it from others."""
    released: bool
    age: float
    """Seconds since the last heartbeat, by the file server's clock."""

    @property
    def alive(self) -> bool:
        """Whether its writer may still write."""
        if self.released:
            return False
        # On the same machine the process itself is looked for; elsewhere only heartbeats tell.
        if self.owner and self.owner.boot == _boot() and self.owner.host == socket.gethostname():
            return _start_time(self.owner.pid) == self.owner.began
        # An earlier run of this job, before it was requeued, is over; another node of this run may still write.
        this = Owner.myself()
        if self.owner and self.owner.job and self.owner.job == this.job and self.owner.restart < this.restart:
            return False
        return self.age < EXPIRY_SECONDS


def holder(folder: Path, now: float | None = None) -> Holder | None:
    """The newest lease on `folder`, or None if there has never been one. `now` is the file server's time, if known."""
    # The newest lease has the highest number.
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
        touched = path.stat().st_mtime
        with path.open() as file:  # on NFS, opening a file fetches its times from the server
            touched = os.fstat(file.fileno()).st_mtime
            owner = Owner.from_json(json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        pass
    age = (server_time(leases) if now is None else now) - touched
    return Holder(number, owner, f"{number:06d}.released" in names, age)


def server_time(folder: Path) -> float:
    """The time by the clock of the server that stores `folder`; by this machine's if `folder` is not writable."""
    probe = folder / f".clock-{uuid.uuid4().hex[:8]}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _clock() -> float:
    """Seconds since the machine was started, including those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The right to write to a folder, with a thread that sends heartbeats."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._checked = _clock()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def work(self) -> Path:
        """The folder that its holder writes to."""
        return self.folder / f"work-{self.number:06d}"

    @property
    def lost(self) -> bool:
        """Whether another process had taken the folder over at the last heartbeat; cheap, reads no file.

        After so long without a heartbeat that others may have taken it over, it looks: the process was suspended.
        """
        if _clock() - self._checked > EXPIRY_SECONDS - HEARTBEAT_SECONDS:
            self._superseded()
        return self._lost.is_set()

    def is_valid(self) -> bool:
        """Whether no other process has taken the folder over, by a look at the folder now."""
        return not self._superseded()

    def _path(self, number: int) -> Path:
        return self.folder / "leases" / f"{number:06d}.json"

    def _superseded(self) -> bool:
        with contextlib.suppress(OSError):  # a server that does not answer has not accepted a newer lease either
            server_time(self.folder / "leases")
            if self._path(self.number + 1).exists() or not self._path(self.number).exists():
                self._lost.set()
            self._checked = _clock()
        return self._lost.is_set()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self._path(self.number))
            except FileNotFoundError:
                self._lost.set()
            except OSError:
                continue  # the server does not answer; if the lease expires meanwhile, the next lease's file shows it
            if self._superseded():
                return

    def release(self) -> None:
        """Let others claim the folder."""
        self._stop.set()
        with contextlib.suppress(OSError):
            self._path(self.number).with_suffix(".released").touch()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def claim(folder: Path) -> Lease | None:
    """A lease on `folder`, which takes over the unfinished work in it; None while another process holds one.

    Raises `OSError` if the folder is not writable.
    """
    leases = folder / "leases"
    while True:
        leases.mkdir(parents=True, exist_ok=True)
        newest = holder(folder)
        if newest and newest.alive:
            return None
        number = newest.number + 1 if newest else 1
        # The holder of the lease before removes the folder once the work is published, perhaps at this moment.
        with contextlib.suppress(FileNotFoundError):
            if not _link(leases, number):
                continue
            # From here on earlier holders have no folder to write to.
            lease = Lease(folder, number)
            try:
                _take_over(folder, lease.work)
            except BaseException:
                lease.release()
                raise
            return lease


def _link(leases: Path, number: int) -> bool:
    """Make the lease of that number; returns whether it is ours and not that of a faster claimant."""
    # The content is complete before the link gives it the name that counts.
    temporary = leases / f".{uuid.uuid4().hex}"
    try:
        with temporary.open("w") as file:
            json.dump(asdict(Owner.myself()), file)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, leases / f"{number:06d}.json")
        return temporary.stat().st_nlink == 2  # reliable even if the answer to `link` was lost on NFS
    finally:
        temporary.unlink(missing_ok=True)


def _take_over(folder: Path, work: Path) -> None:
    """Rename the newest folder of earlier leases to `work`, so that no earlier holder can write there any more."""
    earlier = sorted(path for path in folder.glob("work-*") if path != work)
    for path in earlier[:-1]:
        shutil.rmtree(path, ignore_errors=True)
    if earlier:
        earlier[-1].rename(work)
    else:
        work.mkdir(exist_ok=True)
