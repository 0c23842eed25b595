"""A real Slurm: submissions from inside a job, requeues, a lost node, memory limits, drained nodes, no answer."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps.cluster import FEW, NEEDS_SLURM, SCRIPT, SLURM, Cluster, pretraining

pytestmark = NEEDS_SLURM

ONE = [*FEW, *SLURM, "until=pretrain"]
"""A pre-training and its evaluation."""

SURROUNDINGS = {
    # What Slurm sets inside a job ...
    **{"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_NTASKS": "4"},
    **{"SLURM_MEM_PER_CPU": "100", "SLURM_MEM_PER_NODE": "200", "SLURM_CPUS_PER_TASK": "7", "SLURM_NNODES": "3"},
    **{"SLURM_NTASKS_PER_NODE": "4", "SLURM_EXPORT_ENV": "NONE", "SLURM_DISTRIBUTION": "plane=4", "SLURM_NODEID": "2"},
    **{"SLURM_RESTART_COUNT": "3", "SUBMITIT_EXECUTOR": "slurm", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"},
    # ... and what a user may have exported.
    **{"SBATCH_TIMELIMIT": "0", "SBATCH_EXPORT": "NONE", "SBATCH_MEM_PER_CPU": "50", "SBATCH_NO_REQUEUE": "1"},
    **{"SBATCH_ARRAY_INX": "0-3", "SBATCH_WAIT": "1", "SBATCH_JOB_NAME": "bash", "SQUEUE_USERS": "nobody"},
    **{"SQUEUE_STATES": "FAILED", "SQUEUE_FORMAT": "%u", "SCANCEL_STATE": "SUSPENDED"},
}


def row(cluster: Cluster, folder: Path) -> dict[str, Any]:
    return cluster.status(folder, "stage=pretrain")[0]


def nodes(cluster: Cluster) -> str:
    return cluster.call("sinfo", "-h", "-o", "%N", "-p", "main").stdout.strip()


def processes_that_write(log: Path) -> list[int]:
    """The daemon of a node and those of its jobs' steps, by their open log."""

    def writes(process: Path) -> bool:
        with contextlib.suppress(OSError):
            return any(os.readlink(file) == str(log) for file in (process / "fd").iterdir())
        return False

    return [int(process.name) for process in Path("/proc").iterdir() if process.name.isdigit() and writes(process)]


def test_submitting_from_inside_a_job_and_what_slurm_shows_of_it(plain: Cluster, tmp_path: Path) -> None:
    """Names, comment and no wckey; `cpus` reaches a task that the site binds to cores; `setup` reaches it too."""
    words = [*ONE, "hydra.launcher.cpus=2", "hydra.launcher.mem_per_cpu_gb=0.4", "+hydra.launcher.extra.nice=5"]
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done"  # or a slow machine launches again after the jobs' end
    exports = f"'export SLURM_CPU_BIND=cores','export PYTHONPATH={plain.environment['PYTHONPATH']}'"
    setup = f"hydra.launcher.setup=[{exports},'{wait}']"
    launched = plain.launch(tmp_path, *words, setup, **SURROUNDINGS)
    assert launched.returncode == 0, launched.stderr
    job = row(plain, tmp_path)["job"]
    shown = plain.call("scontrol", "show", "job", job).stdout
    assert "JobName=nano/ce/seed1:pretrain" in shown
    assert "Comment=shaping pretrain of nano/ce/seed1" in shown
    assert "WCKey" not in shown
    assert "MinMemoryCPU=410M" in shown
    assert "TimeLimit=00:05:00" in shown
    # The jobs are found and counted whatever squeue's defaults are.
    again = plain.launch(tmp_path, *words, setup, **SURROUNDINGS)
    assert "0 stage runs submitted, 2 were queued or running already" in again.stdout
    (tmp_path / "go").touch()
    assert plain.finished(tmp_path) == {"done": 2}
    run = pretraining(tmp_path)
    assert run.result["metrics"]["cores"] == min(2, os.cpu_count() or 1)
    script = next((tmp_path / "store" / "jobs").glob("*/*submission.sh")).read_text()
    assert "wckey" not in script


@pytest.mark.ci_only
def test_a_job_that_slurm_puts_back_is_queued_and_attached_to(plain: Cluster, tmp_path: Path) -> None:
    plain.launch(tmp_path, *ONE, FAKE_SECONDS="4")
    plain.until(tmp_path, lambda _: bool(list(tmp_path.glob("store/pretrain/*/work-*/ledger.jsonl"))))
    job = row(plain, tmp_path)["job"]
    assert plain.call("scontrol", "requeue", job).returncode == 0
    again = plain.launch(tmp_path, *ONE, FAKE_SECONDS="4")  # while the job ends, or waits
    assert "0 stage runs submitted, 2 were queued or running already" in again.stdout, again.stdout + again.stderr
    waiting = row(plain, tmp_path)
    assert (waiting["status"], waiting["error"]) == ("queued", None)
    assert waiting["note"].startswith("BeginTime: ")
    assert plain.sweeps(tmp_path, "gc", "--weights", "--yes").returncode == 0  # keeps what is queued
    assert plain.finished(tmp_path) == {"done": 2}
    run = pretraining(tmp_path)
    assert [attempt.get("error") for attempt in run.state["attempts"]] == ["stopped", None]
    assert run.result["metrics"]["resumed"] > 0
    assert {attempt["job"] for attempt in run.state["attempts"]} == {job}


