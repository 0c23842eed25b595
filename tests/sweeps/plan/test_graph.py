"""The graph of stage runs: what is shared, what changes a signature and what does not."""

from dataclasses import replace
from functools import cache

import pytest

from pipelines.configuration import STAGE_VERSIONS
from pipelines.configuration.cell import Cell
from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.plan.graph import Plan
from sweeps.plan.names import objective_name
from sweeps.plan.planner import plan


@cache
def cell(*overrides: str) -> Cell:
    return compose_cell(list(overrides))


def chain(*overrides: str) -> list[str]:
    """Signatures of the training stages of one cell."""
    graph = plan([cell(*overrides)])
    return [run.signature for run in graph.runs.values() if run.stage != "evaluate"]


def same_until(*overrides: str) -> int:
    """How many training stages a changed cell shares with the default one."""
    pairs = zip(chain(), chain(*overrides), strict=False)
    return sum(a == b for a, b in pairs)


def test_every_milestone_is_measured() -> None:
    graph = plan([cell()])
    measured = [
        (run.parent[0], run.checkpoint) for run in graph.runs.values() if run.stage == "evaluate" and run.parent
    ]
    expected = [
        (s, f"step-{step:06d}") for s in ("pretrain", "midtrain", "grpo") for step in getattr(cell(), s).checkpoints()
    ]
    assert measured == expected
    for run in graph.runs.values():
        if run.parent:
            assert run.parent[1] in graph.runs
            assert list(graph.runs).index(run.parent[1]) < list(graph.runs).index(run.signature)


@pytest.mark.parametrize(
    ("override", "shared"),
    [
        ("store=elsewhere", 3),
        ("tracking=off", 3),
        ("tracking.project=other", 3),
        ("scale=mine", 3),
        ("objective.name=mine", 3),
        ("model.name=mine", 3),
        ("objective.top_k=5", 3),  # ce has no head
        ("evaluation.temperature=0.9", 3),
        ("seed=2", 0),
        ("objective.beta=0.1", 0),
        ("objective.lam_tail=-0.1", 0),
        ("model.layers=4", 0),
        ("data.worked_share=0.9", 0),
        ("data.careless_share=0.9", 0),
        ("data.seed=1", 0),
        ("pretrain.tokens=700_000", 0),
        ("pretrain.adam_beta2=0.99", 0),
        ("midtrain.decay=linear", 1),
        ("midtrain.objective=ce", 3),  # the same, as this cell's objective is ce
        ("grpo.learning_rate=1e-5", 2),
        ("grpo.clip_high=0.3", 2),
    ],
)
def test_what_changes_a_signature(override: str, shared: int) -> None:
    assert same_until(override) == shared


def test_a_later_stage_branches_from_a_shared_one() -> None:
    graph = plan(compose_cells(["grpo.learning_rate=1e-4,2e-4,3e-4"]))
    count = {
        stage: sum(run.stage == stage for run in graph.runs.values()) for stage in ("pretrain", "midtrain", "grpo")
    }
    assert count == {"pretrain": 1, "midtrain": 1, "grpo": 3}


def test_ce_midtraining_differs_for_a_shaped_cell() -> None:
    inherit, ce = chain("objective=precision"), chain("objective=precision", "midtrain.objective=ce")
    assert inherit[0] == ce[0]
    assert inherit[1] != ce[1]


def test_a_changed_evaluation_leaves_training_alone() -> None:
    def evaluations(*overrides: str) -> set[str]:
        return {r.signature for r in plan([cell(*overrides)]).runs.values() if r.stage == "evaluate"}

    assert not evaluations() & evaluations("evaluation.temperature=0.9")
    changed = evaluations("evaluation.benchmarks.Boolean.samples=4")  # not measured after RL
    assert len(evaluations() & changed) == len(cell().grpo.checkpoints())


def test_the_product_grid_shares_what_has_no_head() -> None:
    graph = plan(compose_cells(["+sweep=beta_lambda_k"]))
    assert len(graph.cells) == sum(run.stage == "pretrain" for run in graph.runs.values()) == 3 * (1 + 3 * 2)


def test_descendants() -> None:
    graph = plan([cell()])
    first = next(iter(graph.runs))
    assert {run.signature for run in graph.descendants(first)} == set(graph.runs) - {first}
    assert Plan().runs == {}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["objective=head_reward"], "head_reward"),
        (["objective.beta=-0.25"], "precision"),
        (["objective.beta=0.25"], "beta=0.25"),
        (["objective.lam_tail=-0.1", "objective.top_k=5"], "lam_tail=-0.1,k=5"),
    ],
)
def test_names_for_people(overrides: list[str], name: str) -> None:
    assert objective_name(cell(*overrides)) == name


def test_the_text_packages_version_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = chain()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    assert not set(before) & set(chain())


def test_a_raised_stage_version_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = chain()
    monkeypatch.setitem(STAGE_VERSIONS, "midtrain", 99)
    assert [a == b for a, b in zip(before, chain(), strict=True)] == [True, False, False]


def test_cells_are_values() -> None:
    cell = compose_cell([])
    assert replace(cell) == cell


def test_a_control_waits_for_two_checkpoints() -> None:
    """One for each other objective of the same model, data and seed, at the end of the stages that the table names."""
    graph = plan(compose_cells(["objective=ce,precision,diversity", "seed=1,2"]))
    controls = [run for run in graph.runs.values() if run.control]
    assert len(controls) == 2 * 2 * 3  # seeds, settings, (theory after pre-training, matched after the two others)
    for run in controls:
        kind, setting = str(run.control).split(":")
        assert run.labels["objective"] == "ce"
        assert set(run.config["evaluation"]["benchmarks"]) >= {"Docstrings"}
        if kind == "theory":
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
        places = list(graph.runs)
        assert places.index(run.signature) > max(places.index(need) for need in run.needs)
    assert all(run.signature in graph.cells[f"nano/ce/seed{run.config['seed']}"] for run in controls)


def test_what_a_control_is_matched_to_is_in_its_signature() -> None:
    def matched(*overrides: str) -> set[str]:
        graph = plan(compose_cells(["objective=ce,precision", *overrides]))
        return {run.signature for run in graph.runs.values() if run.control and run.reference}

    assert len(matched()) == 2
    assert not matched() & matched("grpo.steps=10", "midtrain.tokens=100_000")
    alone = plan([compose_cell(["objective=precision"])])
    assert not any(run.control for run in alone.runs.values())
    assert not matched("evaluation.controls.matched=[]")
