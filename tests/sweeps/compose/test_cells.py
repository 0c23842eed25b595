"""Overrides become cells: by hand, by name, and both at once."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pipelines.configuration.sweep import SweepConfig
from pipelines.errors import UserError
from shaping import NAMED
from sweeps.compose.cells import (
    Composer,
    _named_sweep,
    _OutOfTheOrdinary,
    compose_cell,
    compose_cells,
    compose_jobs,
    expand,
    initialized_hydra,
    options_of,
)


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


@pytest.mark.parametrize("name", options_of("sweep"))
def test_a_named_sweep_alone_is_what_hydra_composes(name: str) -> None:
    with initialized_hydra():
        chosen = OverridesParser.create().parse_overrides([f"+sweep={name}"])
        composed = compose(config_name="config", overrides=[f"+sweep={name}"]).sweep
        assert OmegaConf.merge(SweepConfig, _named_sweep(chosen)) == OmegaConf.merge(SweepConfig, composed)


@pytest.mark.parametrize("first", ["defaults: [nano]", "# @package sweep", "name: mine"])
def test_a_sweep_of_ones_own_may_be_more_than_a_list(first: str, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(f"{first}\ngrid: {{seed: [1, 4]}}\n")
    with initialize_config_module("conf", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        search = hydra.config_loader.get_search_path()
        search.prepend("test", f"file://{tmp_path}")
        hydra.config_loader = ConfigLoaderImpl(search)
        assert {cell.seed for cell in compose_cells(["+sweep=mine"])} == {1, 4}


ORDINARY = [
    [],
    ["objective=precision"],
    ["objective=tail_penalty", "objective.top_k=3", "seed=7"],
    ["objective.beta=0.25", "data.top_k=9"],  # the objective refers to data.top_k
    ["+sweep=nano", "objective=ce", "objective.lam_head=0.2", "pretrain.mixture.text=0.9", "until=pretrain"],
    ["data.vocab_size=300", "evaluation.benchmarks.Boolean.items=3", "evaluation.pass_k=[2,3]", "tracking=off"],
    [
        "pretrain.mixture.chain4=0.5",
        "+tracking.entity=we",
        "grpo.learning_rate=${pretrain.learning_rate}",
        "scale=mine",
    ],
    ["grpo.steps=${midtrain.milestones}0", "store=/elsewhere", "tracking.entity=me"],
    ["pretrain.learning_rate=${oc.env:RATE}", "midtrain.learning_rate=${pretrain.learning_rate}"],
]


@pytest.mark.parametrize("job", ORDINARY, ids=" ".join)
def test_quick_composition_is_hydras(job: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "0.01")
    with initialized_hydra():
        composer = Composer()
        composer.cell(
            ["objective=diversity", "seed=3", "data.top_k=4", "pretrain.mixture.text=0.5"]
        )  # fills its memory
        assert composer.cell(job) == compose_cell(job)


@pytest.mark.parametrize(
    "override", ["objective@model=ce", "~sweep", "++seed=4", "hydra.verbose=true", "objective=nono"]
)
def test_what_is_out_of_the_ordinary_is_left_to_hydra(override: str) -> None:
    with initialized_hydra(), pytest.raises(_OutOfTheOrdinary):
        Composer().cell([override])


def test_a_mixed_bag_of_jobs() -> None:
    """Ordinary or not, repeated or not: every job's cell once, equal parts one object."""
    jobs = [["++seed=4"], ["seed=4"], ["objective.beta=-0.25", "objective.name=precision"], ["objective=precision"]]
    cells = compose_jobs(jobs)
    assert cells == [compose_cell(["seed=4"]), compose_cell(["objective=precision"])]
    assert cells[0].model is cells[1].model


def test_all_mistakes_are_told_at_once() -> None:
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


def test_an_unknown_sweep_names_those_there_are() -> None:
    with pytest.raises(UserError, match="did you mean 'nano'"):
        compose_cells(["+sweep=nnano"])
