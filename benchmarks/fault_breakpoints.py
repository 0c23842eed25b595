"""Stops a process of a round at a file operation of a chosen phase, so that an interruption falls exactly there.

Python reports every file operation to audit hooks before it happens. The hook here is inherited by all processes that
are forked after it was installed. The harness arms it through shared memory; the first process to reach an operation of
the phase writes its process id there and waits until the harness has sent its signal.
"""

import mmap
import os
import re
import struct
import sys
import time
from typing import Any

PHASES = ("start", "saving", "publishing", "caching", "training")
"""What a process of a round does when it is interrupted. Training is most of the time and has no operation."""

PATTERNS = {
    "publishing": re.compile(r"work-\d+/result\.json|\.released|\.result\.json"),
    "saving": re.compile(r"/work-\d+/"),
    "caching": re.compile(r"/store/cache/"),
    "start": re.compile(r"/leases/|/store/(sweeps|jobs)/|STORE\.json|(spec|state)\.json"),
}
"""Phase -> paths of its operations; the first phase that matches counts."""

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR
STOPPED_SECONDS = 1.0
"""How long a stopped process waits for the harness."""


def phase_of(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The phase of an audited operation; None for one that does not change a file of a store."""
    if event == "open":
        path, _, flags = arguments
        if not (flags or 0) & WRITING or isinstance(path, int):
            return None
        names = str(path)
    elif event in CHANGES:
        # What is moved or removed at the end of a stage run, up to its lease.
        names = " ".join(str(argument) for argument in arguments[:2])
        ended = event in ("shutil.rmtree", "os.rename") and re.search(r"leases$|work-\d+$|work-\d+/\S+ ", names)
        if ended and "/resume" not in names and "/." not in names.split()[0]:
            return "publishing"
    else:
        return None
    return next((phase for phase, pattern in PATTERNS.items() if pattern.search(names)), None)


class Breakpoint:
    """Shared memory: the armed phase (0: none), operations to let pass, and the id of the process that stopped."""

    LAYOUT = struct.Struct("=iii")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self.LAYOUT.size)
        self._harness = os.getpid()

    def install(self) -> None:
        """Install the hook in this process, which never stops itself, and all that are forked from it."""
        sys.addaudithook(self._hook)

    def _write(self, armed: int, skip: int, stopped: int) -> None:
        self._memory[:] = self.LAYOUT.pack(armed, skip, stopped)

    def wait(self, phase: str, *, skip: int, seconds: float) -> int | None:
        """Have the process that reaches the operation after `skip` others of a phase stop; returns its id, or None."""
        self._write(1 + PHASES.index(phase), skip, 0)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            _, _, stopped = self.LAYOUT.unpack(self._memory[:])
            if stopped:
                return int(stopped)
            time.sleep(0.002)
        self.release()
        return None

    def release(self) -> None:
        """Resume a stopped process."""
        self._write(0, 0, 0)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._memory[0] == 0 or not (event == "open" or event in CHANGES) or os.getpid() == self._harness:
            return
        armed, skip, stopped = self.LAYOUT.unpack(self._memory[:])
        phase = phase_of(event, arguments)
        if not armed or stopped or phase != PHASES[armed - 1]:
            return
        self._write(armed, max(0, skip - 1), 0 if skip else os.getpid())
        deadline = time.monotonic() + STOPPED_SECONDS
        while not skip and self._memory[0] and time.monotonic() < deadline:
            time.sleep(0.001)
