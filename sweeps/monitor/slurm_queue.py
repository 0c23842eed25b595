"""States of jobs in Slurm: from squeue, then from sacct for jobs that squeue has forgotten, if there is accounting.

Jobs are named as in Slurm: `12_3` for task 3 of array 12, or `12`.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.errors import StageFailure
from sweeps.monitor.slurm_environment import without_surroundings

WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESIZING")
ACTIVE = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT", "SIGNALING")

EXPLANATIONS = {
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it used more memory than it asked for; raise hydra.launcher.mem_gb",
    "TIMEOUT": "its time was up before it could save its state; raise hydra.launcher.time or signal_seconds",
    "PREEMPTED": "a job of higher priority replaced it",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its deadline passed",
    "CANCELLED": "it was cancelled",
    "FAILED": "its process exited with an error",
    "COMPLETED": "it ended without leaving a result",
    "GONE": "Slurm no longer knows the job, and has no accounting record of it",
}

REASONS = {
    "Priority": "jobs of higher priority come first",
    "Resources": "it waits for free nodes, cores, memory or GPUs",
    "JobArrayTaskLimit": "as many tasks of its array as hydra.launcher.at_once allows are running",
    "BeginTime": "Slurm holds a requeued job back for a moment",
    "JobHeldUser": "it is held; scontrol release starts it",
    "JobHeldAdmin": "an administrator holds it, or its start failed",
    "PartitionDown": "its partition is closed",
    "PartitionInactive": "its partition is closed",
    "BadConstraints": "no node of the cluster has what it asks for",
    "PartitionTimeLimit": "its partition allows less than hydra.launcher.time",
    "PartitionNodeLimit": "its partition has or allows fewer nodes",
    "ReqNodeNotAvail": "nodes that it needs are drained, down or reserved",
    "Nodes required for job are DOWN": "nodes that it needs are drained, down or reserved",
    "QOS": "a limit of its QOS (hydra.launcher.qos) is reached",
    "Assoc": "a limit of its account (hydra.launcher.account) is reached",
    "InvalidQOS": "its QOS (hydra.launcher.qos) is not valid any more",
    "InvalidAccount": "its account (hydra.launcher.account) is not valid any more",
}
"""Why a job waits: the beginning of Slurm's reason -> what it means."""

NO_ANSWER = re.compile(
    "unable to contact|connect failure|connection refused|timed out|zero bytes|could not establish a configuration|"
    "failed to fetch config|slurm_persist_conn|unable to establish|authentication error|munge",
    re.IGNORECASE,
)
"""Messages of Slurm's commands that say that its daemons were not reached, rather than what these answered."""


class SlurmUnreachable(StageFailure):
    """Slurm does not answer, which says nothing about its jobs."""


@dataclass(frozen=True)
class JobState:
    """The state of a job in Slurm."""

    name: str
    """Slurm's name of the state (`PENDING`, `NODE_FAIL`, ...), or `GONE` if Slurm does not know the job any more."""
    reason: str = ""

    @property
    def is_waiting(self) -> bool:
        """Whether it is in the queue and can still start."""
        return self.name in WAITING and not self.is_blocked

    @property
    def is_running(self) -> bool:
        """Whether it is running, starting or ending."""
        return self.name in ACTIVE

    @property
    def is_ending(self) -> bool:
        """Whether its processes are being ended; it may be requeued then."""
        return self.name == "COMPLETING"

    @property
    def waits_for(self) -> str | None:
        """Why it does not start yet, unless that is a job that it depends on."""
        if not self.is_waiting or self.reason in ("", "None", "Dependency"):
            return None
        meanings = (text for reason, text in REASONS.items() if self.reason.startswith(reason))
        meaning = next(meanings, None)
        return f"{self.reason}: {meaning}" if meaning else self.reason

    @property
    def is_blocked(self) -> bool:
        """Whether it can never start, because a job that it depends on failed."""
        return self.reason == "DependencyNeverSatisfied"

    def __str__(self) -> str:
        """The state, its reason and what to do about it."""
        detail = f" ({self.reason})" if self.reason not in ("", "None", "NonZeroExitCode") else ""
        return f"{self.name}{detail}: {EXPLANATIONS.get(self.name, 'a state of Slurm')}"


def is_slurm_installed() -> bool:
    """Whether Slurm's commands are installed on this machine."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def slurm(command: Sequence[str]) -> str:
    """The output of one of Slurm's commands.

    Raises `SlurmUnreachable` if Slurm does not answer, and `StageFailure` with its message if it refuses.
    """
    try:
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            # A user's SQUEUE_USERS or SCANCEL_STATE would hide jobs.
            env=without_surroundings(os.environ),
        )
    except FileNotFoundError as error:
        raise StageFailure(f"{command[0]}: the command does not exist; this machine has no Slurm") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnreachable(f"Slurm does not answer: {command[0]} took more than two minutes") from error
    if finished.returncode:
        raise slurm_failure(finished.stderr, f"{command[0]} failed with exit code {finished.returncode}")
    return finished.stdout


def slurm_failure(stderr: str, otherwise: str) -> StageFailure:
    """The exception for what a failed command of Slurm printed; `otherwise` is its message if that is nothing."""
    message = slurm_message(stderr)
    if NO_ANSWER.search(message):
        return SlurmUnreachable(f"Slurm does not answer ({message.removeprefix('Slurm says: ')}); try again later")
    return StageFailure(message or otherwise)


def slurm_message(stderr: str) -> str:
    """The message of one of Slurm's commands, on one line; empty if it printed none."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in stderr.splitlines() if line.strip()]
    return "Slurm says: " + "; ".join(dict.fromkeys(lines)) if lines else ""


def job_states(jobs: Iterable[str]) -> dict[str, JobState]:
    """The state of each of `jobs`; all are `GONE` on a machine without Slurm.

    Raises `SlurmUnreachable` if Slurm does not answer.
    """
    job_ids = set(jobs)
    states: dict[str, JobState] = {}
    if job_ids and is_slurm_installed():
        # All jobs are listed, since naming a forgotten one is an error; -r lists each task of an array.
        for line in slurm(["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r"]).splitlines():
            job, name, reason = [*line.split("|"), "", ""][:3]
            if job in job_ids:
                states[job] = JobState(name, reason)
        # squeue forgets a job a few minutes after its end.
        missing = job_ids - set(states)
        if missing:
            states |= _accounted(missing)
    return {job: states.get(job, JobState("GONE")) for job in job_ids}


def _accounted(jobs: set[str]) -> dict[str, JobState]:
    """States from the accounting database, of the jobs that it knows; empty without accounting.

    squeue lists every job that is not over, so if the database does not answer they are `GONE`, for that reason.
    """
    numbers = ",".join(sorted({job.split("_")[0] for job in jobs}))
    try:
        listing = slurm(["sacct", "-n", "-P", "-X", "-j", numbers, "--array", "-o", "JobID,State,Reason"])
    except SlurmUnreachable as error:
        return {job: JobState("GONE", str(error)) for job in jobs}
    except StageFailure:
        return {}
    states = {}
    for line in listing.splitlines():
        job, name, reason = [*line.split("|"), "", ""][:3]
        if job in jobs and name:
            states[job] = JobState(name.split()[0].rstrip("+"), "" if reason == "None" else reason)
    return states
