"""Runs one stage run in a worker process: claim its folder, do the work, publish the result.

A local worker is forked from a process that has imported torch already; a Slurm job is a fresh process. Therefore this
module imports nothing heavy itself. A worker that is asked to stop (SIGUSR2 before the time limit, SIGTERM, SIGHUP,
SIGINT) lets the stage save its trainer state between two steps. Under Slurm, SIGUSR2 also requeues the job, which then
resumes.
"""

import contextlib
import logging
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from submitit import JobEnvironment

from pipelines.configuration.tracking import TrackingConfig
from pipelines.errors import Interrupted, StageFailure, UserError
from pipelines.files import flush, full_disk, sha256, write_sealed
from pipelines.logs import set_up_logging
from pipelines.published import SAVED, checked_checkpoint, saved_hashes
from pipelines.python_gc import no_collection
from sweeps.plan.names import cell_of
from sweeps.store.leases import Lease
from sweeps.store.stage_runs import FORMAT, Store, StoredRun, remove_work

VERSIONED_PACKAGES = ("shaping", "torch", "transformers", "lightning", "tokenizers", "numpy")

BOOKKEEPING = {"spec.json", "state.json", "result.json", "leases"}
"""Files and folders in a stage run's folder that the stage itself did not write."""

RESUMED = {"resume", "checkpoints", SAVED, "ledger.jsonl", "samples.jsonl", "forking.jsonl"}
"""What an attempt that resumes from a trainer state keeps of the attempt before."""

WAIT_SECONDS = 1.0
"""Between two looks at a stage run that another worker holds."""

TIME_WAS_UP = "its time was up"
"""The error of an attempt that ended shortly before its job's time limit."""

logger = logging.getLogger("sweeps")


@dataclass(frozen=True)
class Task:
    """This process, as one of the processes that work on a stage run together."""

    job: str
    """A name that all processes of one start of a job share and no other start has."""
    log: Path
    rank: int = 0
    tasks: int = 1
    """Number of processes."""
    nodes: int = 1
    slurm_job: str | None = None
    """Its number in Slurm, by which it can be requeued."""


def perform(
    root: str | Path,
    spec: dict[str, Any],
    tracking: TrackingConfig,
    *,
    task: Task,
    requeues: int = 0,
    signals: "Signals | None" = None,
) -> bool:
    """Run one stage run of the store at `root` to its end and publish it, unless it is finished already.

    Returns whether the work was done here. Every failure is recorded in `state.json` before it is raised: with the
    status `failed` and the error, or `interrupted` when the worker was asked to stop. A Slurm job that receives SIGUSR2
    is requeued instead, at most `requeues` times. A stage run that another worker holds is waited for. `signals` are
    those of a process that does several stage runs.
    """
    set_up_logging("WARNING" if task.rank else None)
    with contextlib.nullcontext(signals) if signals else noting_signals() as signals:
        work = _Work(Store.open(root), spec, tracking, task, requeues, signals)
        if task.rank:
            work.follow()
            return False
        # The lease ensures that no other worker writes to the stage run.
        lease = work.claim()
        if lease is None:
            return False
        with lease:
            _Attempt(work, lease).run()
        return True


def run_submitted(root: str, spec: dict[str, Any], tracking: TrackingConfig, *, requeues: int = 0) -> bool:
    """What a job of submitit calls, on this machine and on Slurm: `perform` as the task that submitit says this is."""
    job = JobEnvironment()
    task = Task(
        job=f"{job.job_id}-{os.environ.get('SLURM_RESTART_COUNT', 0)}",
        log=Path(job.paths.stderr),
        rank=job.global_rank,
        tasks=job.num_tasks,
        nodes=job.num_nodes,
        slurm_job=job.job_id if job.cluster == "slurm" else None,
    )
    if task.slurm_job and not task.rank:
        _name_job(task.slurm_job, spec)
    return perform(root, spec, tracking, task=task, requeues=requeues)


def _name_job(job: str, spec: dict[str, Any]) -> None:
    """Name a task by its cell, where the name of its array is a pattern of several (`nano/*/seed1:pretrain`)."""
    if "*" in os.environ.get("SLURM_JOB_NAME", ""):
        name = f"JobName={cell_of(spec['labels'])}:{spec['stage']}"
        # A name is no reason to fail, on a node without scontrol for example.
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scontrol", "update", f"JobId={job}", name], check=True, timeout=30, capture_output=True)


