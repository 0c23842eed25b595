"""Starts local worker processes in a moment: each is forked from a process that has imported torch already.

A fresh interpreter spends 10 to 20 s on imports, longer than a nano stage takes. Python's own fork server
(`multiprocessing`, start method `forkserver`) imports the libraries once; it has one thread and no CUDA context, so it
is safe to fork. Four things hold that it does not provide by itself:

* Neither the server nor a worker runs the command's own file, or imports from the working directory: see
  `_server_settings`, which relies on how `multiprocessing` finds the main module.
* No worker outlives its command, however that ends: see `_end_with_command`.
* A worker has its own log files and session, and Ctrl-C in the terminal reaches only the command: see `_run`. The
  server ignores the signals that stop a command (`sweeps.execute.preload`), since its end is the end of all workers.
* The environment of a surrounding Slurm job does not reach the libraries: see `_server_settings`.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

from pipelines.processes import die_with_parent
from sweeps.monitor.slurm_environment import without_surroundings

PRELOAD = ["sweeps.execute.preload", "pipelines.stages"]
"""Imported once by the fork server; `pipelines.stages` brings torch, transformers and Lightning."""

PRELOAD_FOR_TRACKING = ["wandb.sdk.launch", "pandas", "requests"]
"""Also imported if stage runs log to W&B: `wandb.init` and a W&B table need two seconds to import these."""

THREADS = "OMP_NUM_THREADS"
"""Environment variable with the number of threads of a process, which its children inherit."""

SERVER_ENVIRONMENT = {
    THREADS: "1",  # libraries read it when they are first imported; the server must have one thread to be forked
    "MKL_NUM_THREADS": "1",
    "PYTHONSAFEPATH": "1",  # the server is started with `python -c`, which would import from the working directory
}


@dataclass(frozen=True)
class LocalWorker:
    """A worker process and its log."""

    process: BaseProcess
    log: Path


def start_worker(
    work: Callable[[Path], object], folder: Path, *, environment: Mapping[str, str], tracked: bool
) -> LocalWorker:
    """Run `work(log)` in a forked process whose output goes to files in `folder`; `work` must be picklable.

    `environment` is set in this worker only. `tracked` has the server import W&B too, if this call starts the server.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD + (PRELOAD_FOR_TRACKING if tracked else []))
    process = context.Process(target=_run, args=(work, folder, dict(environment)), daemon=False)
    with _server_settings():
        is_new = _server_process() is None
        _start_server()
        try:
            process.start()
        except BaseException:
            # Ctrl-C while it imports the libraries: it would go on for seconds, with nobody to work for.
            if is_new and (server := _server_process()):
                os.kill(server, signal.SIGKILL)
            raise
    assert process.pid is not None
    return LocalWorker(process, _log(folder, process.pid))


def _log(folder: Path, pid: int) -> Path:
    """The file for standard error of a worker; standard output goes to the same name with the suffix `.out`."""
    return folder / f"{pid}_0_log.err"


def _server_process() -> int | None:
    """The process id of the fork server, if it was started."""
    return getattr(forkserver._forkserver, "_forkserver_pid", None)


def _start_server() -> None:
    """Start the fork server, if it does not run yet, so that Ctrl-C in the terminal does not reach it.

    It ignores Ctrl-C only once it has imported the libraries, and would print a traceback before. A signal that is
    blocked stays blocked in a new program; workers let it in again (`restore_signals`).
    """
    resource_tracker.ensure_running()  # the server starts it too, and that lets the signal in again
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def _server_settings() -> Iterator[None]:
    """What a worker and, if it does not run yet, the fork server are started with.

    `multiprocessing` has every worker run the file of `sys.modules["__main__"]` again, with all its imports, in case
    `target` is defined there. Ours never is, so an empty module takes its place meanwhile.
    """
    main, environment = sys.modules["__main__"], os.environ.copy()
    sys.modules["__main__"] = ModuleType("__main__")
    # A stage run on this machine is no rank of a surrounding job, for which Lightning would take it.
    for name in set(environment) - set(without_surroundings(environment)):
        del os.environ[name]
    os.environ.update(SERVER_ENVIRONMENT)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        os.environ.clear()
        os.environ.update(environment)


def _run(work: Callable[[Path], object], folder: Path, environment: dict[str, str]) -> None:
    """The body of a worker process."""
    _end_with_command()
    gc.freeze()  # the imported libraries stay; a collection that visits them would copy their memory
    gc.enable()  # the server has disabled it
    os.setsid()  # Ctrl-C in the terminal reaches only the command, which then asks its workers to stop
    restore_signals()
    os.environ.update(environment)
    _set_threads()
    # From here on, everything that is written to standard output and error goes to the worker's files.
    log = _log(folder, os.getpid())
    for path, descriptor in ((log.with_suffix(".out"), 1), (log, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    work(log)


def restore_signals() -> None:
    """Receive signals as a program does that a terminal starts; the fork server blocks or ignores them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _set_threads() -> None:
    """Give this worker as many threads as its environment sets; the server's own number is 1."""
    threads = os.environ[THREADS]
    os.environ["MKL_NUM_THREADS"] = threads
    if torch := sys.modules.get("torch"):  # the server has imported it
        torch.set_num_threads(int(threads))


def _end_with_command() -> None:
    """Have this worker killed as soon as the fork server or the command has ended, even by SIGKILL.

    The kernel kills a worker with its parent, the server. The server in turn ends when the command and all workers have
    ended, so a worker also watches the command.
    """
    die_with_parent()
    command = multiprocessing.parent_process()
    assert command is not None

    def watch() -> None:
        wait([command.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
