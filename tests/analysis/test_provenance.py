"""How a study was made, from states and launches that are known."""

from collections.abc import Callable

import pytest

from analysis.provenance import launch_command, minutes, provenance
from analysis.study import read_study
from pipelines.files import read_sealed, write_sealed
from sweeps.monitor import launched_sweeps
from sweeps.monitor.launched_sweeps import SweepRecord, record
from sweeps.plan.graph import Plan


def test_times_are_those_of_the_attempts_and_waiting_does_not_count(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce", "seed=1,2"])
    # Two stage runs at a time, an hour each; then a pause of a day.
    for number, run in enumerate(graph.runs.values()):
        start = 1.8e9 + number // 2 * 3600 + (86400 if number >= 4 else 0)
        attempts = [{"started": start, "ended": start + 3600, "host": "a"}]
        store.run(run.stage, run.signature).write_state("done", attempts=attempts)
    hours = -(-len(graph.runs) // 2)
    made = provenance(read_study(graph, store), command="shaping-run -m objective=ce seed=1,2")
    assert made.facts["time"] == f"{hours}:00:00 with {len(graph.runs) / hours:.1f} stage runs at a time, " + (
        f"{len(graph.runs)}:00:00 of work"
    )
    assert made.facts["date"].startswith("2027-01-15 08:00 to 2027-01-1")
    assert made.seed_seconds == hours * 3600 / 2
    assert made.facts["command"] == "shaping-run -m objective=ce seed=1,2"
    assert made.facts["seeds"] == "1, 2"
    assert made.facts["budgets"].startswith("pretrain 800,000 tokens; midtrain 800,000 tokens; grpo 20 steps of 32")
    assert "a mixture of experts" in made.facts["not run"]


def test_what_is_missing_and_the_commit_are_named(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"], leave_out=lambda run: run.checkpoint == "step-000020")
    for run in graph.runs.values():
        path = store.run(run.stage, run.signature).folder / "spec.json"
        if path.exists():
            spec = read_sealed(path)
            spec["environment"] |= {"commit": "abc-dirty", "cores": "2", "processor": "x86_64 (Some 9)"}
            write_sealed(path, spec)
    facts = provenance(read_study(graph, store), command="x").facts
    assert facts["not run"].startswith("1 stage runs missing, ")
    assert facts["commit"] == "abc-dirty"
    assert facts["machine"].startswith("2 cores, x86_64 (Some 9)")


def test_the_recorded_launch_is_the_command(make_store: Callable) -> None:
    graph, store = make_store(["+sweep=nano", "seed=1,2"])
    jobs = [["+sweep=nano", f"objective={name}", f"seed={seed}"] for name in ("ce", "precision") for seed in (1, 2)]
    record(store, graph, jobs, name="nano", launcher="local", options={})
    assert provenance(read_study(graph, store), command="x").facts["command"] == "shaping-run -m +sweep=nano seed=1,2"
    typed = [["objective=ce", "seed=3"], ["objective=precision", "seed=3"]]
    launch = SweepRecord("0", "", typed, "slurm", {}, 0.0, {}, {}, "")
    assert launch_command(launch) == "shaping-run -m objective=ce,precision seed=3 hydra/launcher=slurm"


def test_durations_in_words() -> None:
    assert [minutes(s) for s in (20, 600, 5399, 9000)] == [
        "about a minute", "about 10 minutes", "about 90 minutes", "about 2 hours"
    ]  # fmt: skip


def test_of_several_launches_the_newest_that_made_a_part_of_the_study_is_the_command(
    make_store: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, store = make_store(["objective=ce", "seed=1,2"])
    for moment, jobs, part in ((1.0, [["seed=1"]], graph), (2.0, [["seed=2"]], graph), (3.0, [["seed=9"]], Plan())):
        monkeypatch.setattr(launched_sweeps.time, "time", lambda moment=moment: moment)
        record(store, part, jobs, name="", launcher="local", options={})
    assert provenance(read_study(graph, store), command="x").facts["command"] == "shaping-run -m seed=2"


def test_stages_and_seeds_that_no_cell_has_are_named_as_not_run(make_store: Callable) -> None:
    study = read_study(*make_store(["objective=ce", "until=midtrain"]))
    assert provenance(study, command="x").facts["not run"] == (
        "a second model size, a mixture of experts, more than one seed, the stage grpo"
    )


def test_one_more_seed_takes_the_time_of_attempts_that_were_not_repeated(make_store: Callable) -> None:
    """Each stage run was interrupted after an hour and took another."""
    graph, store = make_store(["objective=ce", "seed=1,2"])
    for number, run in enumerate(graph.runs.values()):
        start = 1.8e9 + number * 7200
        attempts = [{"started": start + i * 3600, "ended": start + (i + 1) * 3600, "host": "a"} for i in (0, 1)]
        store.run(run.stage, run.signature).write_state("done", attempts=attempts)
    assert provenance(read_study(graph, store), command="x").seed_seconds == len(graph.runs) * 3600 / 2


def test_of_a_large_study_an_even_share_is_timed(make_store: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, store = make_store(["objective=ce"])
    for number, run in enumerate(graph.runs.values()):
        attempts = [{"started": 1.8e9 + number * 60, "ended": 1.8e9 + (number + 1) * 60, "host": "a"}]
        store.run(run.stage, run.signature).write_state("done", attempts=attempts)
    count = len(graph.runs)
    monkeypatch.setattr("analysis.provenance.TIMED", count - 1)
    half = -(-count // 2)
    text = provenance(read_study(graph, store), command="x").facts["time"]
    assert text == f"{half}:00 with 1.0 stage runs at a time, {half}:00 of work (of {half} of the {count} stage runs)"
