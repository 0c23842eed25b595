"""States of jobs in Slurm: from squeue, then from sacct for jobs that squeue has forgotten, if there is accounting.

Jobs are named as in Slurm: `12_3` for task 3 of array 12, or `12`.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.errors import StageFailure

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
    "GONE": "Slurm no longer knows the job, and it keeps no accounting",
}


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
    """The output of one of Slurm's commands; raises `StageFailure` with Slurm's message."""
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError as error:
        raise StageFailure(f"{command[0]}: the command does not exist; this machine has no Slurm") from error
    except subprocess.TimeoutExpired as error:
        raise StageFailure(f"{command[0]}: Slurm did not answer in two minutes") from error
    if finished.returncode:
        message = slurm_message(finished.stderr) or f"{command[0]} failed with exit code {finished.returncode}"
        raise StageFailure(message)
    return finished.stdout


def slurm_message(stderr: str) -> str:
    """The message of one of Slurm's commands, on one line; empty if it printed none."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in stderr.splitlines() if line.strip()]
    return "Slurm says: " + "; ".join(dict.fromkeys(lines)) if lines else ""


def job_states(jobs: Iterable[str]) -> dict[str, JobState]:
    """The state of each of `jobs`; all are `GONE` on a machine without Slurm.

    Raises `StageFailure` if Slurm does not answer, which says nothing about its jobs.
    """
    wanted = set(jobs)
    states: dict[str, JobState] = {}
    if wanted and is_slurm_installed():
        # All jobs are listed, since naming a forgotten one is an error; -r lists each task of an array.
        for line in slurm(["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r"]).splitlines():
            job, name, reason = [*line.split("|"), "", ""][:3]
            if job in wanted:
                states[job] = JobState(name, reason)
        # squeue forgets a job a few minutes after its end.
        missing = wanted - set(states)
        if missing:
            states |= _accounted(missing)
    return {job: states.get(job, JobState("GONE")) for job in wanted}


def _accounted(jobs: set[str]) -> dict[str, JobState]:
    """States from the accounting database, of the jobs that it knows; empty without accounting."""
    numbers = ",".join(sorted({job.split("_")[0] for job in jobs}))
    try:
        listing = slurm(["sacct", "-n", "-P", "-X", "-j", numbers, "--array", "-o", "JobID,State,Reason"])
    except StageFailure:
        return {}
    states = {}
    for line in listing.splitlines():
        job, name, reason = [*line.split("|"), "", ""][:3]
        if job in jobs and name:
            states[job] = JobState(name.split()[0].rstrip("+"), "" if reason == "None" else reason)
    return states
