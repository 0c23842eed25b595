"""Stores with finished stage runs whose numbers are a known function of what was measured; nothing is trained."""

import json
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipelines.configuration.cell import Cell
from pipelines.files import write_sealed
from sweeps.compose.cells import compose_cells
from sweeps.plan.graph import Plan, StageRun
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store
from tests.published import publish

METRICS = {
    "text": ["perplexity", "entropy"],
    "choice": ["accuracy"],
    "sampled": ["avg@8", "cons@8", "pass@4", "response_length"],
}


class Measured(NamedTuple):
    """What a number of the store measures."""

    objective: str
    seed: int
    stage: str
    step: int
    benchmark: str
    metric: str


Number = Callable[[Measured], float]


def known(measured: Measured) -> float:
    """The number that the store has for this measurement, between 0 and 1."""
    return zlib.crc32("/".join(map(str, measured)).encode()) / 2**32


@cache
def composed(arguments: tuple[str, ...]) -> list[Cell]:
    """The cells of a command line, composed once for all tests, since that takes longest."""
    return compose_cells(list(arguments))


@cache
def planned(arguments: tuple[str, ...]) -> Plan:
    """The plan of a command line."""
    return plan(composed(arguments))


def composed_once(patch: pytest.MonkeyPatch) -> None:
    """Let the command take cells from `composed`."""

    def compose(arguments: Sequence[str]) -> list[Cell]:
        return composed(tuple(a for a in arguments if a != "scale=nano"))

    patch.setattr("analysis.reproduce.compose_cells", compose)


@pytest.fixture(autouse=True)
def _composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    composed_once(monkeypatch)


def write_run(store: Store, run: StageRun, number: Number = known, **result: Any) -> Path:
    """Write a finished stage run with `number` for each measurement; `result` replaces keys of its `result.json`."""
    folder = store.run(run.stage, run.signature).folder
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(folder / "spec.json", {**run.spec, "environment": {"shaping": "0.1.0"}})
    measurements: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {}
    if run.stage == "evaluate":
        measurements = measurements_of(run, number)
    elif run.stage == "pretrain":
        metrics = {"parameters": 366_384}
    else:
        rows = [{"step": s, "reward": s / 10, "entropy": 1 / s, "response_length": 20 + s} for s in range(1, 5)]
        (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {"seconds": 1.5, "metrics": metrics, "measurements": measurements}
    publish(folder, **{**content, **result})
    return folder


def measurements_of(run: StageRun, number: Number) -> list[dict[str, Any]]:
    """The measurements of an evaluation: every metric of each of its benchmarks."""
    assert run.parent is not None
    assert run.checkpoint is not None
    rows = []
    for name, benchmark in run.config["evaluation"]["benchmarks"].items():
        for metric in METRICS[benchmark["kind"]]:
            step = int(run.checkpoint.removeprefix("step-"))
            measured = Measured(run.labels["objective"], run.config["seed"], run.parent[0], step, name, metric)
            row = {"benchmark": name, "group": benchmark["group"], "metric": metric, "n": 64, "stderr": 0.01}
            variant = {"variant": run.control} if run.control else {}
            rows.append({**row, **variant, "value": number(measured)})
    return rows


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., tuple[Plan, Store]]:
    """Writes finished stage runs for the plan of some arguments, except those that `leave_out` selects."""

    def make(
        arguments: list[str], leave_out: Callable[[Any], bool] = lambda run: False, number: Number = known
    ) -> tuple[Plan, Store]:
        graph = planned(tuple(arguments))
        store = Store.create(tmp_path / "store")
        for run in graph.runs.values():
            if not leave_out(run):
                write_run(store, run, number)
        return graph, store

    return make
