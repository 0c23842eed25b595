"""Planning: which stage runs cells share, what changes a signature and what does not."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from pipelines.configuration import STAGE_VERSIONS
from pipelines.configuration.cell import Cell
from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.plan.planner import plan


@cache
def cell(*overrides: str) -> Cell:
    return compose_cell(list(overrides))


def chain(*overrides: str) -> list[str]:
    """Returns the signatures of the training stages of one cell."""
    graph = plan([cell(*overrides)])
    return [run.signature for run in graph.runs.values() if run.stage != "evaluate"]


def same_until(*overrides: str) -> int:
    """Returns how many training stages a changed cell shares with the default one."""
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
        ("data.careless_share=0.4", 0),
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


def test_variants_of_a_later_stage_share_the_earlier_ones() -> None:
    graph = plan(compose_cells(["grpo.learning_rate=1e-4,2e-4,3e-4"]))
    count = {
        stage: sum(run.stage == stage for run in graph.runs.values()) for stage in ("pretrain", "midtrain", "grpo")
    }
    assert count == {"pretrain": 1, "midtrain": 1, "grpo": 3}


def test_ce_midtraining_differs_for_a_shaped_cell() -> None:
    inherit, ce = chain("objective=precision"), chain("objective=precision", "midtrain.objective=ce")
    assert inherit[0] == ce[0]
    assert inherit[1] != ce[1]


def test_a_changed_evaluation_keeps_training() -> None:
    def evaluations(*overrides: str) -> set[str]:
        return {r.signature for r in plan([cell(*overrides)]).runs.values() if r.stage == "evaluate"}

    assert not evaluations() & evaluations("evaluation.temperature=0.9")
    changed = evaluations("evaluation.benchmarks.Boolean.samples=4")  # not measured after RL
    assert len(evaluations() & changed) == len(cell().grpo.checkpoints())


def test_cells_without_a_head_share_their_training() -> None:
    graph = plan(compose_cells(["+sweep=beta_lambda_k"]))
    assert len(graph.cells) == sum(run.stage == "pretrain" for run in graph.runs.values()) == 3 * (1 + 3 * 2)


def test_another_version_of_a_text_package_changes_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    before = chain()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    assert not set(before) & set(chain())


def test_a_raised_stage_version_changes_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    before = chain()
    monkeypatch.setitem(STAGE_VERSIONS, "midtrain", 99)
    assert [a == b for a, b in zip(before, chain(), strict=True)] == [True, False, False]


def test_cells_are_values() -> None:
    cell = compose_cell([])
    assert replace(cell) == cell


def test_the_steps_of_an_evaluation_are_its_benchmarks() -> None:
    """Progress is counted in them, also for a control, which measures fewer."""
    graph = plan(compose_cells(["objective=ce,precision"]))
    evaluations = [run for run in graph.runs.values() if run.stage == "evaluate"]
    counts = {bool(run.control): set[int]() for run in evaluations}
    for run in evaluations:
        assert run.steps == len(run.config["evaluation"]["benchmarks"])
        counts[bool(run.control)].add(run.steps)
    assert counts[True] != counts[False]


def test_token_shards_are_found_from_any_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.plan.signatures.fingerprint", lambda folder: "0" * 64)
    planned = replace(cell(), data=replace(cell().data, shards="shards/mine"))
    assert {run.compute["shards"] for run in plan([planned]).runs.values()} == {str(Path("shards/mine").absolute())}
