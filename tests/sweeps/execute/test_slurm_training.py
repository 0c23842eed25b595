"""Real training as jobs of a real Slurm: exact resume, logs, an evaluation, several tasks."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.fault_differences import wandb_steps
from tests.conftest import SMALL, Command
from tests.sweeps.cluster import FEW, NEEDS_SLURM, REPOSITORY, SLURM, Cluster, pretraining
from tests.sweeps.execute.test_local import check_log

pytestmark = NEEDS_SLURM


@pytest.mark.ci_only
def test_a_requeued_job_gives_the_bits_of_an_uninterrupted_run(
    plain: Cluster, shaping_run: Command, tmp_path: Path
) -> None:
    cell = [*SMALL, *FEW, "pretrain.tokens=300_000", "until=pretrain"]
    plain.train(tmp_path, *cell, *SLURM)
    plain.until(tmp_path, lambda counts: bool(counts.get("running")))
    run = pretraining(tmp_path)
    while len(run.reread().ledger()) < 5:
        time.sleep(0.1)
    plain.call("scancel", "--signal=USR2", plain.status(tmp_path, "stage=pretrain")[0]["job"])
    folder = tmp_path / "uninterrupted"
    folder.mkdir()
    assert shaping_run(*cell, "tracking=off", cwd=folder).returncode == 0
    assert plain.finished(tmp_path, 200) == {"done": 2}
    run, uninterrupted = run.reread(), pretraining(folder)
    assert [attempt.get("error") for attempt in run.state["attempts"]] == ["its time was up", None]
    assert run.result is not None
    assert uninterrupted.result is not None
    weights = [name for name in run.result["files"] if name.endswith(".safetensors")]
    assert weights
    assert [run.result["files"][name] for name in weights] == [uninterrupted.result["files"][name] for name in weights]
    assert [row["step"] for row in run.ledger()] == [row["step"] for row in uninterrupted.ledger()]


@pytest.mark.timeout(600)
@pytest.mark.ci_only
def test_a_requeued_and_a_cancelled_job_save_their_state_with_default_tracking(plain: Cluster, tmp_path: Path) -> None:
    """Slurm's SIGTERM reaches W&B's service too. All three attempts are one W&B run."""
    words = [word for word in SLURM if not word.startswith("tracking")]
    plain.train(tmp_path, *SMALL, *FEW, "pretrain.tokens=1_000_000", "until=pretrain", *words)

    def wait(reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not reached():
            assert time.monotonic() < deadline, plain.sweeps(tmp_path, "status").stdout
            time.sleep(0.1)

    def is_tracked_for(attempts: int) -> bool:
        """Whether that many attempts have begun, and the newest has logged a row and has the only W&B run."""
        run = pretraining(tmp_path).reread()
        if len(began := run.state.get("attempts", [])) != attempts:
            return False
        started = [path.stat().st_mtime for path in tmp_path.glob("store/wandb/offline-run-*/tracking.json")]
        times = [run.last_row().get("time", 0.0), *started]
        return len(times) == 2 and min(times) > began[-1]["started"]

    wait(lambda: is_tracked_for(1))
    job = plain.status(tmp_path, "stage=pretrain")[0]["job"]
    assert plain.call("scontrol", "requeue", job).returncode == 0
    wait(lambda: is_tracked_for(2))
    assert plain.sweeps(tmp_path, "cancel", "*").returncode == 0
    wait(lambda: not plain.queue())
    assert plain.count(tmp_path) == {"cancelled": 2}
    assert list(pretraining(tmp_path).work.glob("resume/step-*"))
    assert plain.sweeps(tmp_path, "retry", PYTHONPATH=str(REPOSITORY)).returncode == 0
    assert plain.finished(tmp_path, 300) == {"done": 2}
    run = pretraining(tmp_path)
    logs = "".join(log.read_text() for log in sorted({Path(attempt["log"]) for attempt in run.state["attempts"]}))
    assert len(re.findall("starting at step 1 ", logs)) == 1
    first, second = (int(step) for step in re.findall(r"resuming after step (\d+) ", logs))
    assert 0 < first < second
    assert "is lost" not in logs
    (file,) = tmp_path.glob(f"store/wandb/*run-*{run.signature}/*.wandb")
    assert wandb_steps(file) == [row["step"] for row in run.ledger()]


@pytest.mark.parametrize("places", ["tasks", pytest.param("nodes", marks=pytest.mark.ci_only)])
def test_two_tasks_train_as_one(plain: Cluster, shaping_run: Command, tmp_path: Path, places: str) -> None:
    """Each of two tasks, of one node or two, takes half of every batch: the same, up to the order of summation."""
    cell = [*SMALL, *FEW, "until=pretrain"]
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    # The nodes are this machine, and their names are no names of hosts.
    setup = "hydra.launcher.setup=['export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo']"
    plain.train(two, *cell, *SLURM, f"hydra.launcher.pretrain.{places}=2", setup)
    assert shaping_run(*cell, "tracking=off", cwd=one).returncode == 0
    plain.until(two, lambda counts: counts.get("done") == 1, 280)
    plain.sweeps(two, "cancel", "*")  # only the evaluation is left, which the other test has
    assert plain.sweeps(two, "verify").returncode == 0
    log = Path(pretraining(two).state["attempts"][0]["log"])
    check_log(log.read_text().splitlines(), pretraining(two))
    assert log.with_name(log.name.replace("_0_log", "_1_log")).read_text() == ""
    results = []
    for folder, tasks in ((one, 1), (two, 2)):
        run = pretraining(folder)
        assert run.result is not None
        assert run.result["ranks"] == tasks
        assert not [file for file in run.result["files"] if file.startswith(".")]
        (weights,) = run.folder.glob("checkpoints/*/model.safetensors")
        results.append((load_file(weights), [row["loss"] for row in run.ledger()]))
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-4)
    for name, tensor in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], tensor, rtol=1e-3, atol=1e-4)
