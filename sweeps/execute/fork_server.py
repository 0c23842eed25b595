"""A submitit executor whose jobs start in a moment: each is forked from a process that has imported torch already.

submitit's own local executor starts a fresh interpreter for every job, which pays 10 to 20 s of imports; a nano
stage is shorter than that. Here the standard library's fork server imports the libraries once (it has one thread
and no CUDA context, so forking it is safe) and every job is a fork of it. Job files, logs and results are
submitit's own.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from submitit.core.submission import process_job
from submitit.core.utils import JobPaths
from submitit.local.local import LocalExecutor, LocalJob

PRELOAD = ["sweeps.execute.preload", "pipelines.stages"]
"""Imported once by the fork server; `pipelines.stages` brings torch, transformers and lightning."""

TRACKED = ["wandb.sdk.launch", "pandas", "requests"]
"""Imported too where runs are tracked: what `wandb.init` and a W&B table want takes two seconds."""

PR_SET_PDEATHSIG = 1


class _Forked:
    """The part of `subprocess.Popen` that submitit's `LocalJob` uses, over a multiprocessing process."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self.sentinel = process.sentinel
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.pid and self.poll() is None:
            os.kill(self.pid, number)


class WarmExecutor(LocalExecutor):
    """submitit's local executor with warm workers of one thread each; `tracked` where they log to W&B."""

    def __init__(self, folder: str | Path, tracked: bool) -> None:
        super().__init__(folder)
        self._throttling = 0.0  # submitit spaces submissions for the sake of a cluster's scheduler
        # Read when the libraries are first imported, which happens in the fork server; it inherits this.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.environment: dict[str, str] = {}
        """Set in the workers that are started next."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD + (TRACKED if tracked else []))

    def _submit_command(self, command: str) -> LocalJob[Any]:
        process = self._context.Process(target=_job, args=(str(self.folder), self.environment), daemon=False)
        with _no_main():
            process.start()
        return LocalJob(self.folder, str(process.pid), process=_Forked(process))  # type: ignore[arg-type]


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Without this, every worker would run the command's own file again, imports and all: Python's fork server takes
    `__main__` along, and does not preload it before 3.13."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def sentinel(job: LocalJob[Any]) -> int:
    """What becomes ready when the job's process ends, for `multiprocessing.connection.wait`."""
    process: Any = job._process
    assert isinstance(process, _Forked)
    return process.sentinel


def _job(folder: str, environment: dict[str, str]) -> None:
    """What a forked worker does: become submitit's task 0, with its logs, and run the pickled submission."""
    # Nothing is left running if the command is killed: the fork server ends when nobody holds the pipe to it, which a
    # worker would, and the kernel kills the worker when the fork server ends.
    server: Any = forkserver._forkserver
    os.close(server._forkserver_alive_fd)
    server._forkserver_alive_fd = None
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.freeze()  # the libraries are nobody's garbage, and looking through them would copy their memory
    gc.enable()
    os.setsid()  # Ctrl-C in the terminal reaches the command alone, which then stops its workers in order
    signal.signal(signal.SIGINT, signal.default_int_handler)
    identity = str(os.getpid())
    os.environ.update(
        **environment,
        SUBMITIT_EXECUTOR="local",
        SUBMITIT_LOCAL_JOB_ID=identity,
        SUBMITIT_LOCAL_NTASKS="1",
        SUBMITIT_LOCAL_JOB_NUM_NODES="1",
        SUBMITIT_LOCAL_NODEID="0",
        SUBMITIT_LOCAL_GLOBALID="0",
        SUBMITIT_LOCAL_LOCALID="0",
    )
    paths = JobPaths(folder, identity, 0)
    for path, descriptor in ((paths.stdout, 1), (paths.stderr, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
    while not paths.submitted_pickle.exists():  # submitit moves it into place just after it starts the job
        time.sleep(0.002)
    process_job(folder)