class Signals:
    """The signals that asked this worker to stop."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def note(self, number: int, frame: object) -> None:
        """A signal handler."""
        self.received.append(number)

    def should_stop(self) -> bool:
        """Whether the worker was asked to stop."""
        return bool(self.received)


@contextlib.contextmanager
def noting_signals() -> Iterator[Signals]:
    """Note the signals that ask to stop, rather than end at once, within this context."""
    signals = Signals()
    numbers = [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, signals.note) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Work:
    """One stage run to do, and the part of this process in it."""

    store: Store
    spec: dict[str, Any]
    tracking: TrackingConfig
    task: Task
    requeues: int
    signals: Signals

    @cached_property
    def stored(self) -> StoredRun:
        """The stage run in the store."""
        return self.store.run(self.spec["stage"], self.spec["signature"])

    @property
    def title(self) -> str:
        """Stage, cell and signature, for the log."""
        return f"{self.spec['stage']} {cell_of(self.spec['labels'])} ({self.spec['signature']})"

    def claim(self) -> Lease | None:
        """The lease on the stage run, or None once another worker has finished it. Waits while another holds it."""
        while not self.stored.is_done:
            if lease := self.stored.claim():
                if not self.stored.is_done:
                    return lease
                lease.release()  # another worker finished it just before the lease was granted
                break
            if self.signals.should_stop():
                raise Interrupted("asked to stop while another worker held the stage run")
            time.sleep(WAIT_SECONDS)
        self.stored.tidy()
        return None

    def follow(self) -> None:
        """Do the share of a rank above 0. Rank 0 holds the lease, gives the start signal and writes the results."""
        while not (marks := list(self.stored.folder.glob(f"work-*/{self.start_mark}"))):
            if self.stored.is_done or self.signals.should_stop():
                return
            time.sleep(WAIT_SECONDS)
        with contextlib.suppress(Interrupted):
            self.run_stage(marks[0].parent, self.signals.should_stop)

    @property
    def start_mark(self) -> str:
        """Name of the empty file by which rank 0 tells the other ranks of its job to start."""
        return f".tasks-{self.task.job}"

    def run_stage(self, folder: Path, interrupted: Callable[[], bool]) -> dict[str, Any]:
        """Run the stage itself in `folder`; returns its outcome."""
        with no_collection():  # a Slurm job imports torch only here
            from pipelines.stages import run_stage
        set_up_logging("WARNING" if self.task.rank else None)  # libraries change warning filters when imported

        parent, reference = self.spec["parent"], self.spec["config"].get("variant", {}).get("reference")
        return run_stage(
            self.spec,
            folder=folder,
            parent=self._folder_of(parent) if parent else None,
            reference=self._folder_of(reference) if reference else None,
            inputs=self.inputs,
            root=self.store.root,
            tracking=self.tracking,
            interrupted=interrupted,
            rank=self.task.rank,
            tasks=self.task.tasks,
            nodes=self.task.nodes,
        )

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Stage, signature and checkpoint of each model that the stage loads -> the hash of its files, checked now.

        Raises `StageFailure` if one of them is not what was published.
        """
        parent, reference = self.spec["parent"], self.spec["config"].get("variant", {}).get("reference")
        loaded = [(parent, self.spec["checkpoint"])] if parent else []
        loaded += [(reference, reference["checkpoint"])] if reference else []
        return {
            f"{identity['stage']}/{identity['signature']}/{checkpoint}": checked_checkpoint(
                self._folder_of(identity), checkpoint
            )
            for identity, checkpoint in loaded
        }

    def _folder_of(self, identity: dict[str, Any]) -> Path:
        return self.store.run(identity["stage"], identity["signature"]).folder


