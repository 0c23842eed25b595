"""The processes of a command that can be interrupted, found by a variable in their environment."""

import contextlib
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

MARK = "SHAPING_FAULTS"
"""Environment variable that a round sets for its commands, and that all their descendants inherit."""


@dataclass(frozen=True)
class Target:
    """A process, or its process group."""

    KINDS: ClassVar = ("parent", "worker", "worker", "worker", "group", "worker group", "server", "tracker", "requeue")
    """What can be interrupted; workers more often than others."""

    pid: int
    parent: int
    session: int
    command_line: str
    group: bool = False

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; returns whether there still was a process to receive it."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if self.group else os.kill)(self.pid, number)
            return True
        return False


class Targets:
    """What can be interrupted at this moment. `commands` are the process ids of the commands."""

    def __init__(self, mark: str, commands: list[int]) -> None:
        self._processes = self.marked(mark)
        self._commands = set(commands)

    @staticmethod
    def marked(mark: str) -> list[Target]:
        """The live processes whose environment has the mark."""
        targets = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() not in (folder / "environ").read_bytes().split(b"\0"):
                    continue
                state, parent, _, session = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if state not in "ZX":
                    command = b" ".join(words).decode(errors="replace")[:300]
                    targets.append(Target(int(folder.name), int(parent), int(session), command))
        return targets

    def choose(self, kind: str, rng: random.Random) -> Target | None:
        """A random process of a kind of `Target.KINDS`, or None if there is none."""
        is_group = kind.endswith("group")
        leader = {"group": "parent", "worker group": "worker"}.get(kind, kind)
        members = [process for process in self._processes if self._kind(process) == leader]
        if not members:
            return None
        chosen = rng.choice(sorted(members, key=lambda process: process.pid))
        return Target(chosen.pid, chosen.parent, chosen.session, chosen.command_line, group=is_group)

    def _kind(self, process: Target) -> str:
        if process.pid in self._commands:
            return "parent"
        if "wandb" in process.command_line.split(" ")[0] or "wandb-core" in process.command_line:
            return "tracker"
        if "multiprocessing.forkserver" in process.command_line:
            # A worker is forked from the server and leads a session.
            return "worker" if process.session == process.pid else "server"
        return "worker" if "sweeps.execute.slurm_job" in process.command_line else "other"
