"""How many processor cores this process may use, and its share of them where others use the same. Loads no torch."""

import os

from pipelines.control_groups import cores_allowed

CORES_VARIABLE = "SHAPING_CORES"
"""Environment variable with the cores of a worker that runs next to others on one machine."""


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control groups."""
    affinity = len(os.sched_getaffinity(0))
    return min(affinity, cores_allowed() or affinity)


def share_of_cores(processes: int = 1) -> int:
    """This process's share, at least 1, of the cores of a machine on which `processes` ranks run.

    Ranks that torchrun starts see the same cores and share them. A task of Slurm may be bound to cores of its own,
    which are then fewer than the job has on the machine.
    """
    cores = available_cores()
    allotted = os.environ.get(CORES_VARIABLE, "")
    if allotted.isdigit():
        cores = min(cores, max(1, int(allotted)))
    of_the_job = os.environ.get("SLURM_CPUS_ON_NODE", "")
    bound = of_the_job.isdigit() and available_cores() < int(of_the_job)
    return cores if bound else max(1, cores // processes)
