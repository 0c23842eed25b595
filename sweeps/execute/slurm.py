"""Submits the missing part of a plan to Slurm at once: as job arrays of similar stage runs, chained by dependencies.

The children of an array's tasks form arrays with the same task numbers, where each task waits for the task of its
number (`aftercorr`, which is `afterok` task by task). So a failure blocks only its descendants, and a plan of any size
is a few dozen arrays. Job files, pickles and logs are submitit's. A later submission of the same stage runs finds the
records of the jobs in the store and attaches to them.

submitit's own array submission numbers tasks from 0 and runs `submitit.core._submit`. `_ArrayExecutor` overrides both
through methods that are private in submitit, and `scripts` uses its private `_make_sbatch_string`.
"""

import contextlib
import getpass
import io
import os
import shlex
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitit.core import utils
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from pipelines.configuration.tracking import TrackingConfig
from pipelines.errors import StageFailure
from pipelines.files import write_sealed
from pipelines.logs import LEVEL_VARIABLE
from sweeps.compose.launcher_options import SlurmLauncherConfig, resources
from sweeps.execute.worker import run_submitted
from sweeps.monitor.slurm_environment import submission_environment
from sweeps.monitor.slurm_queue import SlurmUnreachable, job_states, slurm, slurm_failure
from sweeps.plan.graph import Plan, StageRun
from sweeps.plan.names import cell_of
from sweeps.store.leases import Lease, claim
from sweeps.store.stage_runs import Store

PATIENCE_SECONDS = 120.0
"""How long a submission waits for another one to the same store to end."""
DEFAULT_ARRAY_LIMIT = 1001
"""Slurm's default of MaxArraySize."""
ENDING_SECONDS = 60.0
"""How long a submission waits for jobs that are ending, each of which may be requeued or over after that."""
COMMENT_CELLS = 3
"""How many stage runs the comment of an array names."""

OWN_PARAMETERS = {
    "array": "the plan",
    "dependency": "the plan",
    "hold": "the plan",
    "output": "the store",
    "error": "the store",
    "open-mode": "the store",
    "signal": "hydra.launcher.signal_seconds",
    "time": "hydra.launcher.time",
    "nodes": "hydra.launcher.nodes",
    "ntasks": "hydra.launcher.tasks",
    "ntasks-per-node": "hydra.launcher.tasks",
    "cpus-per-task": "hydra.launcher.cpus",
}
"""Parameters of sbatch that the launcher needs as it sets them, and from what it sets them."""


@dataclass
class Submission:
    """What became of the stage runs of a plan at its submission."""

    done: list[str] = field(default_factory=list)
    attached: dict[str, str] = field(default_factory=dict)
    """Signature -> job that was queued or running already."""
    submitted: dict[str, str] = field(default_factory=dict)
    """Signature -> new job."""
    refused: dict[str, list[str]] = field(default_factory=dict)
    """Slurm's message -> signatures of the stage runs that it refused."""
    blocked: list[str] = field(default_factory=list)
    """Not submitted, since a stage run that they need was refused."""

    @property
    def arrays(self) -> list[str]:
        """Numbers of the new job arrays."""
        return sorted({job.split("_")[0] for job in self.submitted.values()}, key=int)

    def job_of(self, signature: str) -> str | None:
        """The job that does a stage run, if there is one."""
        return self.submitted.get(signature) or self.attached.get(signature)


def submit(plan: Plan, store: Store, tracking: TrackingConfig, *, options: SlurmLauncherConfig) -> Submission:
    """Submit the stage runs that `plan` misses in `store` and no job does already; returns at once.

    Raises `StageFailure` if Slurm does not answer.
    """
    with _submission_lease(store):
        submission = _existing(plan, store)
        array_limit = _array_limit()
        submitter = _Submitter(plan, store, tracking, options=options, submission=submission)
        try:
            for batch in _batches(plan, submission, array_limit):
                submitter.submit(batch)
        finally:
            # Jobs are submitted on hold, so that none starts before its record is in the store.
            if submission.arrays:
                slurm(["scontrol", "release", ",".join(submission.arrays)])
    return submission


