"""A cell that two ranks of torchrun train together: shared batches and rollouts, sharded weights, one writer.

The result is that of one process, except for the order of summation.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.configuration import TRAINING_STAGES
from sweeps.commands.torchrun import torchrun_task
from sweeps.compose.cells import compose_jobs
from sweeps.execute.fork_server import restore_signals
from sweeps.execute.worker import Task
from sweeps.monitor.launched_sweeps import records
from sweeps.store.stage_runs import Store
from tests.conftest import SMALL, Command
from tests.forked import forked
from tests.in_process import Result, in_process

pytestmark = pytest.mark.slow

CELL = [
    *SMALL,
    "tracking=off",
    "until=grpo",
    "model.experts=4",
    "model.active_experts=2",
    "compute.strategy=fsdp",
    "compute.micro_batch_tokens=256",
    "evaluation.benchmarks={Docstrings:{kind:text,group:text,task:text,items:4}}",
    "pretrain.milestones=1",
]


def torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "sweeps.commands.torchrun", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def one_rank(ranks: int, folder: Path, *arguments: str, rank: int = 0) -> Result:
    """Start a single rank without the others; it must not need them."""
    variables = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return in_process("sweeps.commands.torchrun", *arguments, cwd=folder, environment=environment)


def test_a_process_is_what_torchrun_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"TORCHELASTIC_RUN_ID": "id", "MASTER_ADDR": "node1", "MASTER_PORT": "29500", "RANK": "5",
                 "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RESTART_COUNT": "2"}  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    task = torchrun_task(tmp_path)
    assert task == Task("id-node1-29500-2-0", tmp_path / "jobs" / "id-node1-29500-2-0_5_log.err", 5, 8, 2)
    assert isinstance(task.nodes, int)


@pytest.mark.ci_only
def test_ranks_share_a_cell(tmp_path: Path, shaping_run: Command) -> None:
    finished = torchrun(tmp_path, *CELL)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    store = Store.open(tmp_path / "store")
    (folder,) = (tmp_path / "store" / "pretrain").iterdir()
    pretrain = store.run("pretrain", folder.name)
    assert pretrain.status == "done"
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert {"expert_load_max", "router_bias_span", "step_seconds_p50", "memory_gib"} <= rows[-1].keys()
    card = (folder / "checkpoints" / "step-000008" / "README.md").read_text()
    assert folder.name in card
    assert "beta 0.0" in card
    (rl,) = (tmp_path / "store" / "grpo").iterdir()
    assert [json.loads(line)["step"] for line in (rl / "ledger.jsonl").read_text().splitlines()] == [0, 1, 2]
    assert {json.loads(path.read_text())["ranks"] for path in (tmp_path / "store").glob("*/*/result.json")} == {2}
    assert {path.parent.name for path in (tmp_path / "store").glob("*/*")} > {*TRAINING_STAGES, "evaluate"}
    again = one_rank(2, tmp_path, *CELL)
    assert again.returncode == 0, again.stderr  # all is done
    other = shaping_run(*CELL, "until=pretrain", f"store={tmp_path / 'one'}", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    single = [json.loads(line) for line in next((tmp_path / "one").glob("pretrain/*/ledger.jsonl")).open()]
    assert [row["loss"] for row in single] == pytest.approx([row["loss"] for row in rows], rel=1e-4)


def _alone(folder: Path, arguments: list[str]) -> None:
    """The body of a process: the only rank of a torchrun, with the handlers of a fresh program."""
    restore_signals()
    result = one_rank(1, folder, *arguments)
    (folder / "errors").write_text(result.stderr)
    sys.exit(result.returncode)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store has the tokens after the first test."""
    return tmp_path_factory.mktemp("signals")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_saves_the_state_and_is_the_exit_code(folder: Path, number: signal.Signals) -> None:
    """Between two micro-batches of a step, too."""
    arguments = [*CELL, "pretrain.tokens=1_000_000", "compute.strategy=auto", f"seed={number}", "until=pretrain"]
    process = forked.Process(target=_alone, args=(folder, arguments))
    process.start()
    assert process.pid is not None
    deadline = time.monotonic() + 120
    while not any(path.read_text() for path in folder.glob("store/pretrain/*/work-*/ledger.jsonl")):
        assert process.is_alive(), (folder / "errors").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert (folder / "errors").read_text().endswith(f"stopped by {number.name}; the same command resumes\n")
    (stored,) = [run for run in Store.open(folder / "store").runs() if run.spec["config"]["seed"] == number]
    assert stored.status == "interrupted"
    (state,) = stored.work.glob("resume/step-*")
    assert int(state.name[5:]) >= stored.last_row()["step"]
    shutil.rmtree(stored.folder)


def test_a_batch_that_ranks_cannot_share_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    finished = one_rank(3, tmp_path, *CELL, "compute.micro_batch_tokens=null")
    assert finished.returncode == 2
    assert "its 16 rows of 64 cannot be shared by 3 ranks; rank counts that fit: 1, 2, 4, 8, 16" in finished.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.timeout(180)
def test_all_ranks_find_the_store_and_a_grid_is_recorded_cell_by_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sweeps.commands.torchrun.perform", lambda *arguments, **more: True)
    for rank in (0, 1):
        assert one_rank(2, tmp_path, *CELL, "seed=1,2", "store='~/store'", rank=rank).returncode == 0
    (sweep,) = records(Store.open(tmp_path / "store"))
    assert [cell.seed for cell in compose_jobs(sweep.jobs)] == [1, 2]
