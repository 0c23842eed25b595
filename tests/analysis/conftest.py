"""A store made by hand: every number in it is a known function of where it stands."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.composition import compose_cells
from sweeps.plan import Plan, plan
from sweeps.store import Store, write_json


def known(objective: str, seed: int, stage: str, step: int, benchmark: str, metric: str) -> float:
    """The number that the hand-made store holds at this place, between 0 and 1."""
    return zlib.crc32(f"{objective}/{seed}/{stage}/{step}/{benchmark}/{metric}".encode()) / 2**32


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., tuple[Plan, Store]]:
    """Write finished stage runs for a plan, all but those that `leave_out` names."""

    def make(arguments: list[str], leave_out: Callable[[Any], bool] = lambda run: False) -> tuple[Plan, Store]:
        graph = plan(compose_cells(arguments))
        store = Store.create(tmp_path / "store")
        for run in graph.runs.values():
            if leave_out(run):
                continue
            folder = store.run(run.stage, run.signature).folder
            folder.mkdir(parents=True)
            write_json(folder / "spec.json", run.spec)
            measurements, metrics = [], {}
            if run.stage == "evaluate":
                assert run.parent is not None
                assert run.checkpoint is not None
                measurements = [
                    {
                        "benchmark": name,
                        "group": b["group"],
                        "metric": metric,
                        "value": known(
                            run.labels["objective"],
                            run.config["seed"],
                            run.parent[0],
                            int(run.checkpoint[5:]),
                            name,
                            metric,
                        ),
                        "stderr": 0.01,
                        "n": 64,
                    }
                    for name, b in run.config["evaluation"]["benchmarks"].items()
                    for metric in {
                        "text": ["perplexity", "entropy"],
                        "choice": ["accuracy"],
                        "sampled": ["avg@8", "cons@8", "pass@4", "response_length"],
                    }[b["kind"]]
                ]
            elif run.stage == "pretrain":
                metrics = {"parameters": 366_384}
            else:
                rows = [{"step": s, "reward": s / 10, "entropy": 1 / s, "response_length": 20 + s} for s in range(1, 5)]
                (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            write_json(
                folder / "result.json",
                {"stage": run.stage, "seconds": 1.5, "metrics": metrics, "measurements": measurements, "files": {}},
            )
        return graph, store

    return make
