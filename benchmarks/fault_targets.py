"""The processes of a round that can be interrupted: the descendants of the harness, and jobs that have its mark."""

import contextlib
import os
import random
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fault_commands import SERVER

MARK = "SHAPING_FAULTS"
"""Environment variable that a round sets for its commands, and that Slurm passes on to their jobs."""

KINDS = ("parent", "worker", "worker", "worker", "group", "worker group", "server", "tracker", "tracker")
"""What can be interrupted; what lives for a short time more often than others."""


@dataclass(frozen=True)
class Process:
    """A live process, as /proc shows it."""

    pid: int
    parent: int
    session: int
    name: str
    command_line: str

    def send(self, number: signal.Signals, *, group: bool = False) -> bool:
        """Send a signal, to its process group if `group`; returns whether there still was a process to receive it."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)
            return True
        return False


def processes(mark: str) -> dict[int, Process]:
    """The live processes of a round by id: descendants of this process, and others with the mark."""
    live = {process.pid: process for process in _live()}
    mine = os.getpid()

    def is_descendant(process: Process | None) -> bool:
        while process is not None and process.parent != mine:
            process = live.get(process.parent)
        return process is not None

    return {pid: p for pid, p in live.items() if pid != mine and (is_descendant(p) or _has_mark(pid, mark))}


def _live() -> list[Process]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                head, rest = (folder / "stat").read_text().rsplit(")", 1)
                state, parent, _, session = rest.split()[:4]
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if state not in "ZX":
                    name = head.split("(", 1)[1]
                    found.append(Process(int(folder.name), int(parent), int(session), name, words[:300]))
    return found


def _has_mark(pid: int, mark: str) -> bool:
    with contextlib.suppress(OSError):
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def kind_of(process: Process, live: dict[int, Process], commands: Collection[int]) -> str:
    """Which of `KINDS` a process of a round is; `commands` are the ids of its commands."""
    if process.pid in commands:
        return "parent"
    if process.name == "wandb-core":
        return "tracker"
    if process.name == SERVER or "multiprocessing.forkserver" in process.command_line:
        # A worker is forked from the server, and becomes the leader of a session.
        parent = live.get(process.parent)
        is_child = parent is not None and (parent.name == SERVER or "multiprocessing.forkserver" in parent.command_line)
        return "worker" if is_child or process.session == process.pid else "server"
    return "worker" if "sweeps.execute.slurm_job" in process.command_line else "other"


def choose(
    kind: str, live: dict[int, Process], *, commands: Collection[int], near: int | None, rng: random.Random
) -> Process | None:
    """A random process of a kind, or None if there is none; one of the family of process `near` if that has one."""
    leader = {"group": "parent", "worker group": "worker"}.get(kind, kind)
    members = [p for pid, p in sorted(live.items()) if kind_of(p, live, commands) == leader]
    family = [p for p in members if near in _ancestors(p.pid, live) or (near and p.pid in _ancestors(near, live))]
    return rng.choice(family or members) if members else None


def _ancestors(pid: int, live: dict[int, Process]) -> list[int]:
    """The process itself, its parent, that one's parent and so on, as far as they are of the round."""
    chain = []
    while pid in live:
        chain.append(pid)
        pid = live[pid].parent
    return chain
