"""A real Slurm of two nodes, with and without an accounting database: graphs, failures, time limits, cancelling.

The stages do nothing (`tests/sweeps/fake`), so all the time is Slurm's; `test_slurm_training.py` trains.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration import TRAINING_STAGES
from sweeps.store.stage_runs import Store
from tests.sweeps.cluster import FEW, NEEDS_SLURM, SLURM, Cluster
from tests.sweeps.conftest import Start

pytestmark = NEEDS_SLURM


def attempts(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {run.signature: run.state.get("attempts", []) for run in Store.open(folder / "store").runs()}


def started_stages(folder: Path) -> int:
    """Number of stages that have started. A job is running for Slurm while Python starts; a signal then kills it."""
    return len(list((folder / "store").glob("*/*/work-*/ledger.jsonl")))


def test_a_graph_is_submitted_at_once_and_runs_in_order(cluster: Cluster, tmp_path: Path) -> None:
    launched = cluster.launch(tmp_path, "objective=ce,precision", *FEW, *SLURM)
    assert launched.returncode == 0, launched.stderr
    assert "12 stage runs submitted as 6 job arrays" in launched.stdout
    assert cluster.finished(tmp_path) == {"done": 12}
    names = cluster.call("squeue", "-h", "-t", "all", "-o", "%j").stdout.split()
    assert {
        f"nano/{objective}/seed1:{stage}"
        for objective in ("ce", "precision")
        for stage in (*TRAINING_STAGES, "evaluate")
    } <= set(names)
    store = Store.open(tmp_path / "store")
    ends = {run.signature: run.state["attempts"][-1]["ended"] for run in store.runs()}
    for run in store.runs():
        assert len(run.state["attempts"]) == 1
        assert run.state["attempts"][0]["job"] == run.state["job"]["id"]
        if parent := run.spec["parent"]:
            assert run.state["attempts"][0]["started"] >= ends[parent["signature"]]
    assert cluster.sweeps(tmp_path, "verify").returncode == 0
    again = cluster.launch(tmp_path, "objective=ce,precision", *FEW, *SLURM)
    assert "0 stage runs submitted, 0 were queued or running already, 12 are done" in again.stdout


def test_a_control_waits_for_both_of_its_checkpoints(plain: Cluster, tmp_path: Path) -> None:
    words = [*FEW, *SLURM, "until=midtrain", "evaluation.controls.matched=[midtrain]"]
    launched = plain.launch(tmp_path, "objective=ce,precision", *words)
    assert launched.returncode == 0, launched.stderr
    assert plain.finished(tmp_path) == {"done": 9}
    runs = {run.signature: run for run in Store.open(tmp_path / "store").runs()}
    (control,) = [run for run in runs.values() if "variant" in run.spec["config"]]
    needs = [control.spec["parent"]["signature"], control.spec["config"]["variant"]["reference"]["signature"]]
    assert len(set(needs)) == 2
    started = control.state["attempts"][0]["started"]
    assert all(started >= runs[need].state["attempts"][-1]["ended"] for need in needs)


def test_a_failure_blocks_only_its_descendants_and_retry_finishes(cluster: Cluster, tmp_path: Path) -> None:
    in_spec = '"beta": -0.25'  # of the precision cell
    launched = cluster.launch(tmp_path, "objective=ce,precision", *FEW, *SLURM, FAKE_FAIL=in_spec)
    assert launched.returncode == 0
    assert cluster.finished(tmp_path) == {"done": 6, "failed": 1, "blocked": 5}
    shown = cluster.sweeps(tmp_path, "status")
    assert shown.returncode == 1
    assert "RuntimeError: asked to fail" in shown.stdout
    assert {row["cell"] for row in cluster.status(tmp_path, "status=failed,blocked")} == {"nano/precision/seed1"}
    assert "asked to fail" in cluster.sweeps(tmp_path, "logs", "nano/precision/seed1:pretrain").stdout
    retried = cluster.sweeps(tmp_path, "retry", "objective=precision")
    assert retried.returncode == 0, retried.stderr
    assert cluster.finished(tmp_path) == {"done": 12}
    counts = [len(records) for records in attempts(tmp_path).values()]
    assert sorted(counts) == [1] * 11 + [2]
    assert "Nothing to retry" in cluster.sweeps(tmp_path, "retry").stdout


def test_two_users_submit_at_once_and_each_stage_run_is_trained_once(start: Start, tmp_path: Path) -> None:
    """With accounting, which learns of a job later than the queue does."""
    cluster = start("slurmdbd")

    def submit(objectives: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "sweeps.commands.run",
            "-m",
            f"objective={objectives}",
            *FEW,
            *SLURM,
            "until=midtrain",
        ]
        environment = {**cluster.environment, "FAKE_SECONDS": "2"}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    submissions = [submit("ce,precision"), submit("precision,diversity")]
    outputs = [process.communicate(timeout=120)[0] for process in submissions]
    assert [process.returncode for process in submissions] == [0, 0]
    assert sum("4 were queued or running already" in output for output in outputs) == 1
    third = cluster.launch(tmp_path, "objective=ce,precision,diversity", *FEW, *SLURM, "until=midtrain")
    assert "0 stage runs submitted, " in third.stdout  # the jobs need nothing from the commands that submitted them
    assert cluster.finished(tmp_path) == {"done": 12}
    assert all(len(records) == 1 for records in attempts(tmp_path).values())


def test_a_later_submission_depends_on_queued_jobs(plain: Cluster, tmp_path: Path) -> None:
    plain.launch(tmp_path, *FEW, *SLURM, "until=pretrain", "seed=1,2", FAKE_SECONDS="3")
    more = plain.launch(tmp_path, *FEW, *SLURM, "until=grpo", "seed=1,2")
    assert "8 stage runs submitted" in more.stdout
    assert plain.finished(tmp_path) == {"done": 12}


def test_cancelled_stage_runs_resume(cluster: Cluster, tmp_path: Path) -> None:
    cluster.launch(tmp_path, *FEW, *SLURM, "seed=1,2", FAKE_SECONDS="60")
    cluster.until(tmp_path, lambda _: started_stages(tmp_path) == 2)
    pretrain = cluster.status(tmp_path, "nano/ce/seed1:pretrain")[0]["job"]
    cluster.call(
        "scancel", "--signal=USR2", pretrain
    )  # as at its time limit: it saves its state, is requeued and resumes
    cluster.until(tmp_path, lambda _: len(attempts(tmp_path)[pretrain_signature(cluster, tmp_path)]) == 2)
    assert cluster.sweeps(tmp_path, "cancel").returncode == 2  # filters are required
    cancelled = cluster.sweeps(tmp_path, "cancel", "*")
    assert cancelled.returncode == 0, cancelled.stderr
    assert not {"done", "failed"} & set(cluster.finished(tmp_path))
    deadline = time.time() + 30
    while cluster.queue() and time.time() < deadline:
        time.sleep(0.5)
    assert cluster.queue() == []
    retried = cluster.sweeps(tmp_path, "retry", FAKE_SECONDS="0")
    assert retried.returncode == 0, retried.stderr
    assert cluster.finished(tmp_path) == {"done": 12}
    resumed = Store.open(tmp_path / "store").run("pretrain", pretrain_signature(cluster, tmp_path)).result
    assert resumed is not None
    assert resumed["metrics"]["resumed"] > 0


def pretrain_signature(cluster: Cluster, folder: Path) -> str:
    return cluster.status(folder, "nano/ce/seed1:pretrain")[0]["signature"]


def test_requeues_have_a_limit(plain: Cluster, tmp_path: Path) -> None:
    plain.launch(tmp_path, *FEW, *SLURM, "until=pretrain", "hydra.launcher.requeues=0", FAKE_SECONDS="60")
    plain.until(tmp_path, lambda _: started_stages(tmp_path) == 1)
    plain.call("scancel", "--signal=USR2", plain.status(tmp_path, "stage=pretrain")[0]["job"])
    assert plain.finished(tmp_path) == {"failed": 1, "blocked": 1}
    assert "raise hydra.launcher.requeues" in plain.sweeps(tmp_path, "status").stdout


def test_a_killed_job_is_explained_by_its_state_and_log(cluster: Cluster, tmp_path: Path) -> None:
    cluster.launch(tmp_path, *FEW, *SLURM, "until=pretrain", FAKE_DIE='"pretrain"')
    assert cluster.finished(tmp_path) == {"failed": 1, "blocked": 1}
    (row,) = cluster.status(tmp_path, "status=failed")
    assert row["error"].startswith("FAILED: its process exited with an error; job ")
    assert "about to die" in row["error"]
    Path(row["log"]).unlink()
    Path(row["log"]).with_suffix(".out").unlink()
    gone = cluster.sweeps(tmp_path, "logs", "nano/ce/seed1:pretrain")
    assert gone.returncode == 2
    assert "does not exist any more" in gone.stderr
    assert "Traceback" not in gone.stderr


@pytest.mark.ci_only
def test_jobs_of_a_failed_node_are_requeued(plain: Cluster, tmp_path: Path) -> None:
    plain.launch(tmp_path, *FEW, *SLURM, "until=pretrain", FAKE_SECONDS="4")
    plain.until(tmp_path, lambda counts: counts.get("running") == 1)
    node = plain.call("sinfo", "-h", "-o", "%N", "-p", "main").stdout.strip()
    plain.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    plain.call("scontrol", "update", f"nodename={node}", "state=resume")
    assert plain.finished(tmp_path) == {"done": 2}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("hydra.launcher.midtrain.partition=nowhere", "invalid partition"),
        ("hydra.launcher.midtrain.partition=short", "time limit"),
        ("hydra.launcher.midtrain.cpus=1000", "more processors requested"),
        ("+hydra.launcher.midtrain.extra.licenses=gold", "license"),
    ],
)
def test_a_refusal_is_reported_with_slurms_message_and_everything_else_runs(
    plain: Cluster, tmp_path: Path, option: str, message: str
) -> None:
    launched = plain.launch(tmp_path, *FEW, *SLURM, option)
    assert launched.returncode == 2
    assert "Slurm says: " in launched.stderr
    assert message.lower() in launched.stderr.lower()
    assert "midtrain nano/ce/seed1" in launched.stderr
    assert "3 stage runs wait for those" in launched.stderr
    assert len(launched.stderr.splitlines()) == 1
    assert plain.finished(tmp_path) == {"done": 2, "missing": 4}


def test_arrays_respect_the_clusters_limit(plain: Cluster, tmp_path: Path) -> None:
    """The cluster takes task numbers below 101, so 150 similar stage runs are two arrays."""
    launched = plain.launch(tmp_path, *FEW, *SLURM, "until=pretrain", "seed=range(1,151)", "hydra.launcher.at_once=1")
    assert launched.returncode == 0, launched.stderr
    assert "300 stage runs submitted as 4 job arrays" in launched.stdout
    pending = plain.call("squeue", "-h", "-o", "%i %T").stdout
    assert "%1]" in pending
    assert plain.sweeps(tmp_path, "cancel", "*").returncode == 0
    plain.finished(tmp_path)


@pytest.mark.timeout(600)
@pytest.mark.ci_only
def test_at_its_time_limit_a_job_is_requeued_and_resumes(plain: Cluster, tmp_path: Path) -> None:
    """Slurm checks limits about twice a minute, so a limit of a minute ends a job that needs a hundred seconds."""
    limits = ["hydra.launcher.time=1", "hydra.launcher.signal_seconds=1", "hydra.launcher.evaluate.time=5"]
    launched = plain.launch(tmp_path, *FEW, "until=pretrain", *SLURM, *limits, FAKE_SECONDS="100")
    assert launched.returncode == 0, launched.stderr
    plain.until(tmp_path, lambda counts: counts.get("done") == 1, 400)
    plain.sweeps(tmp_path, "cancel", "*")  # the evaluation would take as long
    (run,) = [run for run in Store.open(tmp_path / "store").runs() if run.stage == "pretrain"]
    assert len(run.state["attempts"]) > 1
    assert run.state["attempts"][0]["error"] == "its time was up"
    assert run.result is not None
    assert run.result["metrics"]["resumed"] > 0
