"""What a worker records of its attempts: their time, what was loaded, and whether Slurm should run the job again."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration.tracking import TrackingConfig
from pipelines.errors import Interrupted, StageFailure
from sweeps.execute import worker
from sweeps.execute.worker import TIME_WAS_UP, Signals, Task, perform
from sweeps.plan.graph import StageRun
from sweeps.store.stage_runs import Store, StoredRun

OFF = TrackingConfig(mode="off")


def planned(**config: Any) -> dict[str, Any]:
    parent = ("midtrain", "f" * 16) if config else None
    return StageRun("evaluate", "0123456789abcdef", 1, config, parent, "step-000007", 1, {"seed": 1}).spec


def stage_that(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
    def run_stage(*_: object, **__: object) -> dict[str, Any]:
        if error:
            raise error
        return {"metrics": {}, "measurements": []}

    monkeypatch.setattr("pipelines.stages.run_stage", run_stage)


def with_attempts(folder: Path, *attempts: dict[str, Any]) -> tuple[Store, StoredRun]:
    store = Store.create(folder / "store")
    run = store.run("evaluate", "0123456789abcdef")
    run.folder.mkdir(parents=True)
    run.write_state("interrupted", attempts=list(attempts))
    return store, run


def test_the_seconds_are_those_of_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that was killed the end is not known."""
    stage_that(monkeypatch)
    store, run = with_attempts(tmp_path, {"started": 100.0, "ended": 160.0}, {"started": 500.0})
    assert perform(store.root, planned(), OFF, task=Task(job="1", log=tmp_path / "log"))
    assert run.result is not None
    assert 60 <= run.result["seconds"] < 90


def test_every_model_that_is_loaded_is_recorded_with_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_that(monkeypatch)
    monkeypatch.setattr(worker, "checked_checkpoint", lambda folder, name: f"hash of {folder.name} {name}")
    reference = {"stage": "grpo", "signature": "e" * 16, "checkpoint": "step-000009"}
    store, run = with_attempts(tmp_path)
    perform(store.root, planned(variant={"reference": reference}), OFF, task=Task(job="1", log=tmp_path / "log"))
    assert run.result is not None
    assert run.result["inputs"] == {
        f"midtrain/{'f' * 16}/step-000007": f"hash of {'f' * 16} step-000007",
        f"grpo/{'e' * 16}/step-000009": f"hash of {'e' * 16} step-000009",
    }


EARLIER = [
    {"started": 1.0, "ended": 2.0, "job": "7", "error": TIME_WAS_UP},
    {"started": 3.0, "ended": 4.0, "job": "6", "error": TIME_WAS_UP},  # of the job before
    {"started": 5.0, "ended": 6.0, "job": "7", "error": "stopped"},  # Slurm preempted it
    {"started": 7.0, "ended": 8.0, "job": "7", "error": TIME_WAS_UP},
]
"""Two requeues of job 7 because its time was up."""


@pytest.mark.parametrize("requeues", [2, 3])
def test_only_requeues_of_this_job_because_its_time_was_up_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requeues: int
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    monkeypatch.setattr(worker, "package_versions", dict)
    stage_that(monkeypatch, Interrupted("asked to stop"))
    store, run = with_attempts(tmp_path, *EARLIER)
    signals = Signals()
    signals.note(signal.SIGUSR2, None)
    task = Task(job="7-3", log=tmp_path / "log", slurm_job="7")
    with pytest.raises(StageFailure if requeues == 2 else Interrupted):
        perform(store.root, planned(), OFF, task=task, requeues=requeues, signals=signals)
    state = run.reread().state
    assert len(state["attempts"]) == 5
    if requeues == 3:
        assert (state["status"], state["attempts"][-1]["error"]) == ("queued", TIME_WAS_UP)
        assert commands == [["scontrol", "requeue", "7"]]
    else:
        assert state["status"] == "failed"
        assert "requeued 2 times already" in state["attempts"][-1]["error"]
        assert commands == []


@pytest.mark.parametrize(("slurm_job", "number"), [(None, signal.SIGUSR2), ("7", signal.SIGTERM)])
def test_what_is_asked_to_stop_is_interrupted_and_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_job: str | None, number: int
) -> None:
    stage_that(monkeypatch, Interrupted("asked to stop"))
    store, run = with_attempts(tmp_path)
    signals = Signals()
    signals.note(number, None)
    with pytest.raises(Interrupted):
        perform(
            store.root, planned(), OFF, task=Task(job="1", log=tmp_path / "log", slurm_job=slurm_job), signals=signals
        )
    assert (run.reread().state["status"], run.reread().state["attempts"][-1]["error"]) == ("interrupted", "stopped")