def _submission_lease(store: Store) -> Lease:
    """The lease under which jobs are looked up and submitted, so that no stage run is submitted twice."""
    deadline = time.time() + PATIENCE_SECONDS
    while (lease := claim(store.root / "jobs" / "submission")) is None:
        if time.time() > deadline:
            raise StageFailure(f"{store.root}: another command has been submitting to it for minutes; try again later")
        time.sleep(0.5)
    return lease


def _existing(plan: Plan, store: Store) -> Submission:
    """The stage runs of a plan that are done, and those that Slurm has jobs for."""
    deadline = time.time() + ENDING_SECONDS
    while True:
        submission = Submission()
        jobs: dict[str, str] = {}
        statuses: dict[str, str] = {}
        for signature, run in plan.runs.items():
            stored = store.run(run.stage, signature)
            if stored.is_done:
                stored.tidy()
                submission.done.append(signature)
            elif job := stored.readable_state.get("job"):
                jobs[signature], statuses[signature] = job["id"], stored.readable_state["status"]
        states = job_states(jobs.values())
        # A job whose processes are being ended is about to be requeued, or over.
        is_ending = any(states[job].is_ending for job in jobs.values())
        if not is_ending or time.time() > deadline:
            break
        time.sleep(1.0)
    # Slurm may have put a job back by itself, so what its worker recorded last does not matter. A job that still runs
    # after its worker has recorded a failure is about to end.
    submission.attached = {
        signature: job
        for signature, job in jobs.items()
        if states[job].is_waiting or (states[job].is_running and statuses[signature] != "failed")
    }
    return submission


def _array_limit() -> int:
    """The cluster's limit of task numbers in an array (Slurm's default is 1001)."""
    for line in slurm(["scontrol", "show", "config"]).splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize":
            return int(value)
    return DEFAULT_ARRAY_LIMIT


@dataclass
class _Batch:
    """Stage runs that become one job array."""

    stage: str
    tasks: dict[int, str]
    """Task number -> signature."""
    dependency: str | None
    """Slurm's expression of what all tasks wait for. A control waits for two stage runs and is an array by itself."""


