"""Sends the missing part of a plan to Slurm, all of it at once: arrays of like stage runs, chained by dependencies.

The children of an array's tasks form arrays with the same task numbers, each task waiting for the one of its number
(`aftercorr`, which is `afterok` task by task), so that a failure blocks its own descendants alone, and a plan of any
size is a few dozen jobs. Job files, pickles and logs are submitit's. Jobs are held until their records are in the
store; who submits the same stage runs later finds those records and attaches to the jobs.
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
from pipelines.files import write_json
from sweeps.compose.launchers import SlurmLauncherConfig, resources
from sweeps.execute.worker import perform
from sweeps.monitor.slurm_queue import job_states, own_words, slurm
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.leases import Lease, claim
from sweeps.store.stage_runs import FORMAT, Store

PATIENCE_SECONDS = 120.0
"""How long a submission waits for another one to the same store to end."""


@dataclass
class Submission:
    """What became of a plan at submission."""

    done: list[str] = field(default_factory=list)
    attached: dict[str, str] = field(default_factory=dict)
    """Signature -> job that was queued or running already."""
    submitted: dict[str, str] = field(default_factory=dict)
    """Signature -> new job."""
    refused: dict[str, list[str]] = field(default_factory=dict)
    """Slurm's words -> the signatures that it would not take."""
    blocked: list[str] = field(default_factory=list)
    """Not submitted, since what they hang from was refused."""

    @property
    def arrays(self) -> list[str]:
        """The new jobs' numbers."""
        return sorted({job.split("_")[0] for job in self.submitted.values()}, key=int)


def submit(plan: Plan, store: Store, tracking: TrackingConfig, options: SlurmLauncherConfig) -> Submission:
    """Submit what `plan` misses in `store` and nobody is at work on; returns at once.

    Raises `StageFailure` where Slurm does not answer.
    """
    with _one_at_a_time(store):
        submission = _look(plan, store)
        array_limit = _array_limit()
        folder = store.root / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        for batch in _batches(plan, submission, array_limit):
            _submit(batch, plan, store, tracking, options, folder, submission)
        if submission.arrays:
            slurm(["scontrol", "release", ",".join(submission.arrays)])
    return submission


def _one_at_a_time(store: Store) -> Lease:
    """The lease under which jobs are looked up and submitted, so that two people do not submit one stage run twice."""
    deadline = time.time() + PATIENCE_SECONDS
    while (lease := claim(store.root / "jobs" / "submission")) is None:
        if time.time() > deadline:
            raise StageFailure(f"{store.root}: another command has been submitting to it for minutes; try again later")
        time.sleep(0.5)
    return lease


def _look(plan: Plan, store: Store) -> Submission:
    """What is done and what Slurm has already."""
    submission, recorded = Submission(), {}
    for signature, run in plan.runs.items():
        stored = store.run(run.stage, signature)
        if (stored.folder / "result.json").exists():
            submission.done.append(signature)
        elif stored.state.get("status") in ("queued", "running") and (job := stored.state.get("job")):
            recorded[signature] = job["id"]
    states = job_states(recorded.values())
    submission.attached = {s: job for s, job in recorded.items() if states[job].waits or states[job].runs}
    return submission


def _array_limit() -> int:
    for line in slurm(["scontrol", "show", "config"]).splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize":
            return int(value)
    return 1001


@dataclass
class _Batch:
    """Stage runs that become one array: task number -> signature."""

    stage: str
    tasks: dict[int, str]
    dependency: str | None
    """What all tasks wait for; a control, which waits for two stage runs, is an array of its own."""


