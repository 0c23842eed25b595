"""What a running sweep shows of an evaluation: benchmarks done, and the time to the last of them."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.files import write_json
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
    write_json(folder / "state.json", {"status": "running", "attempts": [{"started": now - 400}]})
    rows = [{"step": step, "benchmark": "Order", "time": now - 310 + 100 * step} for step in (1, 2, 3)]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = io.StringIO()
    display = Display(Console(file=shown, force_terminal=terminal, width=200))
    display.start(Plan({"abc": run}, {"nano/ce/seed1": ["abc"]}), store, Outcome())
    display.refresh(["abc"])
    display.stop(Outcome())
    words = "3/9" if terminal else "step 3/9"
    assert words in shown.getvalue()
    assert "9:4" in shown.getvalue() or "9:5" in shown.getvalue()  # six of a hundred seconds each, ten of them gone
