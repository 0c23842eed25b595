"""Runs the missing part of a plan on this machine: as many stage runs at once as cores, memory and GPUs allow.

Among the stage runs that can start, the one with the longest chain of stage runs after it starts first, so that no core
is left with one long chain at the end. A failed stage run blocks only its descendants; one that another command is
running is waited for.
"""

import contextlib
import errno
import heapq
import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from submitit.local.local import LocalJob

from pipelines.configuration.tracking import TrackingConfig
from pipelines.cores import CORES_VARIABLE
from pipelines.errors import Stopped, UserError
from pipelines.files import cannot_write, why_full
from pipelines.logs import LEVEL_VARIABLE
from sweeps.execute.display import Display
from sweeps.execute.fork_server import THREADS
from sweeps.execute.local_executor import ForkedExecutor
from sweeps.execute.machine import Machine, threads_wanted
from sweeps.execute.worker import run_submitted
from sweeps.monitor.status import tail
from sweeps.plan.cost import memory, useful_threads
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import Store

REFRESH_SECONDS = 0.25
"""How often the display is updated and stage runs of other commands are checked; an ended worker is noticed at once."""
RAISED = re.compile(r"pipelines\.errors\.(?:UserError|StageFailure): (.*)")
"""The last line of the log of a worker that could not record its error."""
FULL_DISK_BYTES = 2**20
"""With less free space than this a disk counts as full."""
GRACE_SECONDS = 60.0
"""How long a worker that was asked to stop may take to save its state."""


@dataclass
class Outcome:
    """What became of a plan: signatures by what happened to them, and the errors of the failed ones."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Done before this command started, or by another command meanwhile."""
    failed: dict[str, str] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stage_seconds: float = 0.0
    """Sum of the seconds of the stage runs that this command did."""


@dataclass
class _Running:
    """A stage run in progress, and what it occupies of the machine."""

    run: StageRun
    job: LocalJob[bool]
    process: BaseProcess
    memory: int
    threads: int
    gpu: str | None


def execute(
    plan: Plan,
    store: Store,
    tracking: TrackingConfig,
    *,
    display: Display,
    workers: int = 0,
    machine: Machine | None = None,
) -> Outcome:
    """Run what `plan` misses in `store`; returns when all of it is done, failed or blocked.

    At most `workers` stage runs run at a time; 0: as many as the machine has GPUs, or cores if it has no GPU.
    Fewer stage runs than cores get several threads each, as far as their models are large enough for them. On
    Ctrl-C, SIGTERM and SIGHUP raises `KeyboardInterrupt` after the workers have stopped.
    """
    # What is done already needs no worker; if that is everything, the fork server is not started.
    outcome = _done_before(plan, store)
    display.start(plan, store, outcome)
    if len(outcome.skipped) + len(outcome.failed) + len(outcome.blocked) == len(plan.runs):
        display.stop(outcome)
        return outcome
    execution = _Execution(
        plan,
        store,
        tracking,
        display=display,
        workers=workers,
        machine=machine or Machine.here(),
        outcome=outcome,
    )
    started = time.time()
    try:
        execution.run()
    except BaseException:
        # Whatever ends this command, a lost terminal for example, its workers save their states first.
        with contextlib.suppress(OSError, SystemExit):
            display.stopping(list(execution.running))
        stop([running.process for running in execution.running.values()])
        with contextlib.suppress(OSError, SystemExit):
            display.stopped(list(execution.running))
        raise
    finally:
        outcome.seconds = time.time() - started
        with contextlib.suppress(OSError, SystemExit):
            display.stop(outcome)
    return outcome


def _done_before(plan: Plan, store: Store) -> Outcome:
    """What is done already, what has a broken result, and what would need that."""
    outcome = Outcome()
    for signature, run in plan.runs.items():
        stored = store.run(run.stage, signature)
        if not stored.is_done:
            continue
        stored.tidy()
        try:
            _ = stored.result
            outcome.skipped.append(signature)
        except UserError as error:
            outcome.failed[signature] = str(error)
    needing = {run.signature for failed in outcome.failed for run in plan.descendants(failed)}
    outcome.blocked = [s for s in needing if s not in outcome.failed and not store.run(plan.runs[s].stage, s).is_done]
    return outcome


def _is_done(store: Store, run: StageRun) -> bool:
    return store.run(run.stage, run.signature).is_done


