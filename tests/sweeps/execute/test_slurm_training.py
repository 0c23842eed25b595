"""Real training as jobs of a real Slurm: exact resume, logs, an evaluation, several tasks, also of RL."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.fault_differences import wandb_steps
from sweeps.store.stage_runs import Store, StoredRun
from tests.conftest import SMALL, Command
from tests.sweeps.cluster import FEW, NEEDS_SLURM, REPOSITORY, SLURM, Cluster, pretraining
from tests.sweeps.execute.test_local import check_log

pytestmark = NEEDS_SLURM

ON_THIS_MACHINE = "hydra.launcher.setup=['export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo']"
"""The nodes are this machine, and their names are no names of hosts."""


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


@pytest.mark.ci_only
@pytest.mark.parametrize("places", ["tasks", "nodes"])
def test_two_tasks_train_as_one(plain: Cluster, shaping_run: Command, tmp_path: Path, places: str) -> None:
    """Each of two tasks, of one node or two, takes half of every batch: the same, up to the order of summation."""
    cell = [*SMALL, *FEW, "until=pretrain"]
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    plain.train(two, *cell, *SLURM, f"hydra.launcher.pretrain.{places}=2", ON_THIS_MACHINE)
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


COIN = """
import zlib
from pipelines.plugins import answer_format, verifier

@verifier("coin")
def coin(answer, reference):
    return float(zlib.crc32(answer.encode()) & 1)

answer_format("coin", prompt="{question}", answer=r"(?s)(.+)", verifier="coin")
"""
"""A reward that a model which has learned nothing gets for half of its complete responses."""

REWARDED = [
    *("grpo.prompts=4", "grpo.samples=8", "grpo.max_new_tokens=48", "grpo.steps=3", "grpo.resample_rounds=4"),
    *("grpo.learning_rate=1e-3", "grpo.held_out_every=1", "grpo.held_out_problems=8"),
]


def reinforced(folder: Path) -> StoredRun:
    """The only RL in the folder's store."""
    (run,) = [run for run in Store.open(folder / "store").runs() if run.stage == "grpo"]
    return run


@pytest.mark.timeout(1500)
@pytest.mark.ci_only
def test_two_tasks_do_the_rl_of_one(plain: Cluster, shaping_run: Command, tmp_path: Path) -> None:
    """From the same mid-trained model two tasks of a job sample, verify and update as one process does."""
    mine, one, two = (tmp_path / name for name in ("mine", "one", "two"))
    mine.mkdir()
    one.mkdir()
    (mine / "rewards.py").write_text(COIN)
    (mine / "plugins.yaml").write_text("plugins: [rewards]")
    questions = [{"question": f"what of {i}?", "answer": "1", "format": "coin"} for i in range(60)]
    (mine / "coin.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    cell = ["--config-dir", str(mine), *SMALL, *FEW, *REWARDED, f"grpo.tasks=[{mine}/coin.jsonl]"]
    started = shaping_run(*cell, "tracking=off", "until=midtrain", cwd=one)
    assert started.returncode == 0, started.stdout + started.stderr
    shutil.copytree(one, two)
    # On a busy machine two tasks may take longer than the five minutes of the other tests' jobs.
    slurm = [*SLURM, "hydra.launcher.grpo.tasks=2", "hydra.launcher.grpo.time=30", ON_THIS_MACHINE]
    plain.train(two, *cell, *slurm)
    alone = shaping_run(*cell, "tracking=off", cwd=one)
    assert alone.returncode == 0, alone.stdout + alone.stderr

    def ended(counts: dict[str, int]) -> bool:
        assert not {"failed", "interrupted"} & set(counts), plain.sweeps(two, "status").stdout
        return reinforced(two).result is not None

    plain.until(two, ended, 600)
    plain.sweeps(two, "cancel", "*")  # only the evaluation is left
    assert plain.sweeps(two, "verify").returncode == 0
    log = Path(reinforced(two).state["attempts"][0]["log"])
    check_log(log.read_text().splitlines(), reinforced(two))
    assert log.with_name(log.name.replace("_0_log", "_1_log")).read_text() == ""
    results = []
    for folder, tasks in ((one, 1), (two, 2)):
        run = reinforced(folder)
        assert run.result is not None
        assert run.result["ranks"] == tasks
        assert not [file for file in run.result["files"] if file.startswith((".", "failed"))]
        (weights,) = run.folder.glob("checkpoints/*/model.safetensors")
        results.append((load_file(weights), run.ledger(), (run.folder / "samples.jsonl").read_text()))
    assert any(not row["skipped"] and row["gradient_norm"] > 0 for row in results[0][1] if row["step"])
    for column in ("reward", "groups_kept", "response_length", "held_out_reward", "skipped"):
        one_rank, two_ranks = ([row[column] for row in rows if column in row] for _, rows, _ in results)
        assert len(one_rank) >= 3
        assert two_ranks == pytest.approx(one_rank, rel=1e-5), column
    assert results[0][2] == results[1][2]
    for name, tensor in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], tensor, rtol=1e-3, atol=1e-4)
