"""Stored stage runs are found again by later versions: signatures of today are fixed, and new keys keep them."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration.budgets import PretrainConfig
from pipelines.configuration.cell import Cell
from pipelines.configuration.data import DataConfig
from pipelines.configuration.evaluation import BenchmarkConfig
from pipelines.configuration.grpo import GRPOConfig
from pipelines.configuration.model import ModelConfig
from pipelines.configuration.objective import ObjectiveConfig
from pipelines.configuration.signed_content import added_later
from pipelines.files import write_sealed
from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.execute.display import title
from sweeps.plan.planner import plan
from sweeps.plan.signatures import signature_of
from sweeps.store.stage_runs import Store
from tests.published import publish

PINNED = Path(__file__).with_name("nano_signatures.json")


def test_the_signatures_of_the_nano_sweep_never_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, no stage run that anyone has stored is found again; see `added_later` for new keys."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    runs = plan(compose_cells(["+sweep=nano"])).runs
    assert {signature: title(run) for signature, run in runs.items()} == json.loads(PINNED.read_text())


@dataclass
class LaterModel(ModelConfig):
    later: float = added_later(as_before=0.0)


@dataclass
class LaterObjective(ObjectiveConfig):
    later: float = added_later(as_before=0.0)


@dataclass
class LaterData(DataConfig):
    later: list[str] = added_later(as_before=[])


@dataclass
class LaterPretrain(PretrainConfig):
    later: float = added_later(as_before=0.0)


@dataclass
class LaterGRPO(GRPOConfig):
    later: str | None = added_later(as_before=None)


@dataclass
class LaterBenchmark(BenchmarkConfig):
    later: dict[str, int] = added_later(as_before={})


def with_benchmarks(cell: Cell, **values: Any) -> Cell:
    benchmarks: dict[str, BenchmarkConfig] = {
        name: LaterBenchmark(**vars(benchmark), **values) for name, benchmark in cell.evaluation.benchmarks.items()
    }
    return replace(cell, evaluation=replace(cell.evaluation, benchmarks=benchmarks))


LATER: dict[str, tuple[Callable[..., Cell], Any]] = {
    "model": (lambda cell, **values: replace(cell, model=LaterModel(**vars(cell.model), **values)), 1.0),
    "objective": (lambda cell, **values: replace(cell, objective=LaterObjective(**vars(cell.objective), **values)), 1),
    "data": (lambda cell, **values: replace(cell, data=LaterData(**vars(cell.data), **values)), ["more"]),
    "pretrain": (lambda cell, **values: replace(cell, pretrain=LaterPretrain(**vars(cell.pretrain), **values)), 1.0),
    "grpo": (lambda cell, **values: replace(cell, grpo=LaterGRPO(**vars(cell.grpo), **values)), "more"),
    "benchmarks": (with_benchmarks, {"more": 1}),
}
"""Part of a cell -> a function that gives it the key `later`, and a value other than "as before"."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, Store]:
    """A cell whose stage runs are all stored."""
    cell = compose_cell([])
    store = Store.create(tmp_path_factory.mktemp("store"))
    for run in plan([cell]).runs.values():
        folder = store.run(run.stage, run.signature).folder
        folder.mkdir(parents=True)
        write_sealed(folder / "spec.json", run.spec)
        publish(folder)
    return cell, store


@pytest.mark.parametrize("part", LATER)
def test_stored_stage_runs_are_found_again_after_a_key_is_added(part: str, stored: tuple[Cell, Store]) -> None:
    cell, store = stored
    add_key, _ = LATER[part]
    runs = plan([add_key(cell)]).runs.values()
    assert {store.run(run.stage, run.signature).status for run in runs} == {"done"}


@pytest.mark.parametrize("part", LATER)
def test_another_value_of_an_added_key_changes_signatures(part: str, stored: tuple[Cell, Store]) -> None:
    cell, store = stored
    add_key, value = LATER[part]
    runs = plan([add_key(cell, later=value)]).runs.values()
    statuses = {run.stage: store.run(run.stage, run.signature).status for run in runs}
    assert statuses["evaluate"] == "missing"
    if part != "benchmarks":
        assert statuses["grpo"] == "missing"
    for run in runs:
        assert signature_of(json.loads(json.dumps(run.spec))) == run.signature


def test_a_stored_configuration_without_the_key_has_its_value_as_before(stored: tuple[Cell, Store]) -> None:
    """Stages make their configuration of the stored one."""
    _, store = stored
    (pretrain,) = (run for run in store.runs() if run.stage == "pretrain")
    config = LaterPretrain(**pretrain.spec["config"]["pretrain"])
    assert config.later == 0.0
    assert asdict(config) == pretrain.spec["config"]["pretrain"] | {"later": 0.0}
