"""The display of a running evaluation: how many benchmarks are done, and the time left."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.execute.display import Display, amount, clock, plan_table
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


def test_each_step_of_rl_is_a_line_once(tmp_path: Path) -> None:
    """Where the output is not a terminal."""
    store = Store.create(tmp_path / "store")
    run = StageRun("grpo", "abc", 1, {}, ("midtrain", "def"), None, 20, LABELS)
    folder = store.run("grpo", "abc").folder
    folder.mkdir(parents=True)
    store.run("grpo", "abc").write_state("running", attempts=[{"started": time.time()}])
    output = io.StringIO()
    display = Display(Console(file=output, width=200))
    display.start(Plan({"abc": run}, {"nano/ce/seed1": ["abc"]}), store, Outcome())
    for steps in (1, 1, 2, 2, 2, 3):
        (folder / "ledger.jsonl").write_text("".join(json.dumps({"step": i + 1}) + "\n" for i in range(steps)))
        display.refresh(["abc"])
    of_steps = [line for line in output.getvalue().splitlines() if "] grpo nano/ce/seed1 step" in line]
    assert [line.split("step ")[1].split()[0] for line in of_steps] == ["1/20", "2/20", "3/20"]


def test_the_end_names_what_failed_with_its_error_as_it_is() -> None:
    labels = {"scale": "nano", "model": "nano", "objective": "ce", "seed": 1, "sweep": ""}
    run = StageRun("pretrain", "abc", 1, {}, None, None, 9, labels)
    output = io.StringIO()
    display = Display(Console(file=output, width=200))
    display._plan = Plan({"abc": run}, {"nano/ce/seed1": ["abc"]})
    outcome = Outcome(done=["a", "b"], skipped=["c"], blocked=["d"], seconds=10.0, stage_seconds=15.0)
    outcome.failed["abc"] = "data.x=[1]: no such file"
    display.stop(outcome)
    assert output.getvalue().splitlines() == [
        "2 stage runs done in 0:10 (1.5 at a time), 1 were done before, 1 failed, 1 blocked",
        "FAILED pretrain nano/ce/seed1: data.x=[1]: no such file",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_549_000_000, "1.5 GB"), (2e15, "2.0 PB"), (5e18, "5,000.0 PB")],
)
def test_bytes_in_powers_of_a_thousand(count: float, text: str) -> None:
    assert amount(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (125.9, "2:05"), (3599, "59:59"), (3725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text


LABELS = {"scale": "nano", "model": "nano", "objective": "ce", "seed": 1, "sweep": ""}


def test_the_plan_counts_what_cells_share_once() -> None:
    graph = Plan()
    for stage, signature in (("pretrain", "a"), ("midtrain", "b"), ("midtrain", "c")):
        graph.add(StageRun(stage, signature, 1, {}, None, None, 1, LABELS))
    graph.cells |= {"one": ["a", "b"], "two": ["a", "c"]}
    output = io.StringIO()
    Console(file=output, width=100).print(plan_table(graph, {"b"}))
    assert [line.split() for line in output.getvalue().splitlines()[2:]] == [
        ["pretrain", "2", "1", "0", "1"],
        ["midtrain", "2", "2", "1", "1"],
    ]


def test_only_what_saved_its_state_in_this_attempt_is_counted_as_saved(tmp_path: Path) -> None:
    store, graph = Store.create(tmp_path / "store"), Plan()
    for name, status, resumes in (
        ("saved", "interrupted", True),
        ("too early", "interrupted", False),
        ("killed", "running", True),  # the state is that of an attempt before
        ("done", "running", False),
    ):
        graph.add(StageRun("pretrain", name, 1, {}, None, None, 1, LABELS))
        run = store.run("pretrain", name)
        (run.folder / "work-000001" / ("resume" if resumes else "else")).mkdir(parents=True)
        run.write_state(status)
    (store.run("pretrain", "done").folder / "result.json").touch()
    output = io.StringIO()
    display = Display(Console(file=output, width=200))
    display._plan, display._store = graph, store
    display.stopped(list(graph.runs))
    assert output.getvalue() == "Stopped; 2 of 4 stage runs have saved their progress.\n"