def _batches(plan: Plan, submission: Submission, limit: int) -> Iterator[_Batch]:
    """The missing stage runs as arrays, parents before children.

    The caller must submit each batch before it takes the next, since children depend on the jobs of their parents.
    """
    done = set(submission.done)
    waiting = {s: run for s, run in plan.runs.items() if s not in done and s not in submission.attached}
    for level in _levels(plan, waiting):
        # By stage, what can start at once; by stage and parents' array, task number -> children of that task.
        free: dict[str, list[str]] = defaultdict(list)
        chained: dict[tuple[str, str], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        for signature in sorted(level, key=lambda s: waiting[s].stage == "evaluate"):  # training first
            run = waiting[signature]
            parent = run.parent and run.parent[1]
            missing = [need for need in run.needs if need not in done]
            jobs = [submission.job_of(need) for need in missing]
            if not missing:
                free[run.stage].append(signature)
            elif parent is None or run.reference:
                if all(jobs):
                    yield _Batch(run.stage, {0: signature}, "afterok:" + ":".join(map(str, jobs)))
                else:
                    submission.blocked.append(signature)
            elif job := submission.job_of(parent):
                array, _, task = job.partition("_")
                chained[run.stage, array][int(task or 0)].append(signature)
            else:
                submission.blocked.append(signature)
        for stage, signatures in free.items():
            for start in range(0, len(signatures), limit):
                yield _Batch(stage, dict(enumerate(signatures[start : start + limit])), None)
        # The n-th array takes the n-th child of each task, under the number of that task.
        for (stage, array), children in chained.items():
            for n in range(max(map(len, children.values()))):
                tasks = {task: signatures[n] for task, signatures in children.items() if n < len(signatures)}
                yield _Batch(stage, tasks, f"aftercorr:{array}")


def _levels(plan: Plan, waiting: Mapping[str, StageRun]) -> list[list[str]]:
    """The waiting stage runs by the length of the longest chain of others that they wait for."""
    depth: dict[str, int] = {}
    for signature, run in waiting.items():  # in a plan, what a stage run needs comes before it
        depth[signature] = max((depth[need] + 1 for need in run.needs if need in depth), default=0)
    levels: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for signature, level in depth.items():
        levels[level].append(signature)
    return levels


def _job_names(plan: Plan, batch: _Batch) -> tuple[str, str]:
    """Name and comment of a batch's array. The name selects its stage runs in `shaping-sweeps status` too."""
    cells = list(dict.fromkeys(cell_of(plan.runs[signature].labels) for signature in batch.tasks.values()))
    # What all cells have in common, part by part: `nano/*/seed1`.
    parts = list(zip(*(cell.split("/") for cell in cells), strict=False))
    common = "/".join(values[0] if len(set(values)) == 1 else "*" for values in parts)
    if len({cell.count("/") for cell in cells}) > 1:
        common += "*"
    more = f" and {len(cells) - COMMENT_CELLS} more" if len(cells) > COMMENT_CELLS else ""
    return f"{common}:{batch.stage}", f"shaping {batch.stage} of {', '.join(cells[:COMMENT_CELLS])}{more}"


def _parameters(options: SlurmLauncherConfig, batch: _Batch, plan: Plan) -> dict[str, Any]:
    """submitit's parameters of a batch's array."""
    requested = resources(options, batch.stage)
    extra = {str(key).replace("_", "-"): value for key, value in requested.pop("extra").items()}
    name, comment = _job_names(plan, batch)
    numbers = ",".join(map(str, sorted(batch.tasks)))
    additional: dict[str, Any] = {
        "array": f"{numbers}%{options.at_once}" if options.at_once else numbers,
        "hold": True,
        "requeue": True,
        **({"kill-on-invalid-dep": "yes"} if batch.dependency else {}),
    }
    # sbatch passes the environment on unless the site forbids it; the level of logging must arrive in any case.
    level = (
        [f"export {LEVEL_VARIABLE}={shlex.quote(os.environ[LEVEL_VARIABLE])}"] if LEVEL_VARIABLE in os.environ else []
    )
    memory, memory_per_core = requested.pop("mem_gb"), requested.pop("mem_per_cpu_gb")
    cores = requested.pop("cpus")
    parameters = {
        "job_name": name,
        "comment": comment,
        "nodes": requested.pop("nodes"),
        "time": requested.pop("time"),
        "ntasks_per_node": requested.pop("tasks"),
        "gpus_per_node": requested.pop("gpus") or None,
        "cpus_per_task": cores,
        "mem": None if memory is None else f"{round(memory * 1024)}M",
        "mem_per_cpu": None if memory_per_core is None else f"{round(memory_per_core * 1024)}M",
        "dependency": batch.dependency,
        "signal_delay_s": options.signal_seconds,
        "setup": level + options.setup or None,
        "srun_args": [
            "--kill-on-bad-exit=1",  # if one of several tasks fails, the others are killed
            f"--cpus-per-task={cores}",  # since Slurm 22.05 srun does not take it from the job
            "--export=ALL",  # what `setup` exports, also at a site that passes no environment to jobs
            *options.srun,
        ],
        "additional_parameters": additional,
    }
    # All other fields of `StageResources` are parameters of sbatch under their own name.
    additional |= {name.replace("_", "-"): value for name, value in requested.items() if value is not None}
    # `extra` overrides all of them, and leaves out what it sets to null.
    for key, value in extra.items():
        parameters.pop(key.replace("-", "_"), None)
        additional[key] = value
    parameters["additional_parameters"] = {key: value for key, value in additional.items() if value is not None}
    # submitit sends its name as a wckey unless that is None, and many sites refuse any.
    return {key: value for key, value in parameters.items() if value is not None} | {"wckey": None}


def scripts(plan: Plan, options: SlurmLauncherConfig, folder: Path) -> Iterator[str]:
    """The sbatch scripts, one per array, that would submit a plan of which nothing is done; submits nothing.

    An array that depends on another one names it by its position in the list, counted from 1.
    """
    submission = Submission()
    for position, batch in enumerate(_batches(plan, submission, DEFAULT_ARRAY_LIMIT), 1):
        yield _make_sbatch_string(
            _command(folder), folder, map_count=len(batch.tasks), **_parameters(options, batch, plan)
        )
        submission.submitted |= {signature: f"{position}_{task}" for task, signature in batch.tasks.items()}


def _command(folder: Path) -> str:
    """What a job runs. With -P, folders in the working directory do not shadow this project's packages."""
    return f"{shlex.quote(sys.executable)} -P -u -m sweeps.execute.slurm_job {shlex.quote(str(folder))}"


class _ArrayExecutor(SlurmExecutor):
    """submitit's executor for a job array whose task numbers are given."""

    @property
    def _submitit_command_str(self) -> str:
        return _command(self.folder)

    def submit_tasks(self, tasks: Mapping[int, DelayedSubmission]) -> str:
        """Submit the tasks and put their pickles where the jobs look for them; returns the array's number."""
        folder = JobPaths.get_first_id_independent_folder(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Pickles get their final names after submission, since these contain the array's number.
        pickles: dict[int, Path] = {}
        for number, task in tasks.items():
            pickles[number] = folder / f"{uuid.uuid4().hex}.pkl"
            task.dump(pickles[number])
        self.parameters["map_count"] = len(tasks)
        try:
            with (
                contextlib.redirect_stderr(io.StringIO()),  # sbatch's message is part of the error below
                submission_environment(self._sbatch_parameters()),
            ):
                array = self._submit_command(self._submitit_command_str).job_id
        except utils.FailedJobError as error:
            for pickle in pickles.values():
                pickle.unlink()
            raise _refusal(error) from error
        for number, pickle in pickles.items():
            JobPaths(self.folder, f"{array}_{number}").move_temporary_file(pickle, "submitted_pickle")
        return array

    def _sbatch_parameters(self) -> set[str]:
        """Names of the parameters that the script gives to sbatch."""
        additional = self.parameters["additional_parameters"]
        return {name for name, value in {**self.parameters, **additional}.items() if value is not None}


def _refusal(error: BaseException) -> StageFailure:
    """The exception with sbatch's message, taken from submitit's error."""
    lines = [line for line in str(error).splitlines() if "sbatch:" in line]
    return slurm_failure("\n".join(lines), str(error))


class _Submitter:
    """Submits the arrays of one plan and records their jobs."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        tracking: TrackingConfig,
        *,
        options: SlurmLauncherConfig,
        submission: Submission,
    ) -> None:
        self.plan, self.store, self.tracking, self.options, self.submission = plan, store, tracking, options, submission
        self.folder = store.root / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"

    def submit(self, batch: _Batch) -> None:
        """Submit one array and record its jobs; if Slurm refuses it, only note that."""
        # A task is a pickled call of `run_submitted` for its stage run.
        executor = _ArrayExecutor(self.folder)
        executor.parameters = _parameters(self.options, batch, self.plan)
        requeues = self.options.requeues
        tasks = {}
        for number, signature in batch.tasks.items():
            spec = self.plan.runs[signature].spec
            tasks[number] = DelayedSubmission(
                run_submitted, str(self.store.root), spec, self.tracking, requeues=requeues
            )
            tasks[number].set_timeout(executor.parameters["time"], requeues)
        try:
            array = executor.submit_tasks(tasks)
        except SlurmUnreachable:
            raise
        except StageFailure as refusal:
            self.submission.refused.setdefault(str(refusal), []).extend(batch.tasks.values())
            return
        for number, signature in batch.tasks.items():
            self._record(self.plan.runs[signature], f"{array}_{number}")

    def _record(self, run: StageRun, job: str) -> None:
        """Write into the store that a stage run is queued as a job."""
        stored = self.store.run(run.stage, run.signature)
        # With the spec, `status` and `show` know the stage run before its job starts.
        stored.folder.mkdir(parents=True, exist_ok=True)
        write_sealed(stored.folder / "spec.json", run.spec)
        paths = JobPaths(self.folder, job, 0)
        record = {
            "id": job,
            "user": getpass.getuser(),
            "submitted": time.time(),
            "log": str(paths.stderr),
            "stdout": str(paths.stdout),
        }
        stored.write_state("queued", job=record)
        self.submission.submitted[run.signature] = job
