"""What an attempt that resumes keeps of the attempt before."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.execute.worker import RESUMED
from sweeps.store.stage_runs import Store
from tests.conftest import SMALL


def test_every_log_of_rl_is_kept() -> None:
    """RL itself drops the rows after the step that it resumes from."""
    from pipelines.grpo.training import LOG_FILES

    assert {*LOG_FILES, "ledger.jsonl"} <= RESUMED


@pytest.mark.slow
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
