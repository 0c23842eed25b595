"""Stores made by hand: every number in them is a known function of where it stands."""

import json
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration.cell import Cell
from sweeps.compose.cells import compose_cells
from sweeps.plan.graph import Plan, StageRun
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store

METRICS = {
    "text": ["perplexity", "entropy"],
    "choice": ["accuracy"],
    "sampled": ["avg@8", "cons@8", "pass@4", "response_length"],
}

Number = Callable[[str, int, str, int, str, str], float]


def known(objective: str, seed: int, stage: str, step: int, benchmark: str, metric: str) -> float:
    """The number that the hand-made store holds at this place, between 0 and 1."""
    return zlib.crc32(f"{objective}/{seed}/{stage}/{step}/{benchmark}/{metric}".encode()) / 2**32


@cache
def composed(arguments: tuple[str, ...]) -> list[Cell]:
    """The cells of a command line, composed once for all tests: it is what takes longest."""
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


def write_run(store: Store, run: StageRun, number: Number = known, **more: Any) -> Path:
    """A finished stage run whose measurements are `number` of their place; `more` goes into its result."""
    folder = store.run(run.stage, run.signature).folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps({**run.spec, "environment": {"shaping": "0.1.0"}}))
    measurements: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {}
    if run.stage == "evaluate":
        assert run.parent is not None
        assert run.checkpoint is not None
        for name, benchmark in run.config["evaluation"]["benchmarks"].items():
            for metric in METRICS[benchmark["kind"]]:
                place = (run.labels["objective"], run.config["seed"], run.parent[0], int(run.checkpoint[5:]))
                row = {"benchmark": name, "group": benchmark["group"], "metric": metric, "n": 64, "stderr": 0.01}
                variant = {"variant": run.control} if run.control else {}
                measurements.append({**row, **variant, "value": number(*place, name, metric)})
    elif run.stage == "pretrain":
        metrics = {"parameters": 366_384}
    else:
        rows = [{"step": s, "reward": s / 10, "entropy": 1 / s, "response_length": 20 + s} for s in range(1, 5)]
        (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"format": 1, "stage": run.stage, "seconds": 1.5, "metrics": metrics, "measurements": measurements}
    (folder / "result.json").write_text(json.dumps({**result, **more}))
    return folder


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., tuple[Plan, Store]]:
    """Write finished stage runs for a plan, all but those that `leave_out` names."""

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
