"""The process of a Slurm job: submitit's, which loads a pickled call of `run_task` and makes it."""

import os
from pathlib import Path
from typing import Any

from submitit import JobEnvironment
from submitit.core.submission import submitit_main

from pipelines.configuration.tracking import TrackingConfig
from pipelines.logs import set_up_logging
from sweeps.execute.quick_exit import quick_exit
from sweeps.execute.worker import Task, perform


def run_task(root: str, spec: dict[str, Any], tracking: TrackingConfig, *, requeues: int) -> bool:
    """Run a stage run, or this task's share of it, as what Slurm says that this process is; see `perform`."""
    job = JobEnvironment()
    task = Task(
        job=f"{job.job_id}-{os.environ.get('SLURM_RESTART_COUNT', 0)}",
        log=Path(job.paths.stderr),
        rank=job.global_rank,
        tasks=job.num_tasks,
        nodes=job.num_nodes,
        slurm_job=job.job_id,
    )
    return perform(root, spec, tracking, task=task, requeues=requeues)


if __name__ == "__main__":
    with quick_exit():
        set_up_logging()  # before submitit logs how it starts
        submitit_main()