def test_a_job_that_uses_too_much_memory_is_explained(plain: Cluster, tmp_path: Path) -> None:
    if "ConstrainRAMSpace=yes" not in (plain.folder / "cgroup.conf").read_text():
        pytest.skip("this machine's kernel gives no control groups to hold jobs to their memory")
    plain.launch(tmp_path, *ONE, "hydra.launcher.mem_gb=0.3", FAKE_MEMORY=str(2**30))
    assert plain.finished(tmp_path) == {"failed": 1, "blocked": 1}
    assert row(plain, tmp_path)["error"].startswith(
        "OUT_OF_MEMORY: it used more memory than it asked for; raise hydra.la"
    )


@pytest.mark.timeout(240)
@pytest.mark.ci_only
def test_a_lost_node_gives_its_job_to_another(plain: Cluster, tmp_path: Path) -> None:
    """All processes of a node die at once, as at a power cut: Slurm notices that it does not answer."""
    plain.launch(tmp_path, *ONE, FAKE_SECONDS="20")
    plain.until(tmp_path, lambda _: bool(list(tmp_path.glob("store/pretrain/*/work-*/ledger.jsonl"))))
    lost = plain.call("squeue", "-h", "-t", "running", "-o", "%N").stdout.strip()
    daemon = int((plain.folder / f"{lost}.pid").read_text())
    steps = processes_that_write(plain.folder / "log" / f"{lost}.log")
    worker = pretraining(tmp_path).state["attempts"][-1]["pid"]
    try:
        for pid in (*dict.fromkeys([daemon, *steps]), worker):
            os.kill(pid, signal.SIGKILL)
        plain.until(tmp_path, lambda _: len(pretraining(tmp_path).state["attempts"]) == 2, 150)
        assert plain.call("squeue", "-h", "-t", "running", "-o", "%N").stdout.strip() != lost
        plain.sweeps(tmp_path, "cancel", "*")
        plain.finished(tmp_path)
    finally:
        assert plain.call(str(SCRIPT), "up", str(plain.folder)).returncode == 0


def test_why_a_job_waits_is_shown_and_so_is_a_slurm_that_does_not_answer(plain: Cluster, tmp_path: Path) -> None:
    drain = ("scontrol", "update", f"nodename={nodes(plain)}")
    assert plain.call(*drain, "state=drain", "reason=service").returncode == 0
    try:
        plain.launch(tmp_path, *ONE)
        deadline = time.time() + 30
        while row(plain, tmp_path)["note"] is None and time.time() < deadline:
            time.sleep(0.5)
        assert "nodes that it needs are drained, down or reserved" in plain.sweeps(tmp_path, "status").stdout

        # The same configuration, with a port at which nobody listens.
        silent = tmp_path / "slurm.conf"
        text = (plain.folder / "slurm.conf").read_text()
        silent.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", text) + "MessageTimeout=2\n")
        shown = plain.sweeps(tmp_path, "status", SLURM_CONF=str(silent))
        assert shown.returncode == 0
        assert "as recorded, since Slurm does not answer" in shown.stdout
        for command in (["cancel", "*"], ["retry", "*"]):
            refused = plain.sweeps(tmp_path, *command, SLURM_CONF=str(silent))
            assert refused.returncode == (1 if command[0] == "cancel" else 0)
            assert "Traceback" not in refused.stderr
        launched = plain.launch(tmp_path, *ONE, SLURM_CONF=str(silent))
        assert launched.returncode == 1
        assert "Slurm does not answer (" in launched.stderr
    finally:
        assert plain.call(*drain, "state=resume").returncode == 0
    assert plain.finished(tmp_path) == {"done": 2}


def test_what_a_site_refuses_can_be_left_out(plain: Cluster, tmp_path: Path) -> None:
    planned = plain.sweeps(
        tmp_path, "plan", "--sbatch", *ONE, "+hydra.launcher.extra.comment=null", "+hydra.launcher.extra.requeue=null"
    )
    assert planned.returncode == 0, planned.stderr
    options = re.findall(r"#SBATCH --([\w-]+)", planned.stdout)
    assert set(options) == {
        *("array", "cpus-per-task", "error", "hold", "job-name", "kill-on-invalid-dep", "nodes", "ntasks-per-node"),
        *("open-mode", "output", "signal", "time", "dependency"),
    }
