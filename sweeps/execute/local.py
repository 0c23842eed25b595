"""Runs the missing part of a plan on this machine: as many stage runs at once as cores, memory and GPUs allow.

Among the stage runs that could start, the one with the longest chain of work behind it goes first, so that no core
is left with one long chain at the end. A stage run that fails blocks its descendants and nothing else; one that another
command is at work on is waited for.
"""

import heapq
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait

from submitit.local.local import LocalJob

from pipelines.configuration.tracking import TrackingConfig
from sweeps.execute.display import Display
from sweeps.execute.fork_server import WarmExecutor, sentinel
from sweeps.execute.machine import Machine
from sweeps.execute.worker import perform
from sweeps.plan.cost import memory
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import Store

REFRESH_SECONDS = 0.25
"""How often the display is drawn and stage runs that others hold are looked at; an ended worker is seen at once."""
LEAST_FREE = 2**20
"""Bytes; with less room than that a disk counts as full."""
GRACE_SECONDS = 10.0
"""How long a worker that was asked to stop may take to put its things in order."""


@dataclass
class Outcome:
    """What became of a plan: signatures by fate, and the errors of those that failed."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Done before this command began, or by another command meanwhile."""
    failed: dict[str, str] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stage_seconds: float = 0.0
    """Sum of the seconds that the stage runs done here took."""


@dataclass
class _Worker:
    """A stage run at work, and what it takes of the machine."""

    run: StageRun
    job: LocalJob[bool]
    memory: int
    gpu: str | None


def execute(
    plan: Plan, store: Store, tracking: TrackingConfig, workers: int, display: Display, machine: Machine | None = None
) -> Outcome:
    """Run what `plan` misses in `store`; returns when all is done, failed or blocked.

    At most `workers` stage runs are at work at a time; 0: as many as the machine has cores, or GPUs where it has any.
    Raises `KeyboardInterrupt` after its workers have stopped, when the person asks to stop.
    """
    outcome = Outcome(skipped=[s for s, run in plan.runs.items() if _is_done(store, run)])
    display.start(plan, store, outcome)
    if len(outcome.skipped) == len(plan.runs):
        display.stop(outcome)
        return outcome
    execution = _Execution(plan, store, tracking, workers, display, machine or Machine.here(), outcome)
    began = time.time()
    try:
        execution.run()
    except KeyboardInterrupt:
        running = execution.running
        display.stopping(list(running))
        stop([worker.job for worker in running.values()])
        raise
    finally:
        outcome.seconds = time.time() - began
        display.stop(outcome)
    return outcome


def _is_done(store: Store, run: StageRun) -> bool:
    return (store.run(run.stage, run.signature).folder / "result.json").exists()


