"""What an attempt that resumes keeps of the attempt before."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration.tracking import TrackingConfig
from pipelines.errors import StageFailure
from pipelines.files import sha256, write_sealed
from pipelines.published import SAVED
from sweeps.execute.worker import RESUMED, Task, perform
from sweeps.plan.graph import StageRun
from sweeps.store.stage_runs import Store
from tests.conftest import SMALL


def test_every_log_of_rl_is_kept() -> None:
    """RL itself drops the rows after the step that it resumes from."""
    from pipelines.grpo.module import FORKING, SAMPLES

    assert {SAMPLES, FORKING, "ledger.jsonl"} <= RESUMED


@pytest.mark.ci_only
def test_an_interrupted_rl_run_has_the_samples_of_before(tmp_path: Path) -> None:
    """The rows of step 0 are written by the first attempt only."""
    overrides = [*SMALL, "until=grpo", "tracking=off", "grpo.steps=60", "evaluation.benchmarks.Docstrings.items=2"]
    command = [sys.executable, "-m", "sweeps.commands.run", *overrides]
    first = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    deadline = time.time() + 200
    while not any(path.read_text().count("\n") > 3 for path in tmp_path.glob("store/grpo/*/work-*/ledger.jsonl")):
        assert first.poll() is None
        assert time.time() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 128 + signal.SIGTERM
    subprocess.run(command, cwd=tmp_path, check=True)
    (run,) = [run for run in Store.open(tmp_path / "store").runs() if run.stage == "grpo"]
    assert len(run.state["attempts"]) == 2
    steps = [json.loads(line)["step"] for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    assert steps[0] == 0
    assert steps == sorted(steps)


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_checkpoint_that_changed_before_its_stage_run_was_done_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_changed: bool
) -> None:
    """It was saved by an attempt that was interrupted, and the next one has only to finish."""
    spec = planned("pretrain").spec
    store = Store.create(tmp_path / "store")

    def run_stage(spec: dict[str, Any], *, folder: Path, **_: object) -> dict[str, Any]:
        weights = folder / "checkpoints" / "step-000001" / "weights"
        weights.parent.mkdir(parents=True)
        weights.write_text("saved")
        write_sealed(folder / SAVED, {str(weights.relative_to(folder)): sha256(weights)})
        if is_changed:
            weights.write_text("Saved")
        return {"metrics": {}, "measurements": []}

    monkeypatch.setattr("pipelines.stages.run_stage", run_stage)
    task = Task(job="1", log=tmp_path / "log")
    run = store.run(spec["stage"], spec["signature"])
    if is_changed:
        with pytest.raises(
            StageFailure, match=r"step-000001/weights: it was changed after it was saved; delete .*work-"
        ):
            perform(store.root, spec, TrackingConfig(mode="off"), task=task)
        assert run.status == "failed"
    else:
        assert perform(store.root, spec, TrackingConfig(mode="off"), task=task)
        assert run.result is not None
        assert set(run.result["files"]) == {"checkpoints/step-000001/weights", "spec.json"}


def planned(stage: str) -> StageRun:
    return StageRun(stage, "0123456789abcdef", 1, {"seed": 1}, None, None, 1, {"model": "a"}, {})