class _Attempt:
    """One worker's attempt at a stage run that it holds the lease of."""

    def __init__(self, work: _Work, lease: Lease) -> None:
        self.work, self.lease, self.task = work, lease, work.task
        self.folder = work.stored.folder
        self.record: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.time(),
            "log": str(self.task.log),
        }
        # A local worker has a set number of threads, with which the stage run also resumes.
        if not self.task.slurm_job and (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
            self.record["threads"] = int(threads)
        if self.task.slurm_job:
            self.record["job"] = self.task.slurm_job
        # The state that was read before the lease was taken may be out of date.
        state = work.stored.reread().readable_state
        self.attempts = [*state.get("attempts", []), self.record]

    def note(self, status: str) -> None:
        """Write `state.json`, unless another worker has taken the stage run over."""
        if self.lease.is_valid():
            self.work.stored.write_state(status, attempts=self.attempts)

    def run(self) -> None:
        """Do the work and publish it; only publish it if an attempt died in between."""
        logger.info("%s: attempt %d starts in %s", self.work.title, len(self.attempts), self.folder)
        self._unpublish()
        write_sealed(self.folder / "spec.json", self.work.spec | {"environment": package_versions()})
        self.note("running")
        try:
            if not (self.lease.work / "result.json").exists():
                self._work()
            if not self.lease.is_valid():
                raise Interrupted("another worker has taken the stage run over")
            _publish(self.lease.work, self.folder)
            self.note("done")
            remove_work(self.folder)
        except BaseException as error:
            self._record_failure(error)
            raise
        logger.info("%s: done in %.1f s", self.work.title, time.time() - self.record["started"])

    def _unpublish(self) -> None:
        """Move back into the folder of work what an attempt had published when it died."""
        for path in self.folder.iterdir():
            if path.name not in BOOKKEEPING and path != self.lease.work and not path.name.startswith("."):
                path.rename(self.lease.work / path.name)

    def _work(self) -> None:
        """Run the stage in the folder of work and write `result.json` there."""
        work = self.lease.work
        # An attempt that can resume keeps the trainer state and the checkpoints so far, any other starts empty.
        kept = RESUMED if (work / "resume").exists() else set()
        for path in work.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

        # The other ranks wait for this mark.
        mark = work / self.work.start_mark
        if self.task.tasks > 1:
            mark.touch()
        outcome = self.work.run_stage(work, lambda: self.work.signals.should_stop() or self.lease.lost)
        mark.unlink(missing_ok=True)
        shutil.rmtree(work / "resume", ignore_errors=True)

        saved = saved_hashes(work)
        (work / SAVED).unlink(missing_ok=True)
        # Everything is on the disk, and hashed, before the result that makes it count.
        files = {str(path.relative_to(work)): path for path in sorted(work.rglob("*")) if path.is_file()}
        files["spec.json"] = self.folder / "spec.json"
        for path in files.values():
            flush(path)
        hashes = {name: sha256(path) for name, path in files.items()}
        if changed := [name for name, digest in saved.items() if hashes.get(name) != digest]:
            raise StageFailure(
                f"{work / changed[0]}: it was changed after it was saved; delete {work} and run the same command again"
            )
        self.record["ended"] = time.time()
        result = {
            "format": FORMAT,
            "stage": self.work.stored.stage,
            "signature": self.work.stored.signature,
            "seconds": sum(a.get("ended", a["started"]) - a["started"] for a in self.attempts),
            "ranks": self.task.tasks,
            **outcome,
            "inputs": self.work.inputs,
            "files": hashes,
        }
        write_sealed(work / "result.json", result)

    def _record_failure(self, error: BaseException) -> None:
        """Write down how the attempt ended: failed, interrupted, or requeued because its time was up."""
        self.record["ended"] = time.time()
        self.record["traceback"] = traceback.format_exc()
        # Only an error of the stage itself is a failure. A stage that was asked to stop can be retried; if its job was
        # near its time limit (SIGUSR2), Slurm runs the requeued job again.
        if not isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
            self._end("failed", self._reason(error))
        elif not self.task.slurm_job or signal.SIGUSR2 not in self.work.signals.received:
            self._end("interrupted", "stopped")
        # Requeues by Slurm itself, after a preemption for example, do not count.
        elif sum(a.get("error") == TIME_WAS_UP and a.get("job") == self.task.slurm_job for a in self.attempts) >= (
            self.work.requeues
        ):
            reason = (
                f"its time was up and it was requeued {self.work.requeues} times already; raise "
                "hydra.launcher.requeues or hydra.launcher.time and retry it: it resumes"
            )
            self._end("failed", reason)
            raise StageFailure(reason) from error
        else:
            self._requeue(self.task.slurm_job)

    def _reason(self, error: BaseException) -> str:
        """What to record about an error: its type and message, or the way out if the disk was full."""
        if not isinstance(error, StageFailure | UserError):
            # `replacing` names a full disk itself, but ledgers and logs grow line by line.
            path = getattr(error, "filename", None) or self.lease.work
            if full := full_disk(error, Path(path)):
                return f"StageFailure: {path}: {full} and run the same command again"
        return f"{type(error).__name__}: {error}"

    def _requeue(self, job: str) -> None:
        """Have Slurm run this job again, which resumes; a cluster that refuses that makes the attempt a failure."""
        # The job's next run must find the folder free.
        self._end("queued", TIME_WAS_UP)
        self.lease.release()
        try:
            subprocess.run(["scontrol", "requeue", job], check=True, timeout=60, capture_output=True, text=True)
        except (OSError, subprocess.SubprocessError) as error:
            message = " ".join(str(getattr(error, "stderr", None) or error).split())
            self._end("failed", f"{TIME_WAS_UP} and Slurm did not requeue it ({message}); retry it: it resumes")
            raise StageFailure(str(self.record["error"])) from error

    def _end(self, status: str, reason: str) -> None:
        self.record["error"] = reason
        level = logging.ERROR if status == "failed" else logging.INFO
        logger.log(level, "%s: attempt %d %s: %s", self.work.title, len(self.attempts), status, reason)
        self.note(status)


def _publish(work: Path, folder: Path) -> None:
    """Move everything from `work` to `folder`, `result.json` last; each move fails once another has taken over."""
    for path in sorted(work.iterdir(), key=lambda path: path.name == "result.json"):
        if not path.name.startswith("."):  # the temporary file of a killed writer
            path.rename(folder / path.name)
    flush(folder)


def processor(description: Path) -> str:
    """The processor, by the kernel's description: another rounds otherwise and trains another model from a seed."""
    with contextlib.suppress(OSError):
        if model := re.search(r"^model name\s*: (.+)$", description.read_text(), re.MULTILINE):
            return f"{platform.machine()} ({model[1].strip()})"
    return platform.machine()


@cache
def package_versions() -> dict[str, str]:
    """What a result may depend on: versions of packages, Python and the platform, the machine's cores and processor.

    In a checkout also its `commit`, with `-dirty` if files were changed.
    """
    versions = {name: version(name) for name in VERSIONED_PACKAGES} | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": processor(Path("/proc/cpuinfo")),
    }
    root = Path(__file__).parents[2]
    if (root / ".git").exists():  # an installed package may be inside somebody else's repository
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
            described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            versions["commit"] = described.stdout.strip()
    return versions
