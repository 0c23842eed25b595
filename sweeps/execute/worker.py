"""One stage run inside a worker: take its folder, do the work, publish.

The worker's process is forked from one that has imported torch, or is a Slurm job, so nothing heavy is imported here at
load. A worker that is told to stop (SIGUSR2: the time limit is near; SIGTERM, SIGINT) lets the stage save its trainer
state between two steps. Under Slurm, SIGUSR2 also puts the job back into the queue, where it goes on.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from submitit import JobEnvironment

from pipelines.configuration.tracking import TrackingConfig
from pipelines.errors import Interrupted, StageFailure
from pipelines.files import write_json
from pipelines.garbage_collection import no_collection
from sweeps.store.leases import Lease, claim
from sweeps.store.stage_runs import FORMAT, Store, StoredRun

ENVIRONMENT = ("shaping", "torch", "transformers", "lightning", "tokenizers", "numpy")

OWN = {"spec.json", "state.json", "result.json", "leases"}
"""What stands in a stage run's folder besides what its stage made."""

RESUMED = {"resume", "checkpoints", "ledger.jsonl"}
"""What an attempt that goes on from a trainer state keeps of the one before."""

WAIT_SECONDS = 1.0
"""Between two looks at a stage run that another holds."""


def perform(
    root: str,
    spec: dict[str, Any],
    tracking: TrackingConfig,
    requeues: int = 0,
    environment: JobEnvironment | None = None,
) -> bool:
    """Run one stage run to its end and publish it; a finished one is left as it is. `environment` says which of how
    many tasks this is; by default that of a submitit job.

    Returns whether the work was done here.

    Whatever goes wrong is recorded in `state.json` before it is raised: a status of `failed` with the error, or of
    `interrupted` when the worker was told to stop. A Slurm job that is told so by SIGUSR2 is put back into the queue,
    at most `requeues` times. A stage run that another holds is waited for.
    """
    with _told_to_stop() as stop:
        store = Store.open(root)
        run = store.run(spec["stage"], spec["signature"])
        environment = environment or JobEnvironment()
        if environment.global_rank:
            _follow(store, run, spec, tracking, environment, stop)
            return False
        lease = _lease(run, stop)
        if lease is None:
            return False
        with lease:
            _Attempt(store, run, spec, tracking, requeues, lease, stop, environment).run()
        return True


class _Stop:
    """The signals that asked this worker to stop."""

    def __init__(self) -> None:
        self.signals: set[int] = set()

    def __call__(self) -> bool:
        return bool(self.signals)

    def note(self, number: int, frame: object) -> None:
        self.signals.add(number)


@contextlib.contextmanager
def _told_to_stop() -> Any:
    stop = _Stop()
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lease(run: StoredRun, stop: Callable[[], bool]) -> Lease | None:
    """The lease on a stage run that is not done; None once another has finished it. Waits while another holds it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    while not (run.folder / "result.json").exists():
        if lease := claim(run.folder):
            if not (run.folder / "result.json").exists():
                return lease
            _clear_up(run.folder)  # it was finished between the two looks
            lease.release()
            return None
        if stop():
            raise Interrupted("told to stop while another worker had the stage run")
        time.sleep(WAIT_SECONDS)
    return None


def _together(environment: JobEnvironment) -> str:
    """A name that all tasks of one life of a job share."""
    return f".tasks-{environment.job_id}-{os.environ.get('SLURM_RESTART_COUNT', 0)}"


def _follow(
    store: Store,
    run: StoredRun,
    spec: dict[str, Any],
    tracking: TrackingConfig,
    environment: JobEnvironment,
    stop: Callable[[], bool],
) -> None:
    """Do the share of a task that is not the job's first: that one has the lease, says when to begin, and writes."""
    while not (begun := list(run.folder.glob(f"work-*/{_together(environment)}"))):
        if (run.folder / "result.json").exists() or stop():
            return
        time.sleep(WAIT_SECONDS)
    with contextlib.suppress(Interrupted):
        _run_stage(store, spec, begun[0].parent, tracking, stop, environment)


def _run_stage(
    store: Store,
    spec: dict[str, Any],
    work: Path,
    tracking: TrackingConfig,
    interrupted: Callable[[], bool],
    environment: JobEnvironment,
) -> dict[str, Any]:
    with no_collection():  # a Slurm job loads it only now
        from pipelines.stages import run_stage

    parent = spec["parent"]
    source = parent and store.run(parent["stage"], parent["signature"]).folder
    matched = spec["config"].get("variant", {}).get("reference")
    reference = matched and store.run(matched["stage"], matched["signature"]).folder
    shared: dict[str, int] = {}
    if environment.num_tasks > 1:
        shared = {
            "rank": environment.global_rank,
            "tasks": environment.num_tasks,
            "nodes": environment.num_nodes,
        }
    return run_stage(spec, work, source, store.root, tracking, interrupted, **shared, reference=reference)