class _Execution:
    """The state of one `execute`."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        tracking: TrackingConfig,
        workers: int,
        display: Display,
        machine: Machine,
        outcome: Outcome,
    ) -> None:
        self.plan, self.store, self.tracking, self.display, self.outcome = plan, store, tracking, display, outcome
        self.workers = workers or len(machine.gpus) or machine.cores
        self.free_memory, self.free_gpus = machine.memory, list(machine.gpus)
        self.has_gpus = bool(machine.gpus)
        # One folder a command: submitit names jobs by process id, and process ids come round again.
        jobs_folder = store.root / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self.executor = WarmExecutor(jobs_folder, tracked=tracking.mode != "off")
        self.running: dict[str, _Worker] = {}
        self.elsewhere: set[str] = set()
        """Stage runs that could start but that another command holds."""
        self.waiting = set(plan.runs) - set(outcome.skipped)
        self.priority = self._chain_lengths()
        self.ready = [
            (-self.priority[s], place, s)
            for place, (s, run) in enumerate(plan.runs.items())
            if s in self.waiting and not any(need in self.waiting for need in run.needs)
        ]
        heapq.heapify(self.ready)
        self.places = {s: place for place, s in enumerate(plan.runs)}

    def _chain_lengths(self) -> dict[str, int]:
        lengths: dict[str, int] = {}
        for signature in reversed(self.plan.runs):  # children come after their parents
            lengths[signature] = 1 + max((lengths[c.signature] for c in self.plan.children(signature)), default=0)
        return lengths

    def run(self) -> None:
        """Start, await and sort stage runs until none is left."""
        while self.waiting or self.running:
            self._start()
            self.display.refresh(list(self.running))
            wait([sentinel(worker.job) for worker in self.running.values()], timeout=REFRESH_SECONDS)
            for signature, worker in list(self.running.items()):
                if worker.job.done():
                    self._end(signature, worker)
            self._look_elsewhere()

    def _start(self) -> None:
        put_off = []
        while self.ready and len(self.running) < self.workers and (self.free_gpus or not self.has_gpus):
            entry = heapq.heappop(self.ready)
            run = self.plan.runs[entry[2]]
            if run.signature not in self.waiting:
                continue  # blocked meanwhile
            if self.store.run(run.stage, run.signature).is_held():
                self.elsewhere.add(run.signature)
                continue
            needed = memory(self.plan, run, on_gpu=self.has_gpus)
            if needed > self.free_memory and self.running:
                put_off.append(entry)  # a smaller one may fit; with nothing at work the largest is tried all the same
                continue
            gpu = self.free_gpus.pop(0) if self.has_gpus else None
            self.waiting.remove(run.signature)
            self.executor.environment = {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {}
            job = self.executor.submit(perform, str(self.store.root), run.spec, self.tracking)
            assert isinstance(job, LocalJob)
            self.running[run.signature] = _Worker(run, job, needed, gpu)
            self.free_memory -= needed
            self.display.started(run)
        for entry in put_off:
            heapq.heappush(self.ready, entry)

    def _end(self, signature: str, worker: _Worker) -> None:
        """Sort a stage run whose worker has ended into done or failed (blocking what needs it)."""
        del self.running[signature]
        self.free_memory += worker.memory
        if worker.gpu is not None:
            self.free_gpus.append(worker.gpu)
        stored = self.store.run(worker.run.stage, signature)
        if result := stored.result:
            try:
                here = worker.job.result()
            except Exception:  # it is published; only submitit's own note of that found no room on the disk
                here = True
            if here:
                self.outcome.done.append(signature)
                self.outcome.stage_seconds += result["seconds"]
            else:  # another command was quicker
                self.outcome.skipped.append(signature)
            self._free_children(signature)
        else:
            attempts = stored.state.get("attempts") or [{}]
            error = attempts[-1].get("error")
            if not error:
                code = worker.job._process.poll() if worker.job._process else None
                error = self._silence(code)
            self.outcome.failed[signature] = f"{error}; log: {worker.job.paths.stderr}"
            for descendant in self.plan.descendants(signature):
                if descendant.signature in self.waiting:
                    self.waiting.remove(descendant.signature)
                    self.outcome.blocked.append(descendant.signature)
        self.display.ended(worker.run, self.outcome)

    def _silence(self, code: int | None) -> str:
        """Why a worker ended without a word: on a full disk it cannot leave one."""
        if shutil.disk_usage(self.store.root).free < LEAST_FREE:
            return f"store={self.store.root}: its disk is full; make room there and give the same command again"
        return f"its worker died without a word ({cause(code)})"

    def _free_children(self, signature: str) -> None:
        for child in self.plan.children(signature):
            if child.signature in self.waiting and all(_is_done(self.store, self.plan.runs[n]) for n in child.needs):
                heapq.heappush(self.ready, self._entry(child.signature))

    def _entry(self, signature: str) -> tuple[int, int, str]:
        return (-self.priority[signature], self.places[signature], signature)

    def _look_elsewhere(self) -> None:
        """Stage runs that another command held: done by it, or free again."""
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


def cause(code: int | None) -> str:
    """Why a process ended, by its exit code; a negative one is a signal."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}, perhaps out of memory" if -code == signal.SIGKILL else name
    return f"exit code {code}"


def stop(jobs: list[LocalJob[bool]]) -> None:
    """Ask workers to stop, wait a little, then kill those that have not; a second Ctrl-C kills at once."""
    pending: Callable[[], list[LocalJob[bool]]] = lambda: [job for job in jobs if not job.done()]  # noqa: E731
    for job in jobs:
        job.cancel()
    try:
        deadline = time.time() + GRACE_SECONDS
        while pending() and time.time() < deadline:
            wait([sentinel(job) for job in pending()], timeout=REFRESH_SECONDS)
    except KeyboardInterrupt:
        pass
    for job in pending():
        if job._process is not None:
            job._process.send_signal(signal.SIGKILL)
