"""Real training as jobs of a real Slurm: exact resume, several tasks, stages in a chain."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.store import Store
from tests.conftest import SMALL
from tests.sweeps.cluster import FEW, NEEDS_SLURM, SLURM, Cluster

pytestmark = NEEDS_SLURM


def test_a_job_that_was_put_back_ends_with_the_bits_of_an_uninterrupted_run(plain: Cluster, tmp_path: Path) -> None:
    cell = [*SMALL, "pretrain.milestones=1", "pretrain.tokens=300_000", "until=pretrain"]
    command = [sys.executable, "-m", "sweeps.run", *cell]
    launched = subprocess.run(
        [*command, *SLURM], cwd=tmp_path, env=plain.real(), capture_output=True, text=True, check=False
    )
    assert launched.returncode == 0, launched.stderr
    store = Store.open(tmp_path / "store")
    plain.until(tmp_path, lambda found: bool(found.get("running")))
    (run,) = [run for run in store.runs() if run.stage == "pretrain"]
    while len(run.again().ledger()) < 5:
        time.sleep(0.1)
    plain.call("scancel", "--signal=USR2", plain.status(tmp_path, "stage=pretrain")[0]["job"])
    alone = tmp_path / "alone"
    alone.mkdir()
    subprocess.run([*command, "tracking=off"], cwd=alone, stdout=subprocess.DEVNULL, check=True)
    assert plain.finished(tmp_path, 200) == {"done": 2}
    run, whole = run.again(), Store.open(alone / "store").run("pretrain", run.signature)
    assert [attempt.get("error") for attempt in run.state["attempts"]] == ["its time was up", None]
    assert run.result is not None
    assert whole.result is not None
    weights = [name for name in run.result["files"] if name.endswith(".safetensors")]
    assert weights
    assert [run.result["files"][name] for name in weights] == [whole.result["files"][name] for name in weights]
    assert [row["step"] for row in run.ledger()] == [row["step"] for row in whole.ledger()]


def test_stages_follow_each_other_and_two_tasks_train_as_one(plain: Cluster, tmp_path: Path) -> None:
    """Two tasks take half of every batch each: the same training, up to the order in which numbers are added. What one
    task has trained goes on to mid-training, in a job of its own."""
    import torch
    from safetensors.torch import load_file

    cells = {"one": (1, "midtrain"), "two": (2, "pretrain")}
    for name, (tasks, until) in cells.items():
        (tmp_path / name).mkdir()
        words = [*SMALL, *FEW, *SLURM, f"hydra.launcher.pretrain.tasks={tasks}", f"until={until}"]
        command = [sys.executable, "-m", "sweeps.run", *words]
        subprocess.run(command, cwd=tmp_path / name, env=plain.real(), check=True, stdout=subprocess.DEVNULL)
    found = {}
    for name, (tasks, until) in cells.items():
        assert plain.finished(tmp_path / name, 280) == {"done": 4 if until == "midtrain" else 2}
        assert plain.sweeps(tmp_path / name, "verify").returncode == 0
        (run,) = [run for run in Store.open(tmp_path / name / "store").runs() if run.stage == "pretrain"]
        assert run.result is not None
        assert run.result["ranks"] == tasks
        assert not [file for file in run.result["files"] if file.startswith(".")]
        (weights,) = run.folder.glob("checkpoints/*/model.safetensors")
        found[name] = (load_file(weights), [row["loss"] for row in run.ledger()])
    assert found["two"][1] == pytest.approx(found["one"][1], rel=1e-4)
    for name, tensor in found["one"][0].items():
        torch.testing.assert_close(found["two"][0][name], tensor, rtol=1e-3, atol=1e-4)
