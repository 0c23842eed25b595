"""Real training as jobs of a real Slurm: exact resume, logs, an evaluation, several tasks."""

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import SMALL, Command
from tests.sweeps.cluster import FEW, NEEDS_SLURM, SLURM, Cluster, pretraining
from tests.sweeps.execute.test_local import check_log

pytestmark = NEEDS_SLURM


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


@pytest.mark.parametrize("places", ["tasks", "nodes"])
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
