"""What messages and reasons of Slurm are taken for; the texts are those that Slurm 22.05 prints."""

import pytest

from pipelines.errors import StageFailure
from sweeps.monitor import slurm_queue
from sweeps.monitor.slurm_environment import without_surroundings
from sweeps.monitor.slurm_queue import JobState, SlurmUnreachable, job_states, slurm_failure


@pytest.mark.parametrize(
    "message",
    [
        "squeue: error: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "scontrol: error: If munged is up, restart with --num-threads=10\nscontrol: error: Munge encode failed",
        "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:h:6819",
        "squeue: error: fetch_config: DNS SRV lookup failed\nsqueue: fatal: Could not establish a configuration source",
    ],
)
def test_no_answer_is_told_from_a_refusal(message: str) -> None:
    failure = slurm_failure(message, "")
    assert isinstance(failure, SlurmUnreachable)
    assert str(failure).startswith("Slurm does not answer (")


@pytest.mark.parametrize(
    "message",
    [
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
        "sbatch: error: invalid partition specified: nowhere",
    ],
)
def test_a_refusal_is_no_silence(message: str) -> None:
    failure = slurm_failure(message, "")
    assert type(failure) is StageFailure
    assert str(failure).startswith("Slurm says: ")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("None", None),
        ("Dependency", None),
        ("Priority", "higher priority"),
        ("QOSMaxJobsPerUserLimit", "QOS"),
        ("AssocGrpGRES", "account"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "drained"),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", "drained"),
        ("JobHeldUser", "scontrol release"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_why_a_pending_job_waits(reason: str, words: str | None) -> None:
    shown = JobState("PENDING", reason).waits_for
    assert (shown is None) if words is None else (words in (shown or "") and (shown or "").startswith(reason))
    assert JobState("RUNNING", reason).waits_for is None


def test_only_what_describes_a_surrounding_job_is_left_out() -> None:
    stays = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "OMP_NUM_THREADS": "4", "WANDB_MODE": "offline"}
    goes = {"SLURM_NTASKS": "4", "SBATCH_TIMELIMIT": "1", "SQUEUE_USERS": "me", "RANK": "1", "PMIX_RANK": "1"}
    assert without_surroundings(stays | goes) == stays


def test_states_are_those_of_the_queue_and_of_the_accounts_for_what_it_has_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []

    def slurm(command: list[str]) -> str:
        asked.append(command)
        if command[0] == "squeue":
            return "7_0|RUNNING|None\n7_1|PENDING|Dependency\n9|RUNNING|None\n"
        return "7_2|CANCELLED by 1000|None\n7_3|OUT_OF_ME+|OutOfMemory\n7_4||\n8|COMPLETED|None\n"

    monkeypatch.setattr(slurm_queue, "slurm", slurm)
    monkeypatch.setattr(slurm_queue, "is_slurm_installed", lambda: True)
    assert job_states(["7_0", "7_1", "7_2", "7_3", "7_4", "7_9"]) == {
        "7_0": JobState("RUNNING", "None"),
        "7_1": JobState("PENDING", "Dependency"),
        "7_2": JobState("CANCELLED"),
        "7_3": JobState("OUT_OF_ME", "OutOfMemory"),
        "7_4": JobState("GONE"),
        "7_9": JobState("GONE"),
    }
    assert [command[0] for command in asked] == ["squeue", "sacct"]
    assert {"-r", "-t", "all"} <= set(asked[0])  # each task of an array, and those that have ended
    assert asked[1][asked[1].index("-j") + 1] == "7"
    asked.clear()
    assert job_states([]) == {}
    assert asked == []


def test_a_job_that_nothing_can_start_is_blocked_and_does_not_wait() -> None:
    blocked = JobState("PENDING", "DependencyNeverSatisfied")
    assert (blocked.is_blocked, blocked.is_waiting, blocked.is_running) == (True, False, False)
    assert [JobState(name).is_running for name in ("RUNNING", "COMPLETING", "PENDING", "FAILED")] == [
        True, True, False, False
    ]  # fmt: skip
    assert str(JobState("FAILED", "NonZeroExitCode")) == "FAILED: its process exited with an error"
    assert str(JobState("NODE_FAIL", "Reboot")) == "NODE_FAIL (Reboot): its node failed"
