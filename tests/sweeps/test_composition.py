"""Overrides become cells: by hand, by name, and both at once."""

import pytest

from pipelines.errors import UserError
from shaping import NAMED
from sweeps.composition import compose_cell, compose_cells, expand


def test_one_cell_is_typed_and_complete() -> None:
    cell = compose_cell(["objective=precision", "seed=4"])
    assert (cell.objective.name, cell.objective.beta, cell.seed) == ("precision", -0.25, 4)
    assert cell.objective.top_k == cell.data.top_k  # scaled to the vocabulary
    assert cell.midtrain.learning_rate == cell.pretrain.learning_rate
    assert cell.midtrain.final_learning_rate == pytest.approx(cell.midtrain.learning_rate / 10)
    assert cell.midtrain.rope_base > cell.pretrain.rope_base
    assert cell.midtrain.sequence_length > cell.pretrain.sequence_length
    assert (cell.grpo.samples, cell.grpo.temperature, cell.grpo.clip_low, cell.grpo.clip_high) == (16, 1.0, 0.2, 0.28)


@pytest.mark.parametrize("name", NAMED)
def test_the_objective_group_is_the_librarys(name: str) -> None:
    objective, setting = compose_cell([f"objective={name}"]).objective, NAMED[name]
    assert (objective.beta, objective.lam_head, objective.lam_tail) == (
        setting.beta,
        setting.lam_head,
        setting.lam_tail,
    )


def test_sweeps_by_hand_are_products() -> None:
    cells = compose_cells(["objective=ce,precision", "seed=range(1,4)"])
    assert [(c.objective.name, c.seed) for c in cells] == [
        (name, seed) for name in ("ce", "precision") for seed in (1, 2, 3)
    ]
    globbed = compose_cells(["objective=glob(*)"])
    assert {c.objective.name for c in globbed} == set(NAMED)


def test_the_named_sweep_has_the_five_settings() -> None:
    cells = compose_cells(["+sweep=nano"])
    assert [c.objective.name for c in cells] == list(NAMED)
    assert {c.sweep.name for c in cells} == {"nano"}
    assert len(compose_cells(["+sweep=nano", "seed=1,2"])) == 10


def test_a_product_grid_is_full() -> None:
    cells = compose_cells(["+sweep=beta_lambda_k"])
    knobs = [(c.objective.beta, c.objective.lam_head, c.objective.lam_tail, c.objective.top_k) for c in cells]
    assert len(knobs) == len(set(knobs)) == 3 * 2 * 2 * 2


def test_what_is_typed_wins_over_the_named_sweep() -> None:
    assert {tuple(job) for job in expand(["+sweep=nano", "objective=ce"])} == {("+sweep=nano", "objective=ce")}
    assert len(compose_cells(["+sweep=nano", "objective=ce"])) == 1


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        compose_cells(["objective.beta=nan,-2", "pretrain.tokens=0"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all("[cell: objective.beta=" in line for line in lines)


def test_an_unknown_sweep_names_those_there_are() -> None:
    with pytest.raises(UserError, match="did you mean 'nano'"):
        compose_cells(["+sweep=nnano"])
