"""Starts `shaping-run` for the harness of interruptions: as users do, or forked in a moment.

A fresh command and its fork server need twelve seconds of a core for imports. A forked one has them from the harness,
and so has its fork server, which the command forks rather than starts; everything else is as in a fresh one.
"""

import contextlib
import ctypes
import importlib
import multiprocessing.util
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sweeps.execute.fork_server import PRELOAD, PRELOAD_FOR_TRACKING, THREADS, restore_signals

REPOSITORY = Path(__file__).parents[1]
SERVER = "fault-server"
"""The kernel's name of a forked fork server and of the workers that are forked from it."""

_spawn = multiprocessing.util.spawnv_passfds
_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36


def import_libraries() -> None:
    """Import what commands and their workers need, with one thread; `sweeps.execute.preload` is for the fork server."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "1"
    for name in ("sweeps.commands.run", *PRELOAD, *PRELOAD_FOR_TRACKING):
        if name != "sweeps.execute.preload":
            importlib.import_module(name)
    del os.environ[THREADS]
    if before:
        os.environ[THREADS] = before


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent has ended, so that none is lost sight of."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start_command(arguments: Sequence[str], log: Path, *, forked: bool, environment: Mapping[str, str]) -> int:
    """Start `shaping-run` in the folder of its log, as the leader of a session; returns its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        restore_signals()
        os.chdir(log.parent)
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if not forked:
            os.environ["PYTHONPATH"] = str(REPOSITORY)
            os.execv(sys.executable, [sys.executable, "-m", "sweeps.commands.run", *arguments])
        status = _run(arguments)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    finally:
        os._exit(status)


def _run(arguments: Sequence[str]) -> int:
    """Run the command in this process; returns its exit status."""
    from sweeps.commands.run import main

    multiprocessing.util.spawnv_passfds = _fork_in_place  # type: ignore[assignment]
    sys.argv = ["shaping-run", *arguments]
    status = 0
    try:
        main()
    except SystemExit as request:
        status = request.code if isinstance(request.code, int) else int(request.code is not None)
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # Python calls it at the end
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _fork_in_place(executable: bytes, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """What `multiprocessing` calls to start `python -c CODE` as its fork server or resource tracker."""
    pid = os.fork()
    if pid:
        return pid
    try:
        multiprocessing.util.spawnv_passfds = _spawn
        # What a fresh program would have: default handlers, no other descriptors, the code as its only work.
        restore_signals()
        kept = {0, 1, 2, *descriptors}
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor not in kept:
                with contextlib.suppress(OSError):  # that of the listing
                    os.close(descriptor)
        if "forkserver" in arguments[-1]:
            ctypes.CDLL(None).prctl(_PR_SET_NAME, SERVER.encode(), 0, 0, 0)
        exec(arguments[-1], {})
    finally:
        os._exit(0)
