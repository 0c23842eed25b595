"""A tiny cell through the real local executor, in an allocation and a folder whose packages have our names."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.execute.local import unrecorded_error
from sweeps.monitor.status import tail
from sweeps.store.stage_runs import Store, StoredRun
from tests.conftest import SMALL

pytestmark = pytest.mark.slow

DECOYS = ("analysis", "conf", "pipelines", "sweeps")
ALLOCATION = {
    **{"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "work", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"},
    **{"SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_NODELIST": "a[1-2]", "SLURM_PROCID": "1"},
    **{"SLURM_LOCALID": "1", "SLURM_NODEID": "0", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"},
    **{"MASTER_ADDR": "a1", "MASTER_PORT": "1", "PMI_RANK": "1", "OMPI_COMM_WORLD_RANK": "1"},
}
"""What srun sets in a task of an interactive allocation, and torchrun and MPI in a rank."""
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|DEBUG) ")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of a cell that was run in an allocation and a folder where packages of our names raise at import."""
    folder = tmp_path_factory.mktemp("decoys")
    for name in DECOYS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(
            f"raise AssertionError('{name} of the working directory was imported')"
        )
    removed = ("PYTHONPATH", "SHAPING_LOG_LEVEL", "SHAPING_DEBUG")
    environment = ALLOCATION | {k: v for k, v in os.environ.items() if k not in removed}
    finished = subprocess.run(
        [Path(sys.executable).with_name("shaping-run"), *SMALL, "until=pretrain", "pretrain.milestones=1"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stderr == ""
    return Store.open(folder / "store")


def check_log(lines: list[str], run: StoredRun) -> None:
    """A log has the start, every ledger row and the end of a stage run, and no line of a library."""
    assert f"{run.stage} nano/ce/seed1 ({run.signature}): attempt 1 starts" in lines[0]
    assert re.search(rf"\({run.signature}\): done in [\d.]+ s$", lines[-1])
    for row in run.ledger():
        assert any(f"INFO step {row['step']} " in line for line in lines), row
    assert [line for line in lines if not LINE.match(line)] == []


def test_packages_of_the_working_directory_are_not_imported(store: Store) -> None:
    assert {run.status for run in store.runs()} == {"done"}


def test_inside_an_allocation_a_stage_run_trains_as_anywhere_else(store: Store) -> None:
    assert [run.result["ranks"] for run in store.runs() if run.result] == [1, 1]


@pytest.mark.parametrize("stage", ["pretrain", "evaluate"])
def test_the_log_of_a_stage_run_shows_its_start_rows_and_end_and_nothing_else(store: Store, stage: str) -> None:
    (run,) = [run for run in store.runs() if run.stage == stage]
    log = Path(run.state["attempts"][-1]["log"])
    check_log(log.read_text().splitlines(), run)
    assert log.with_suffix(".out").read_text() == ""


def test_the_level_of_the_command_reaches_its_workers(store: Store, tmp_path: Path) -> None:
    """A worker is forked from a server that may have been started with another level."""
    from sweeps.execute.fork_server import start_worker

    worker = start_worker(print_level, tmp_path, environment={"SHAPING_LOG_LEVEL": "DEBUG"}, tracked=False)
    worker.process.join(60)
    assert tail(worker.log)[-1].endswith("DEBUG a line")


def print_level(log: Path) -> None:
    from pipelines.logs import set_up_logging

    set_up_logging()
    logging.getLogger("sweeps").debug("a line")


@pytest.mark.parametrize("free_bytes", [0, 2**30])
def test_a_message_that_a_full_disk_cut_short_is_not_shown(
    free_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, message = tmp_path / "log", "store=x: No space left on device; free some space and run the same command again"
    disk = os.statvfs_result((1, 1, free_bytes, free_bytes, free_bytes, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    text = f"some lines\npipelines.errors.StageFailure: {message}\n"
    for length in range(len(text) + 1):
        log.write_text(text[:length])
        error = unrecorded_error(tmp_path, log, 1)
        if length == len(text):
            assert error == message
        elif free_bytes:
            assert error == "its worker died without an error message (exit code 1)"
        else:
            assert error == f"store={tmp_path}: No space left on device; free some space and run the same command again"
