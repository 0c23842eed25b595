"""The display of a running evaluation: how many benchmarks are done, and the time left."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.execute.display import Display
from sweeps.execute.local import Outcome
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import Store


@pytest.mark.parametrize("terminal", [False, True])
def test_an_evaluation_shows_its_steps_and_the_time_left(tmp_path: Path, terminal: bool) -> None:
    store, now = Store.create(tmp_path / "store"), time.time()
    labels = {"scale": "nano", "model": "nano", "objective": "ce", "seed": 1, "sweep": ""}
    run = StageRun("evaluate", "abc", 1, {}, ("pretrain", "def"), "step-000001", 9, labels)
    folder = store.run("evaluate", "abc").folder
    folder.mkdir(parents=True)
    store.run("evaluate", "abc").write_state("running", attempts=[{"started": now - 400}])
    rows = [{"step": step, "benchmark": "Order", "time": now - 310 + 100 * step} for step in (1, 2, 3)]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = io.StringIO()
    display = Display(Console(file=output, force_terminal=terminal, width=200))
    display.start(Plan({"abc": run}, {"nano/ce/seed1": ["abc"]}), store, Outcome())
    display.refresh(["abc"])
    display.stop(Outcome())
    progress = "3/9" if terminal else "step 3/9"
    assert progress in output.getvalue()
    assert "9:4" in output.getvalue() or "9:5" in output.getvalue()  # 6 benchmarks of 100 s, less 10 s
