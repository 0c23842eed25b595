"""From a command line to override lists: sweeps on the command line, named sweeps, and both together."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pipelines.configuration.sweep import SweepConfig
from pipelines.errors import UserError
from shaping import NAMED
from sweeps.compose.cells import compose_cells
from sweeps.compose.config_files import initialized_hydra, options_of
from sweeps.compose.expansion import expand
from sweeps.compose.named_sweeps import named_sweep
from tests.sweeps.compose.search_path import search_first


def test_sweeps_on_the_command_line_are_products() -> None:
    cells = compose_cells(["objective=ce,precision", "seed=range(1,4)"])
    assert [(c.objective.name, c.seed) for c in cells] == [
        (name, seed) for name in ("ce", "precision") for seed in (1, 2, 3)
    ]
    globbed = compose_cells(["objective=glob(*)"])
    assert {c.objective.name for c in globbed} == set(NAMED)


def test_a_key_that_is_written_twice_has_its_last_value() -> None:
    assert expand(["seed=1,2", "objective=ce", "seed=3"]) == [["objective=ce", "seed=3"]]


def test_a_sweep_without_values_is_refused() -> None:
    with pytest.raises(UserError, match=r"name the values of a sweep: pretrain\.learning_rate=1,2,3"):
        compose_cells(["pretrain.learning_rate=interval(0,1)"])


def test_the_named_sweep_has_the_five_settings() -> None:
    cells = compose_cells(["+sweep=nano"])
    assert [c.objective.name for c in cells] == list(NAMED)
    assert {c.sweep.name for c in cells} == {"nano"}
    assert len(compose_cells(["+sweep=nano", "seed=1,2"])) == 10


def test_a_product_grid_is_complete() -> None:
    cells = compose_cells(["+sweep=beta_lambda_k"])
    knobs = [(c.objective.beta, c.objective.lam_head, c.objective.lam_tail, c.objective.top_k) for c in cells]
    assert len(knobs) == len(set(knobs)) == 3 * 2 * 2 * 2


def test_the_command_line_wins_over_the_named_sweep() -> None:
    assert {tuple(job) for job in expand(["+sweep=nano", "objective=ce"])} == {("+sweep=nano", "objective=ce")}
    assert len(compose_cells(["+sweep=nano", "objective=ce"])) == 1


@pytest.mark.parametrize("name", options_of("sweep"))
def test_a_named_sweep_is_what_hydra_composes(name: str) -> None:
    with initialized_hydra():
        chosen = OverridesParser.create().parse_overrides([f"+sweep={name}"])
        composed = compose(config_name="config", overrides=[f"+sweep={name}"]).sweep
        assert OmegaConf.merge(SweepConfig, named_sweep(chosen)) == OmegaConf.merge(SweepConfig, composed)


@pytest.mark.parametrize("first", ["defaults: [nano]", "# @package sweep", "name: mine"])
def test_a_users_sweep_may_have_defaults_and_a_package(first: str, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(f"{first}\ngrid: {{seed: [1, 4]}}\n")
    with initialize_config_module("conf", version_base="1.3"):
        search_first(tmp_path)
        assert GlobalHydra.instance().is_initialized()
        assert {cell.seed for cell in compose_cells(["+sweep=mine"])} == {1, 4}


def test_an_unknown_sweep_names_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'nano'"):
        compose_cells(["+sweep=nnano"])
