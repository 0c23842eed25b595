"""A real Slurm of two nodes for tests, and this project's commands on it."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from sweeps.monitor.status import rows
from sweeps.store.stage_runs import Store, StoredRun
from tests.in_process import in_process

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "tests" / "slurm" / "cluster.sh"
MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name) is None]

NEEDS_SLURM = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no Slurm here ({', '.join(MISSING)}); tests/slurm/cluster.sh install"),
    pytest.mark.skipif(os.getuid() != 0, reason="starting a Slurm needs root"),
]

SLURM = ["hydra/launcher=slurm", "hydra.launcher.time=5", "tracking=off"]
NO_CONTROLS = ["evaluation.controls.matched=[]", "evaluation.controls.theory=[]"]
FEW = ["pretrain.milestones=1", "midtrain.milestones=1", "grpo.milestones=1", *NO_CONTROLS]
"""Six stage runs per cell: three that train, each with one evaluation; no controls."""


def pretraining(folder: Path) -> StoredRun:
    """The only pre-training in the folder's store."""
    (run,) = [run for run in Store.open(folder / "store").runs() if run.stage == "pretrain"]
    return run


class Cluster:
    """A running Slurm and the two commands of this project on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.environment.pop("SHAPING_DEBUG", None)
        self.environment["PYTHONPATH"] = f"{REPOSITORY / 'tests/sweeps/fake'}:{REPOSITORY}"

    def train(self, folder: Path, *arguments: str) -> None:
        """`shaping-run` with the real stages, which train."""
        launched = self.launch(folder, *arguments, PYTHONPATH=str(REPOSITORY))
        assert launched.returncode == 0, launched.stderr

    def call(self, *command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    def launch(self, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`shaping-run`, which submits and returns."""
        return in_process(
            "sweeps.commands.run", *arguments, cwd=folder, environment={**self.environment, **environment}
        )

    def sweeps(self, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return in_process(
            "sweeps.commands.shaping_sweeps", *arguments, cwd=folder, environment={**self.environment, **environment}
        )

    def status(self, folder: Path, *filters: str) -> list[dict[str, Any]]:
        return json.loads(self.sweeps(folder, "status", "--json", *filters).stdout)

    def count(self, folder: Path) -> dict[str, int]:
        """Number of stage runs by status, read in this process; polling with a command would keep a core busy."""
        with patch.dict(os.environ, self.environment):
            statuses = [row.status for row in rows(Store.open(folder / "store"))]
        return {status: statuses.count(status) for status in set(statuses)}

    def queue(self) -> list[str]:
        return self.call("squeue", "-h", "-r", "-o", "%i").stdout.split()

    def until(self, folder: Path, reached: Callable[[dict[str, int]], bool], seconds: float = 120) -> dict[str, int]:
        deadline = time.time() + seconds
        while not reached(counts := self.count(folder)):
            assert time.time() < deadline, f"stuck at {counts}: {self.sweeps(folder, 'status').stdout}"
            time.sleep(0.5)
        return counts

    def finished(self, folder: Path, seconds: float = 120) -> dict[str, int]:
        """Wait until nothing is queued or running; returns the number of stage runs by status."""
        return self.until(folder, lambda counts: not {"queued", "running"} & set(counts), seconds)
