"""From overrides to typed cells, and all their mistakes at once."""

import pytest

from pipelines.errors import UserError
from shaping import NAMED
from sweeps.compose.cells import compose_cell, compose_cells, compose_jobs


def test_one_cell_is_typed_and_complete() -> None:
    cell = compose_cell(["objective=precision", "seed=4"])
    assert (cell.objective.name, cell.objective.beta, cell.seed) == ("precision", -0.25, 4)
    assert cell.objective.top_k == cell.data.top_k  # scaled to the vocabulary
    assert cell.midtrain.learning_rate == cell.pretrain.learning_rate
    assert cell.midtrain.final_learning_rate == pytest.approx(1e-5)
    assert cell.midtrain.rope_base > cell.pretrain.rope_base
    assert cell.midtrain.sequence_length > cell.pretrain.sequence_length
    assert (cell.grpo.samples, cell.grpo.temperature, cell.grpo.clip_low, cell.grpo.clip_high) == (16, 1.0, 0.2, 0.28)


@pytest.mark.parametrize("name", NAMED)
def test_the_group_of_objectives_has_the_settings_of_the_library(name: str) -> None:
    objective, setting = compose_cell([f"objective={name}"]).objective, NAMED[name]
    assert (objective.beta, objective.lam_head, objective.lam_tail) == (
        setting.beta,
        setting.lam_head,
        setting.lam_tail,
    )


def test_equal_cells_are_returned_once() -> None:
    """Whether Hydra or the quick composer makes them."""
    jobs = [["++seed=4"], ["seed=4"], ["objective.beta=-0.25", "objective.name=precision"], ["objective=precision"]]
    assert compose_jobs(jobs) == [compose_cell(["seed=4"]), compose_cell(["objective=precision"])]


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        compose_cells(["objective.beta=nan,-2", "pretrain.tokens=0"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all("[cell: objective.beta=" in line for line in lines)
    with pytest.raises(UserError) as caught:
        compose_cells(["seed=range(1,6)", "objective=ce,precison", "grpo.steps=1,x"])
    assert sorted(line.split(":")[0] for line in str(caught.value).splitlines()) == [
        "grpo.milestones=2", "grpo.steps=x", "objective=precison"
    ]  # fmt: skip
