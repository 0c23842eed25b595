"""Controls: ce measured once more for each other objective of a sweep."""

from dataclasses import replace

import pytest

from pipelines.errors import UserError
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


def test_rl_from_a_tempered_model_starts_from_ce_and_is_measured_as_rl_is() -> None:
    words = ["objective=ce,precision", "seed=1,2"]
    plain = plan(compose_cells(words))
    graph = plan(compose_cells([*words, "evaluation.controls={tempered:[grpo]}"]))
    added = {s: run for s, run in graph.runs.items() if s not in plain.runs}
    rl = [run for run in added.values() if run.stage == "grpo"]
    assert [run.control for run in rl] == ["tempered:precision"] * 2
    for run in rl:
        assert run.parent is not None
        assert run.reference is not None
        parent, reference = graph.runs[run.parent[1]], graph.runs[run.reference]
        assert (parent.stage, parent.labels["objective"]) == ("midtrain", "ce")
        assert (reference.stage, reference.labels["objective"]) == ("midtrain", "precision")
        assert reference.config["seed"] == run.config["seed"] == parent.config["seed"]
        usual = next(r for r in plain.runs.values() if r.stage == "grpo" and r.parent == run.parent)
        assert {**run.config, "variant": None} == {**usual.config, "variant": None}
        measured = [child for child in graph.children(run.signature) if child.stage == "evaluate"]
        assert [child.checkpoint for child in measured] == ["step-000010", "step-000020"]
        assert all(child.labels["control"] == "tempered:precision" and child.control is None for child in measured)
        assert set(added) >= {child.signature for child in measured}
        order = list(graph.runs)
        assert order.index(run.signature) > max(order.index(need) for need in run.needs)
    assert len(added) == 2 * 3
    with pytest.raises(UserError, match="its only stage is grpo"):
        compose_cell(["evaluation.controls={tempered:[midtrain]}"])
    no_rl = plan(compose_cells([*words, "evaluation.controls={tempered:[grpo]}", "until=midtrain"]))
    assert not any(run.control for run in no_rl.runs.values())


def test_rl_seeds_share_the_model_that_they_start_from() -> None:
    (single,) = [run for run in plan([compose_cell([])]).runs.values() if run.stage == "grpo"]
    graph = plan(compose_cells(["grpo.seed=1,2,3"]))
    rl = [run for run in graph.runs.values() if run.stage == "grpo"]
    assert len(rl) == 3
    assert len({run.parent for run in rl}) == 1
    assert rl[0].signature == single.signature  # the cell's own seed is no other one
    assert sum(run.stage == "evaluate" and run.parent[0] == "grpo" for run in graph.runs.values() if run.parent) == 6
    assert [run.labels["variant"] for run in rl] == ["grpo.seed=1", "grpo.seed=2", "grpo.seed=3"]


@pytest.mark.parametrize("control", ["matched", "theory"])
def test_objectives_of_one_name_have_their_own_controls(control: str) -> None:
    cells = [compose_cell([]), *(compose_cell([f"objective.beta={b}", "objective.name=mine"]) for b in (0.1, 0.2))]
    labels = [str(run.labels["control"]) for run in plan(cells).runs.values() if run.control]
    assert {label for label in labels if label.startswith(control)} == {
        f"{control}:mine/objective.beta=0.1", f"{control}:mine/objective.beta=0.2"
    }  # fmt: skip


@pytest.mark.parametrize(
    "override",
    [
        "seed=2",
        "model.layers=2",
        "data.seed=1",
        "pretrain.adam_beta2=0.99",
        "midtrain.decay=linear",
        "midtrain.objective=ce",
        "grpo.clip_high=0.3",
        "evaluation.temperature=0.9",
        "evaluation.controls.theory=[midtrain]",
    ],
)
def test_cells_that_differ_in_more_than_the_objective_control_nothing(override: str) -> None:
    assert not any(
        run.control for run in plan([compose_cell([]), compose_cell(["objective=precision", override])]).runs.values()
    )


def test_the_temperature_is_found_on_the_first_text_by_name() -> None:
    """Whatever the order in which the benchmarks are written."""
    words = ["evaluation.controls={tempered:[grpo]}", "evaluation.text_length=48"]
    cells = [compose_cell([f"objective={name}", *words]) for name in ("ce", "precision")]
    signatures = set()
    for is_first in (True, False):
        graph_cells = []
        for cell in cells:
            benchmarks = cell.evaluation.benchmarks
            another = {"Another text": replace(benchmarks["Docstrings"], items=7)}
            changed = another | benchmarks if is_first else benchmarks | another
            graph_cells.append(replace(cell, evaluation=replace(cell.evaluation, benchmarks=changed)))
        (tempered,) = [run for run in plan(graph_cells).runs.values() if run.control and run.stage == "grpo"]
        text = cells[0].evaluation.benchmarks["Docstrings"].task
        assert tempered.config["variant"]["text"] == {"task": text, "items": 7, "length": 48}
        signatures.add(tempered.signature)
    assert len(signatures) == 1
