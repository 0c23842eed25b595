"""submitit's executor for this machine, with jobs that start in a moment.

submitit starts a fresh interpreter for each job, which spends 10 to 20 s on imports. Here each job is forked from a
process that has imported the libraries (`sweeps.execute.fork_server`). Job files, logs and results are submitit's, so
a job is the same call of `run_submitted` on this machine and on Slurm.
"""

import os
import time
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from submitit.core.submission import process_job
from submitit.core.utils import JobPaths
from submitit.local.local import LocalExecutor, LocalJob

from pipelines.logs import set_up_logging
from sweeps.execute.fork_server import start_worker


class ForkedExecutor(LocalExecutor):
    """Submits calls to forked workers; `tracked` if they log to W&B, which is then imported before they are forked."""

    def __init__(self, folder: Path, *, tracked: bool) -> None:
        super().__init__(folder)
        self._throttling = 0.0  # submitit spaces submissions out to protect the scheduler of a cluster
        self._tracked = tracked
        self.environment: dict[str, str] = {}
        """Environment variables of the jobs that are submitted next."""
        self.processes: dict[str, BaseProcess] = {}
        """Job id -> its process; the id is the process id."""

    def _submit_command(self, command: str) -> LocalJob[Any]:
        """What submitit calls to start a job, before it moves the job's pickle to where the job looks for it."""
        work = partial(run_job, self.folder)
        worker = start_worker(work, self.folder, environment=self.environment, tracked=self._tracked)
        job_id = str(worker.process.pid)
        self.processes[job_id] = worker.process
        return LocalJob(self.folder, job_id, process=_Process(worker.process))  # type: ignore[arg-type]


class _Process:
    """The methods of `subprocess.Popen` that submitit's `LocalJob` calls, for a process of `multiprocessing`."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.pid and self.poll() is None:
            os.kill(self._process.pid, number)


def run_job(folder: Path, log: Path) -> None:
    """The body of a worker: become submitit's task 0 and run the pickled call. The fork server preloads this module."""
    set_up_logging()  # before submitit logs how it starts
    job_id = str(os.getpid())
    os.environ.update(
        SUBMITIT_EXECUTOR="local",
        SUBMITIT_LOCAL_JOB_ID=job_id,
        SUBMITIT_LOCAL_NTASKS="1",
        SUBMITIT_LOCAL_JOB_NUM_NODES="1",
        SUBMITIT_LOCAL_NODEID="0",
        SUBMITIT_LOCAL_GLOBALID="0",
        SUBMITIT_LOCAL_LOCALID="0",
    )
    # submitit itself would look for the pickle once a second.
    while not JobPaths(folder, job_id, 0).submitted_pickle.exists():
        time.sleep(0.002)
    process_job(folder)