class _Attempt:
    """One worker's way through a stage run."""

    def __init__(
        self,
        store: Store,
        run: StoredRun,
        spec: dict[str, Any],
        tracking: TrackingConfig,
        requeues: int,
        lease: Lease,
        stop: _Stop,
        environment: JobEnvironment,
    ) -> None:
        self.store, self.stored, self.spec, self.tracking = store, run, spec, tracking
        self.requeues, self.lease, self.stop = requeues, lease, stop
        self.environment = environment
        self.record: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.time(),
            "log": str(environment.paths.stderr),
        }
        if environment.cluster == "slurm":
            self.record["job"] = environment.job_id
        state = run.again().state
        self.attempts = [*state.get("attempts", []), self.record]
        self.job = state.get("job")

    def note(self, status: str) -> None:
        """Write `state.json`, unless another has taken the stage run over."""
        if self.lease.is_mine():
            state = {"format": FORMAT, "status": status, "attempts": self.attempts}
            write_json(self.stored.folder / "state.json", state | ({"job": self.job} if self.job else {}))

    def run(self) -> None:
        """Do the work, or only publish it where an attempt died after the work was done."""
        folder, work = self.stored.folder, self.lease.work
        for path in folder.iterdir():  # what a worker had published when it died
            if path.name not in OWN and path != work and not path.name.startswith("."):
                path.rename(work / path.name)
        write_json(folder / "spec.json", self.spec | {"environment": environment()})
        self.note("running")
        try:
            if not (work / "result.json").exists():
                self._work(work)
            _publish(folder, work)
            self.note("done")
            _clear_up(folder)
        except BaseException as error:
            self._failed(error)
            raise

    def _work(self, work: Path) -> None:
        keep = RESUMED if (work / "resume").exists() else set()
        for path in work.iterdir():
            if path.name not in keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        together = work / _together(self.environment)
        if self.environment.num_tasks > 1:
            together.touch()
        interrupted = lambda: self.stop() or self.lease.lost  # noqa: E731
        outcome = _run_stage(self.store, self.spec, work, self.tracking, interrupted, self.environment)
        together.unlink(missing_ok=True)
        shutil.rmtree(work / "resume", ignore_errors=True)
        files = sorted(path for path in work.rglob("*") if path.is_file())
        hashes = {str(path.relative_to(work)): _settled(path) for path in files}
        hashes["spec.json"] = _settled(self.stored.folder / "spec.json")
        self.record["ended"] = time.time()
        write_json(
            work / "result.json",
            {
                "format": FORMAT,
                "stage": self.stored.stage,
                "signature": self.stored.signature,
                "seconds": sum(a.get("ended", a["started"]) - a["started"] for a in self.attempts),
                "ranks": self.environment.num_tasks,
                **outcome,
                "files": hashes,
            },
        )

    def _failed(self, error: BaseException) -> None:
        self.record["ended"] = time.time()
        self.record["traceback"] = traceback.format_exc()
        if not isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
            self.record["error"] = f"{type(error).__name__}: {error}"
            self.note("failed")
            return
        if "job" not in self.record or signal.SIGUSR2 not in self.stop.signals:
            self.record["error"] = "stopped"
            self.note("interrupted")
            return
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)) >= self.requeues:
            self.record["error"] = (
                f"its time was up and it has been put back into the queue {self.requeues} times; raise "
                "hydra.launcher.requeues or hydra.launcher.time and retry it: it goes on where it was"
            )
            self.note("failed")
            raise StageFailure(self.record["error"]) from error
        self.record["error"] = "its time was up"
        self.note("queued")
        self.lease.release()
        subprocess.run(["scontrol", "requeue", self.record["job"]], check=True, timeout=60)


def _publish(folder: Path, work: Path) -> None:
    """Move everything out of `work`, `result.json` last; each step fails once another has taken over."""
    for path in sorted(work.iterdir(), key=lambda path: path.name == "result.json"):
        path.rename(folder / path.name)
    _settle(folder)


def _clear_up(folder: Path) -> None:
    """Remove what only unfinished work needs."""
    for path in folder.glob("work-*"):
        shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder / "leases", ignore_errors=True)


@cache
def environment() -> dict[str, str]:
    """Versions of what a result may depend on."""
    return {name: version(name) for name in ENVIRONMENT} | {
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _settled(path: Path) -> str:
    """The sha256 of a file, which is flushed to the disk first."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settle(folder: Path) -> None:
    """Flush a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
