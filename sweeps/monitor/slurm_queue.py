"""What Slurm says of jobs: squeue first, then sacct where there is accounting. Works without a database.

Jobs are named as arrays name them, `12_3`, or `12`.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.errors import StageFailure

WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESIZING")
ACTIVE = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT", "SIGNALING")

MEANINGS = {
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it used more memory than it asked for; raise hydra.launcher.mem_gb",
    "TIMEOUT": "its time was up before it could save its state; raise hydra.launcher.time or signal_seconds",
    "PREEMPTED": "a job of higher priority took its place",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its deadline passed",
    "CANCELLED": "it was cancelled",
    "FAILED": "its process ended badly",
    "COMPLETED": "it ended without leaving a result",
    "GONE": "Slurm no longer knows the job, and there is no accounting to ask",
}


@dataclass(frozen=True)
class JobState:
    """A job as Slurm sees it."""

    name: str
    """Slurm's word (`PENDING`, `NODE_FAIL`, ...), or `GONE` where it knows nothing of the job any more."""
    reason: str = ""

    @property
    def waits(self) -> bool:
        """Whether it is in the queue."""
        return self.name in WAITING and not self.blocked

    @property
    def runs(self) -> bool:
        """Whether it is at work."""
        return self.name in ACTIVE

    @property
    def blocked(self) -> bool:
        """Whether it can never start, since what it depends on went wrong."""
        return self.reason == "DependencyNeverSatisfied"

    def __str__(self) -> str:
        """Slurm's word and what it means."""
        detail = f" ({self.reason})" if self.reason not in ("", "None", "NonZeroExitCode") else ""
        return f"{self.name}{detail}: {MEANINGS.get(self.name, 'so Slurm says')}"


def is_here() -> bool:
    """Whether Slurm's commands are on this machine."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def slurm(command: Sequence[str]) -> str:
    """The output of one of Slurm's commands; raises `StageFailure` with Slurm's own words."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError as error:
        raise StageFailure(f"{command[0]}: there is no such command here; this machine has no Slurm") from error
    except subprocess.TimeoutExpired as error:
        raise StageFailure(f"{command[0]}: Slurm did not answer in two minutes") from error
    if found.returncode:
        raise StageFailure(own_words(found.stderr) or f"{command[0]} ended with exit code {found.returncode}")
    return found.stdout


def own_words(stderr: str) -> str:
    """What one of Slurm's commands complained about, on one line."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in stderr.splitlines() if line.strip()]
    return "Slurm says: " + "; ".join(dict.fromkeys(lines)) if lines else ""


def job_states(jobs: Iterable[str]) -> dict[str, JobState]:
    """What Slurm knows of each of `jobs`; all are `GONE` on a machine without Slurm.

    Raises `StageFailure` where Slurm does not answer: that says nothing about its jobs.
    """
    wanted = set(jobs)
    found: dict[str, JobState] = {}
    if wanted and is_here():
        # All jobs, since naming one that Slurm has forgotten is an error; -r lists each task of an array.
        for line in slurm(["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r"]).splitlines():
            job, name, reason = [*line.split("|"), "", ""][:3]
            if job in wanted:
                found[job] = JobState(name, reason)
        missing = wanted - set(found)
        if missing:
            found |= _accounted(missing)
    return {job: found.get(job, JobState("GONE")) for job in wanted}


def _accounted(jobs: set[str]) -> dict[str, JobState]:
    """The same from the accounting database; nothing where there is none."""
    numbers = ",".join(sorted({job.split("_")[0] for job in jobs}))
    try:
        listing = slurm(["sacct", "-n", "-P", "-X", "-j", numbers, "--array", "-o", "JobID,State,Reason"])
    except StageFailure:
        return {}
    found = {}
    for line in listing.splitlines():
        job, name, reason = [*line.split("|"), "", ""][:3]
        if job in jobs and name:
            found[job] = JobState(name.split()[0].rstrip("+"), "" if reason == "None" else reason)
    return found