def _batches(plan: Plan, submission: Submission, limit: int) -> Iterator[_Batch]:
    """The missing stage runs as arrays, parents before children; reads the jobs of one batch before the next."""
    done = set(submission.done)
    waiting = {s: run for s, run in plan.runs.items() if s not in done and s not in submission.attached}
    for level in _levels(plan, waiting):
        free: dict[str, list[str]] = defaultdict(list)
        chained: dict[tuple[str, str], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        for signature in sorted(level, key=lambda s: waiting[s].stage == "evaluate"):  # training goes first
            run = waiting[signature]
            parent = run.parent and run.parent[1]
            missing = [need for need in run.needs if need not in done]
            jobs = [submission.submitted.get(need) or submission.attached.get(need) for need in missing]
            if not missing:
                free[run.stage].append(signature)
            elif parent is None or run.reference:
                if all(jobs):
                    yield _Batch(run.stage, {0: signature}, "afterok:" + ":".join(map(str, jobs)))
                else:
                    submission.blocked.append(signature)
            elif job := submission.submitted.get(parent) or submission.attached.get(parent):
                array, _, task = job.partition("_")
                chained[run.stage, array][int(task or 0)].append(signature)
            else:
                submission.blocked.append(signature)
        for stage, signatures in free.items():
            for start in range(0, len(signatures), limit):
                yield _Batch(stage, dict(enumerate(signatures[start : start + limit])), None)
        for (stage, array), children in chained.items():
            for nth in range(max(map(len, children.values()))):
                tasks = {task: several[nth] for task, several in children.items() if nth < len(several)}
                yield _Batch(stage, tasks, f"aftercorr:{array}")


def _levels(plan: Plan, waiting: Mapping[str, StageRun]) -> list[list[str]]:
    """The waiting stage runs by how many others they wait for in a row."""
    depth: dict[str, int] = {}
    for signature, run in waiting.items():  # what a stage run needs comes before it
        depth[signature] = max((depth[need] + 1 for need in run.needs if need in depth), default=0)
    levels: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for signature, level in depth.items():
        levels[level].append(signature)
    return levels


def _parameters(options: SlurmLauncherConfig, batch: _Batch, at_once: int) -> dict[str, Any]:
    """submitit's parameters of a batch's array."""
    asked = resources(options, batch.stage)
    extra: dict[str, Any] = {str(key).replace("_", "-"): value for key, value in asked.pop("extra").items()}
    numbers = ",".join(map(str, sorted(batch.tasks)))
    extra["array"] = f"{numbers}%{at_once}" if at_once else numbers
    extra["hold"] = True
    extra["requeue"] = True
    if batch.dependency:
        extra["kill-on-invalid-dep"] = "yes"
    parameters = {
        "job_name": f"shaping-{batch.stage}",
        "nodes": asked["nodes"],
        "ntasks_per_node": asked["tasks"],
        "gpus_per_node": asked["gpus"] or None,
        "cpus_per_task": asked["cpus"],
        "mem": None if asked["mem_gb"] is None else f"{round(asked['mem_gb'] * 1024)}M",
        "time": asked["time"],
        "partition": asked["partition"],
        "account": asked["account"],
        "qos": asked["qos"],
        "constraint": asked["constraint"],
        "dependency": batch.dependency,
        "signal_delay_s": options.signal_seconds,
        "setup": options.setup or None,
        "srun_args": ["--kill-on-bad-exit=1"],  # of several tasks, none goes on alone
        "wckey": None,
        "additional_parameters": extra,
    }
    return {key: value for key, value in parameters.items() if value is not None}


def scripts(plan: Plan, options: SlurmLauncherConfig, folder: Path) -> Iterator[str]:
    """The sbatch scripts that would submit a plan of which nothing is done, one an array; submits nothing. Arrays that
    wait for another name it by its place in the list, counted from 1."""
    submission = Submission()
    for place, batch in enumerate(_batches(plan, submission, 1001), 1):
        command = _command(folder)
        parameters = _parameters(options, batch, options.at_once)
        yield _make_sbatch_string(command, folder, map_count=len(batch.tasks), **parameters)
        submission.submitted |= {signature: f"{place}_{task}" for task, signature in batch.tasks.items()}


def _command(folder: Path) -> str:
    """What a job runs: what submitit would, ended by us."""
    return f"{shlex.quote(sys.executable)} -u -m sweeps.execute.slurm_job {shlex.quote(str(folder))}"


class _ArrayExecutor(SlurmExecutor):
    """submitit's executor for an array whose tasks have numbers of our choice."""

    @property
    def _submitit_command_str(self) -> str:
        return _command(self.folder)

    def submit_tasks(self, tasks: Mapping[int, DelayedSubmission]) -> str:
        """The array's number, with the tasks' pickles where its jobs look for them."""
        folder = JobPaths.get_first_id_independent_folder(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        pickles: dict[int, Path] = {}
        for number, task in tasks.items():
            pickles[number] = folder / f"{uuid.uuid4().hex}.pkl"
            task.dump(pickles[number])
        self.parameters["map_count"] = len(tasks)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # what sbatch complains of is told once, by us
                array = self._submit_command(self._submitit_command_str).job_id
        except utils.FailedJobError as error:
            for pickle in pickles.values():
                pickle.unlink()
            raise StageFailure(_refusal(error)) from error
        for number, pickle in pickles.items():
            JobPaths(self.folder, f"{array}_{number}").move_temporary_file(pickle, "submitted_pickle")
        return array


def _refusal(error: BaseException) -> str:
    """What sbatch said, out of submitit's account of it."""
    complaints = [line for line in str(error).splitlines() if "sbatch:" in line]
    return own_words("\n".join(complaints)) or str(error)


def _submit(
    batch: _Batch,
    plan: Plan,
    store: Store,
    tracking: TrackingConfig,
    options: SlurmLauncherConfig,
    folder: Path,
    submission: Submission,
) -> None:
    """Submit one array and record its jobs; a refusal is noted, and the rest goes on."""
    executor = _ArrayExecutor(folder)
    executor.parameters = _parameters(options, batch, options.at_once)
    tasks = {}
    for number, signature in batch.tasks.items():
        run = plan.runs[signature]
        task = DelayedSubmission(perform, str(store.root), run.spec, tracking, options.requeues)
        task.set_timeout(executor.parameters["time"], options.requeues)
        tasks[number] = task
    try:
        array = executor.submit_tasks(tasks)
    except StageFailure as refusal:
        submission.refused.setdefault(str(refusal), []).extend(batch.tasks.values())
        return
    for number, signature in batch.tasks.items():
        run, job = plan.runs[signature], f"{array}_{number}"
        stored = store.run(run.stage, signature)
        stored.folder.mkdir(parents=True, exist_ok=True)
        write_json(stored.folder / "spec.json", run.spec)
        record = {
            "id": job,
            "user": getpass.getuser(),
            "submitted": time.time(),
            "log": str(JobPaths(folder, job, 0).stderr),
            "stdout": str(JobPaths(folder, job, 0).stdout),
        }
        attempts = stored.state.get("attempts", [])
        write_json(
            stored.folder / "state.json", {"format": FORMAT, "status": "queued", "attempts": attempts, "job": record}
        )
        submission.submitted[signature] = job
