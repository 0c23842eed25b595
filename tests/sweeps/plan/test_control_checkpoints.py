"""Controls are measured where a stage ends, and matched to where the other one ended."""

from sweeps.compose.cells import compose_cells
from sweeps.plan.planner import plan

SEVERAL = ["evaluation=study", "pretrain.milestones=3", "midtrain.milestones=2", "grpo.milestones=2"]


def test_controls_are_measured_at_the_last_checkpoint_of_their_stage() -> None:
    graph = plan(compose_cells(["objective=ce,precision", *SEVERAL]))
    steps: dict[str, set[str]] = {}
    for run in graph.runs.values():
        if run.stage == "evaluate" and not run.labels.get("control"):
            assert run.parent is not None
            steps.setdefault(run.parent[0], set()).add(str(run.checkpoint))
    assert {stage: len(names) for stage, names in steps.items()} == {"pretrain": 3, "midtrain": 2, "grpo": 2}
    last = {stage: max(names) for stage, names in steps.items()}

    measured = set()
    for run in graph.runs.values():
        if run.control and run.stage == "evaluate":
            assert run.parent is not None
            measured.add((run.control.split(":")[0], run.parent[0], run.checkpoint))
            reference = run.config["variant"].get("reference")
            if reference:
                assert reference["checkpoint"] == last[reference["stage"]]
    assert measured == {
        ("theory", "pretrain", last["pretrain"]),
        ("matched", "midtrain", last["midtrain"]),
        ("matched", "grpo", last["grpo"]),
    }
    (tempered,) = [run for run in graph.runs.values() if run.control and run.stage == "grpo"]
    assert tempered.config["variant"]["reference"]["checkpoint"] == last["midtrain"]
