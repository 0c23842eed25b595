"""How a study was made, from states and launches that are known."""

from collections.abc import Callable

from analysis.provenance import launch_command, minutes, provenance
from analysis.study import read_study
from pipelines.files import read_sealed, write_sealed
from sweeps.monitor.launched_sweeps import SweepRecord, record


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
