"""What cells and objectives are called."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hydra import initialize_config_module

from pipelines.configuration.cell import Cell
from shaping import NAMED
from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.plan.names import cell_of, objective_name
from sweeps.plan.planner import plan
from tests.sweeps.compose.search_path import search_first


@cache
def cell(*overrides: str) -> Cell:
    return compose_cell(list(overrides))


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        *(([f"objective={name}"], name) for name in NAMED),
        (["objective.beta=-0.25"], "precision"),
        (["objective=precision", "objective.beta=0.25"], "beta=0.25"),
        (["objective=ce", "objective.beta=0.25"], "beta=0.25"),
        (["objective.lam_tail=-0.1", "objective.top_k=5"], "lam_tail=-0.1,k=5"),
        (["objective.name=custom", "objective.beta=0.5"], "diversity"),
        (["objective.name=mine"], "mine"),
        (["objective.name=mine", "objective.beta=0.25"], "mine"),
    ],
)
def test_an_objective_is_called_by_its_own_name_or_by_its_knobs(overrides: list[str], name: str) -> None:
    assert objective_name(cell(*overrides)) == name


def test_the_name_in_a_file_of_objectives_labels_its_cells(tmp_path: Path) -> None:
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mine.yaml").write_text("name: mine\nbeta: 0.3\ntop_k: ${data.top_k}\n")
    with initialize_config_module("conf", version_base="1.3"):
        search_first(tmp_path)
        cells = compose_cells(["objective=ce,mine"])
    graph = plan(cells)
    assert list(graph.cells) == ["nano/ce/seed1", "nano/mine/seed1"]
    labels = [graph.runs[signature].labels for signature in graph.cells["nano/mine/seed1"]]
    assert {cell_of(label) for label in labels} == {"nano/mine/seed1"}
    assert set(plan([cell("objective.beta=0.3")]).runs) < set(graph.runs)  # the name is in no signature


def test_cells_of_one_name_are_told_apart_by_their_knobs() -> None:
    base = cell("objective.name=mine")
    cells = [replace(base, objective=replace(base.objective, beta=beta)) for beta in (0.1, 0.2)]
    graph = plan(cells)
    assert list(graph.cells) == ["nano/mine/seed1/objective.beta=0.1", "nano/mine/seed1/objective.beta=0.2"]
    labels = {run.labels["variant"] for run in graph.runs.values()}
    assert labels == {"objective.beta=0.1", "objective.beta=0.2"}


def test_a_variant_labels_only_the_stages_that_it_affects() -> None:
    graph = plan(compose_cells(["grpo.learning_rate=1e-4,2e-4", "evaluation.controls={}"]))
    assert list(graph.cells) == ["nano/ce/seed1/grpo.learning_rate=0.0001", "nano/ce/seed1/grpo.learning_rate=0.0002"]
    assert {run.labels.get("variant") for run in graph.runs.values() if run.stage in ("pretrain", "midtrain")} == {None}
    assert len({run.labels["variant"] for run in graph.runs.values() if run.stage == "grpo"}) == 2


def test_the_usual_head_is_that_of_the_data() -> None:
    assert objective_name(cell("objective=tail_penalty", "data.top_k=8")) == "tail_penalty"
    assert objective_name(cell("objective=tail_penalty", "data.top_k=8", "objective.top_k=16")) == "lam_tail=-0.1,k=16"


def test_a_mixture_is_named_by_the_stage_that_reads_it() -> None:
    graph = plan(compose_cells(["data.mixtures.midtrain.text=0.05,0.06", "data.mixtures.midtrain.boolean=0.06,0.05"]))
    assert len(graph.cells) == 4
    for name in graph.cells:
        keys = {part.split("=")[0] for part in name.split("/")[3:]}
        assert keys == {"midtrain.mixture.boolean", "midtrain.mixture.text"}
    assert sum(run.stage == "pretrain" for run in graph.runs.values()) == 1