class _Execution:
    """The state of one call of `execute`."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        tracking: TrackingConfig,
        *,
        display: Display,
        workers: int,
        machine: Machine,
        outcome: Outcome,
    ) -> None:
        self.plan, self.store, self.tracking, self.display, self.outcome = plan, store, tracking, display, outcome
        self.threads_wanted = threads_wanted()
        self.workers = workers or len(machine.gpus) or max(1, machine.cores // (self.threads_wanted or 1))
        self.cores = machine.cores
        self.free_cores, self.free_memory, self.free_gpus = machine.cores, machine.memory, list(machine.gpus)
        self.has_gpus = bool(machine.gpus)
        # One folder per command, since submitit names jobs by process ids, which the kernel uses again.
        folder = store.root / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        self.executor = ForkedExecutor(folder, tracked=tracking.mode != "off")
        self.running: dict[str, _Running] = {}
        self.elsewhere: set[str] = set()
        """Stage runs that could start but that another command holds."""
        self.waiting = set(plan.runs) - set(outcome.skipped) - set(outcome.failed) - set(outcome.blocked)
        self.chain_lengths = self._chain_lengths()
        self.positions = {signature: position for position, signature in enumerate(plan.runs)}
        self.ready = [
            self._entry(signature)
            for signature, run in plan.runs.items()
            if signature in self.waiting and not any(need in self.waiting for need in run.needs)
        ]
        """A heap of the stage runs that can start."""
        heapq.heapify(self.ready)

    def _chain_lengths(self) -> dict[str, int]:
        """Number of stage runs on the longest path from each stage run to its last descendant."""
        lengths: dict[str, int] = {}
        for signature in reversed(self.plan.runs):  # children come after their parents in a plan
            lengths[signature] = 1 + max((lengths[c.signature] for c in self.plan.children(signature)), default=0)
        return lengths

    def _entry(self, signature: str) -> tuple[int, int, str]:
        """An entry of the heap: longest chain first, then in the plan's order."""
        return (-self.chain_lengths[signature], self.positions[signature], signature)

    def run(self) -> None:
        """Start stage runs and wait for them until none is left."""
        while self.waiting or self.running:
            self._start_ready()
            self.display.refresh(list(self.running))
            # A sentinel becomes ready when its worker ends.
            wait([running.process.sentinel for running in self.running.values()], timeout=REFRESH_SECONDS)
            for signature, running in list(self.running.items()):
                if running.job.done():
                    self._end(signature, running)
            self._check_elsewhere()
        # A worker of another command may have been killed since it published.
        for signature in self.outcome.skipped:
            self.store.run(self.plan.runs[signature].stage, signature).tidy()

    def _start_ready(self) -> None:
        """Start as many of the ready stage runs as the machine has workers, memory and GPUs for."""
        postponed = []
        while self.ready and len(self.running) < self.workers and (self.free_gpus or not self.has_gpus):
            entry = heapq.heappop(self.ready)
            run = self.plan.runs[entry[2]]
            if run.signature not in self.waiting:
                continue  # it was blocked in the meantime
            if self.store.run(run.stage, run.signature).is_held():
                self.elsewhere.add(run.signature)
                continue
            needed = memory(self.plan, run, on_gpu=self.has_gpus)
            if needed > self.free_memory and self.running:
                postponed.append(entry)  # a smaller one may fit; if nothing is running, it is tried in spite of this
                continue
            self._start(run, needed)
        for entry in postponed:
            heapq.heappush(self.ready, entry)

    def _start(self, run: StageRun, needed: int) -> None:
        """Start a worker on a stage run that needs so many bytes of memory."""
        gpu = self.free_gpus.pop(0) if self.has_gpus else None
        # The fork server has the environment of when it was started, so what may differ since is passed on.
        environment = {name: os.environ[name] for name in (LEVEL_VARIABLE,) if name in os.environ}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        threads = self._threads(run)
        environment[THREADS] = str(threads)
        environment[CORES_VARIABLE] = str(max(threads, self.cores // self.workers))
        self.waiting.remove(run.signature)
        self.executor.environment = environment
        job = self.executor.submit(run_submitted, str(self.store.root), run.spec, self.tracking)
        assert isinstance(job, LocalJob)
        self.running[run.signature] = _Running(run, job, self.executor.processes[job.job_id], needed, threads, gpu)
        self.free_cores -= threads
        self.free_memory -= needed
        self.display.started(run)

    def _threads(self, run: StageRun) -> int:
        """Threads of a worker: what the user's environment sets, else its share of the cores that are free.

        A stage run that resumes keeps its number, on which the last bits of sums may depend.
        """
        stored = self.store.run(run.stage, run.signature).reread()
        attempts = stored.readable_state.get("attempts") or [{}]
        if self.threads_wanted or ((stored.work / "resume").exists() and "threads" in attempts[-1]):
            return self.threads_wanted or int(attempts[-1]["threads"])
        can_start = min(1 + len(self.ready), self.workers - len(self.running))
        return max(1, min(self.free_cores // can_start, useful_threads(self.plan, run)))

    def _end(self, signature: str, running: _Running) -> None:
        """Count a stage run whose worker has ended as done or failed; a failure blocks what depends on it."""
        # Give back what it occupied.
        del self.running[signature]
        self.free_cores += running.threads
        self.free_memory += running.memory
        if running.gpu is not None:
            self.free_gpus.append(running.gpu)

        # The store decides, not the exit code: a worker may die after it has published the result.
        stored = self.store.run(running.run.stage, signature)
        attempts = stored.readable_state.get("attempts") or [{}]
        is_own = attempts[-1].get("pid") == running.process.pid
        if result := stored.readable_result:
            stored.tidy()
            # Another command may have done it meanwhile.
            if is_own:
                self.outcome.done.append(signature)
                self.outcome.stage_seconds += result["seconds"]
            else:
                self.outcome.skipped.append(signature)
            self._free_children(signature)
        else:
            # The worker has recorded its error, unless it was killed or could not write.
            error = (attempts[-1].get("error") if is_own else None) or unrecorded_error(
                self.store.root, running.job.paths.stderr, running.process.exitcode
            )
            self.outcome.failed[signature] = f"{error}; log: {running.job.paths.stderr}"
            self._block(signature)
        self.display.ended(running.run, self.outcome)

    def _block(self, signature: str) -> None:
        """Give up the descendants of a stage run that failed."""
        for descendant in self.plan.descendants(signature):
            if descendant.signature in self.waiting:
                self.waiting.remove(descendant.signature)
                self.outcome.blocked.append(descendant.signature)

    def _free_children(self, signature: str) -> None:
        """Make the children of a finished stage run ready that wait for nothing else."""
        for child in self.plan.children(signature):
            if child.signature in self.waiting and all(_is_done(self.store, self.plan.runs[n]) for n in child.needs):
                heapq.heappush(self.ready, self._entry(child.signature))

    def _check_elsewhere(self) -> None:
        """Look at the stage runs that another command held: some may be done, others free again."""
        for signature in list(self.elsewhere):
            run = self.plan.runs[signature]
            if _is_done(self.store, run):
                self.elsewhere.remove(signature)
                self.waiting.remove(signature)
                self.outcome.skipped.append(signature)
                self._free_children(signature)
            elif not self.store.run(run.stage, signature).is_held():
                self.elsewhere.remove(signature)
                heapq.heappush(self.ready, self._entry(signature))


def unrecorded_error(store: Path, log: Path, exit_code: int | None) -> str:
    """Why a worker ended without recording an error: it may have been unable to write to the store."""
    # A full disk may have cut the line short.
    if (raised := RAISED.match("".join(tail(log, 1)))) and log.read_bytes().endswith(b"\n"):
        return raised.group(1)
    disk = os.statvfs(store)
    if disk.f_bavail * disk.f_frsize < FULL_DISK_BYTES or (disk.f_files and not disk.f_favail):
        return f"store={store}: {why_full(store, OSError(errno.ENOSPC, ''))} and run the same command again"
    return f"its worker died without an error message ({cause(exit_code)})"


def cause(exit_code: int | None) -> str:
    """Why a process ended, by its exit code; a negative one is the number of a signal."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"{name}, perhaps out of memory" if -exit_code == signal.SIGKILL else name
    return f"exit code {exit_code}"


def stop(processes: Iterable[BaseProcess]) -> None:
    """Ask workers to stop, wait a little, then kill the rest. A second Ctrl-C kills them at once."""
    pending = list(processes)
    deadline = time.time() + GRACE_SECONDS
    while pending and time.time() < deadline:
        try:
            # Repeated, since a process that is just being forked ignores the signal.
            for process in pending:
                process.terminate()
            wait([process.sentinel for process in pending], timeout=REFRESH_SECONDS)
            pending = [process for process in pending if process.exitcode is None]
        except Stopped:
            continue
        except KeyboardInterrupt:
            break
    for process in pending:
        process.kill()
