"""A real Slurm of one node, with and without an accounting database: graphs, failures, time limits, cancelling.

Nothing is trained here (`tests/sweeps/fake`), so that what takes time is Slurm; `test_slurm_training.py` trains.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.store.stage_runs import Store
from tests.sweeps.cluster import FEW, NEEDS_SLURM, SLURM, Cluster

pytestmark = NEEDS_SLURM


def attempts(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {run.signature: run.state.get("attempts", []) for run in Store.open(folder / "store").runs()}


def at_work(folder: Path) -> int:
    """How many stages have begun. Slurm calls a job running while its Python still starts, and a signal ends it."""
    return len(list((folder / "store").glob("*/*/work-*/ledger.jsonl")))


def test_a_graph_is_submitted_at_once_and_runs_in_order(cluster: Cluster, tmp_path: Path) -> None:
    launched = cluster.launch(tmp_path, "objective=ce,precision", *FEW, *SLURM)
    assert launched.returncode == 0, launched.stderr
    assert "12 stage runs submitted as 6 job arrays" in launched.stdout
    assert cluster.finished(tmp_path) == {"done": 12}
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


def test_a_control_waits_for_both_of_its_checkpoints(cluster: Cluster, tmp_path: Path) -> None:
    words = [*FEW, *SLURM, "until=midtrain", "evaluation.controls.matched=[midtrain]"]
    launched = cluster.launch(tmp_path, "objective=ce,precision", *words)
    assert launched.returncode == 0, launched.stderr
    assert cluster.finished(tmp_path) == {"done": 9}
    runs = {run.signature: run for run in Store.open(tmp_path / "store").runs()}
    (control,) = [run for run in runs.values() if "variant" in run.spec["config"]]
    needs = [control.spec["parent"]["signature"], control.spec["config"]["variant"]["reference"]["signature"]]
    assert len(set(needs)) == 2
    began = control.state["attempts"][0]["started"]
    assert all(began >= runs[need].state["attempts"][-1]["ended"] for need in needs)


def test_a_failure_blocks_its_descendants_alone_and_retry_finishes(cluster: Cluster, tmp_path: Path) -> None:
    word = '"beta": -0.25'  # the precision cell
    launched = cluster.launch(tmp_path, "objective=ce,precision", *FEW, *SLURM, FAKE_FAIL=word)
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
    counts = [len(found) for found in attempts(tmp_path).values()]
    assert sorted(counts) == [1] * 11 + [2]
    assert "Nothing to retry" in cluster.sweeps(tmp_path, "retry").stdout


def test_two_people_submit_at_once_and_each_stage_run_is_trained_once(cluster: Cluster, tmp_path: Path) -> None:
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

    both = [submit("ce,precision"), submit("precision,diversity")]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("4 were queued or running already" in output for output in said) == 1
    third = cluster.launch(tmp_path, "objective=ce,precision,diversity", *FEW, *SLURM, "until=midtrain")
    assert "0 stage runs submitted, " in third.stdout  # from here on nobody who submitted is needed
    assert cluster.finished(tmp_path) == {"done": 12}
    assert all(len(found) == 1 for found in attempts(tmp_path).values())


def test_more_hangs_itself_on_what_is_queued(plain: Cluster, tmp_path: Path) -> None:
    plain.launch(tmp_path, *FEW, *SLURM, "until=pretrain", "seed=1,2", FAKE_SECONDS="3")
    more = plain.launch(tmp_path, *FEW, *SLURM, "until=grpo", "seed=1,2")
    assert "8 stage runs submitted" in more.stdout
    assert plain.finished(tmp_path) == {"done": 12}


def test_cancel_and_go_on(cluster: Cluster, tmp_path: Path) -> None:
    cluster.launch(tmp_path, *FEW, *SLURM, "seed=1,2", FAKE_SECONDS="60")
    cluster.until(tmp_path, lambda _: at_work(tmp_path) == 2)
    pretrain = cluster.status(tmp_path, "nano/ce/seed1:pretrain")[0]["job"]
    cluster.call("scancel", "--signal=USR2", pretrain)  # as at its time limit: saved, put back, gone on with
    cluster.until(tmp_path, lambda _: len(attempts(tmp_path)[pretrain_signature(cluster, tmp_path)]) == 2)
    assert cluster.sweeps(tmp_path, "cancel").returncode == 2  # which ones?
    cancelled = cluster.sweeps(tmp_path, "cancel", "*")
    assert cancelled.returncode == 0, cancelled.stderr
    found = cluster.finished(tmp_path)
    assert not {"done", "failed"} & set(found)
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
    plain.until(tmp_path, lambda _: at_work(tmp_path) == 1)
    plain.call("scancel", "--signal=USR2", plain.status(tmp_path, "stage=pretrain")[0]["job"])
    assert plain.finished(tmp_path) == {"failed": 1, "blocked": 1}
    assert "raise hydra.launcher.requeues" in plain.sweeps(tmp_path, "status").stdout


def test_a_job_that_dies_without_a_word_is_called_by_its_name(cluster: Cluster, tmp_path: Path) -> None:
    cluster.launch(tmp_path, *FEW, *SLURM, "until=pretrain", FAKE_DIE='"pretrain"')
    assert cluster.finished(tmp_path) == {"failed": 1, "blocked": 1}
    (row,) = cluster.status(tmp_path, "status=failed")
    assert row["error"].startswith("FAILED: its process ended badly; job ")
    assert "about to die" in row["error"]
    Path(row["log"]).unlink()
    Path(row["log"]).with_suffix(".out").unlink()
    gone = cluster.sweeps(tmp_path, "logs", "nano/ce/seed1:pretrain")
    assert gone.returncode == 2
    assert "is gone" in gone.stderr
    assert "Traceback" not in gone.stderr


def test_a_node_that_fails_puts_its_jobs_back(plain: Cluster, tmp_path: Path) -> None:
    plain.launch(tmp_path, *FEW, *SLURM, "until=pretrain", FAKE_SECONDS="4")
    plain.until(tmp_path, lambda found: found.get("running") == 1)
    node = plain.call("sinfo", "-h", "-o", "%N", "-p", "main").stdout.strip()
    plain.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    plain.call("scontrol", "update", f"nodename={node}", "state=resume")
    assert plain.finished(tmp_path) == {"done": 2}


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ("hydra.launcher.midtrain.partition=nowhere", "invalid partition"),
        ("hydra.launcher.midtrain.partition=short", "time limit"),
        ("hydra.launcher.midtrain.cpus=1000", "more processors requested"),
        ("+hydra.launcher.midtrain.extra.licenses=gold", "license"),
    ],
)
def test_what_slurm_refuses_is_said_in_its_own_words_and_the_rest_goes_on(
    plain: Cluster, tmp_path: Path, refused: str, words: str
) -> None:
    launched = plain.launch(tmp_path, *FEW, *SLURM, refused)
    assert launched.returncode == 2
    assert "Slurm says: " in launched.stderr
    assert words.lower() in launched.stderr.lower()
    assert "midtrain nano/ce/seed1" in launched.stderr
    assert "3 stage runs wait for those" in launched.stderr
    assert len(launched.stderr.splitlines()) == 1
    assert plain.finished(tmp_path) == {"done": 2, "missing": 4}


def test_arrays_keep_to_the_clusters_limit(plain: Cluster, tmp_path: Path) -> None:
    """The cluster takes task numbers below 101, so 150 like stage runs are two arrays."""
    launched = plain.launch(tmp_path, *FEW, *SLURM, "until=pretrain", "seed=range(1,151)", "hydra.launcher.at_once=1")
    assert launched.returncode == 0, launched.stderr
    assert "300 stage runs submitted as 4 job arrays" in launched.stdout
    pending = plain.call("squeue", "-h", "-o", "%i %T").stdout
    assert "%1]" in pending
    assert plain.sweeps(tmp_path, "cancel", "*").returncode == 0
    plain.finished(tmp_path)


@pytest.mark.timeout(600)
def test_at_its_time_limit_a_job_is_put_back_and_goes_on(plain: Cluster, tmp_path: Path) -> None:
    """Slurm looks at limits about twice a minute: one of a minute catches a job that needs a hundred seconds."""
    limits = ["hydra.launcher.time=1", "hydra.launcher.signal_seconds=1", "hydra.launcher.evaluate.time=5"]
    launched = plain.launch(tmp_path, *FEW, "until=pretrain", *SLURM, *limits, FAKE_SECONDS="100")
    assert launched.returncode == 0, launched.stderr
    plain.until(tmp_path, lambda found: found.get("done") == 1, 400)
    plain.sweeps(tmp_path, "cancel", "*")  # the evaluation would take as long
    (run,) = [run for run in Store.open(tmp_path / "store").runs() if run.stage == "pretrain"]
    assert len(run.state["attempts"]) > 1
    assert run.state["attempts"][0]["error"] == "its time was up"
    assert run.result is not None
    assert run.result["metrics"]["resumed"] > 0
