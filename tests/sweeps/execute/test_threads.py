"""Threads of local workers: together they use the cores, and what the user's environment sets is respected."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.execute.fork_server import start_worker
from sweeps.store.stage_runs import Store

REPOSITORY = Path(__file__).parents[3]
FEW = ["until=pretrain", "pretrain.milestones=1", "tracking=off"]
RUN = """
import json, sys
from sweeps.compose.cells import compose_cells
from sweeps.execute.display import Display
from sweeps.execute.local import execute
from sweeps.execute.machine import Machine
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store

cores, workers, overrides = json.loads(sys.argv[1])
cells = compose_cells(overrides)
machine = Machine(cores=cores, memory=2**44, gpus=())
if __name__ == "__main__":
    store = Store.create("store")
    outcome = execute(plan(cells), store, cells[0].tracking, display=Display(), workers=workers, machine=machine)
    assert not outcome.failed, outcome.failed
"""


def threads(folder: Path, cores: int, *overrides: str, workers: int = 0, **environment: str) -> dict[str, set[int]]:
    """The threads of the stage runs by stage, on a machine of so many cores; the stages themselves take no time."""
    (folder / "run.py").write_text(RUN)
    inherited = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    path = f"{REPOSITORY / 'tests/sweeps/fake'}:{REPOSITORY}"
    finished = subprocess.run(
        [sys.executable, "run.py", json.dumps([cores, workers, [*FEW, *overrides]])],
        cwd=folder,
        env={**inherited, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    threads_by_stage: dict[str, set[int]] = {}
    for run in Store.open(folder / "store").runs():
        threads_by_stage.setdefault(run.stage, set()).update(attempt["threads"] for attempt in run.state["attempts"])
    return threads_by_stage


@pytest.mark.parametrize(
    ("cores", "overrides", "workers", "expected"),
    [
        (64, ["model=100M"], 0, 64),  # one stage run has the machine for itself
        (64, ["model=100M", "seed=1,2,3,4"], 0, 16),
        (64, ["model=100M", "seed=1,2,3,4"], 2, 32),
        (2, ["model=100M", "seed=1,2,3,4"], 0, 1),
        (64, ["model=nano"], 0, 1),  # too small for more
        (64, ["model=micro"], 0, 5),
    ],
)
def test_workers_times_threads_fill_the_machine(
    tmp_path: Path, cores: int, overrides: list[str], workers: int, expected: int
) -> None:
    assert threads(tmp_path, cores, *overrides, workers=workers, FAKE_SECONDS="0.5")["pretrain"] == {expected}


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_users_setting_is_respected(tmp_path: Path, name: str) -> None:
    """Also by the number of workers: four cores hold two stage runs with two threads."""
    threads_by_stage = threads(tmp_path, 4, "model=nano", "seed=1,2,3,4", **{name: "2"}, FAKE_SECONDS="0.3")
    assert threads_by_stage == {"pretrain": {2}, "evaluate": {2}}
    times = []
    for run in Store.open(tmp_path / "store").runs():
        (attempt,) = run.state["attempts"]
        times += [(attempt["started"], 1), (attempt["ended"], -1)]
    running = [sum(change for moment, change in times if moment <= until) for until, _ in times]
    assert max(running) == 2


@pytest.mark.slow
def test_torch_has_the_threads_of_its_worker(tmp_path: Path) -> None:
    """The fork server has imported torch with one."""
    for count in ("3", "1"):
        worker = start_worker(print_threads, tmp_path, environment={"OMP_NUM_THREADS": count}, tracked=False)
        worker.process.join(120)
        assert worker.log.with_suffix(".out").read_text().split() == [count] * 3, worker.log.read_text()


def print_threads(log: Path) -> None:
    import torch

    openmp, mkl = (
        next(line.split()[-1] for line in torch.__config__.parallel_info().splitlines() if name in line)
        for name in ("omp_get_max_threads", "mkl_get_max_threads")
    )
    print(torch.get_num_threads(), openmp, mkl)
