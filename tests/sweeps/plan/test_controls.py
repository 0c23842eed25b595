"""Controls: ce measured once more for each other objective of a sweep."""

from dataclasses import replace

import pytest

from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.plan.planner import plan


def test_a_control_needs_two_checkpoints() -> None:
    """A control for each other objective of the same model, data and seed, where a stage ends."""
    graph = plan(compose_cells(["objective=ce,precision,diversity", "seed=1,2"]))
    controls = [run for run in graph.runs.values() if run.control]
    assert len(controls) == 2 * 2 * 3  # seeds, settings, (theory after pre-training, matched after the two others)
    for run in controls:
        control, setting = str(run.control).split(":")
        assert run.labels["objective"] == "ce"
        assert set(run.config["evaluation"]["benchmarks"]) >= {"Docstrings"}
        if control == "theory":
            assert run.reference is None
            continue
        assert run.reference is not None
        other = graph.runs[run.reference]
        assert run.parent is not None
        assert (other.stage, other.labels["objective"]) == (run.parent[0], setting)
        assert other.config["seed"] == run.config["seed"]
        assert run in graph.children(run.reference)
        assert run in graph.descendants(run.reference)
        assert {run.reference, run.parent[1]} <= set(graph.part([run.signature]).runs)
        order = list(graph.runs)
        assert order.index(run.signature) > max(order.index(need) for need in run.needs)
    assert all(run.signature in graph.cells[f"nano/ce/seed{run.config['seed']}"] for run in controls)


def test_what_a_control_is_matched_to_is_in_its_signature() -> None:
    def matched(*overrides: str) -> set[str]:
        graph = plan(compose_cells(["objective=ce,precision", *overrides]))
        return {run.signature for run in graph.runs.values() if run.control and run.reference}

    assert len(matched()) == 2
    assert not matched() & matched("grpo.steps=10", "midtrain.tokens=100_000")
    without_ce = plan([compose_cell(["objective=precision"])])
    assert not any(run.control for run in without_ce.runs.values())
    assert not matched("evaluation.controls.matched=[]")


def test_a_named_objective_labels_its_controls_and_changes_no_signature() -> None:
    cells = compose_cells(["objective=ce,precision", "objective.beta=0.0,0.3"])
    renamed = [replace(c, objective=replace(c.objective, name="mine")) if c.objective.beta else c for c in cells]
    before, after = plan(cells), plan(renamed)
    assert set(before.runs) == set(after.runs)
    labels = {run.labels["control"] for run in after.runs.values() if run.control}
    assert labels == {"theory:mine", "matched:mine"}


@pytest.mark.parametrize("control", ["matched", "theory"])
def test_objectives_of_one_name_have_their_own_controls(control: str) -> None:
    cells = [compose_cell([]), *(compose_cell([f"objective.beta={b}", "objective.name=mine"]) for b in (0.1, 0.2))]
    labels = [str(run.labels["control"]) for run in plan(cells).runs.values() if run.control]
    assert {label for label in labels if label.startswith(control)} == {
        f"{control}:mine/objective.beta=0.1", f"{control}:mine/objective.beta=0.2"
    }  # fmt: skip
