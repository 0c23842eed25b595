"""Which stored stage run is named as the most similar to a planned one, and the keys that differ."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.files import write_sealed
from sweeps.plan.differences import explain
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import Store


def run(stage: str, signature: str, parent: str | None = None, **config: Any) -> StageRun:
    return StageRun(stage, signature, 1, config, ("pretrain", parent) if parent else None, None, 1, {"seed": 1})


def stored(folder: Path, *runs: StageRun) -> Store:
    store = Store.create(folder / "store")
    for one in runs:
        path = store.run(one.stage, one.signature).folder
        path.mkdir(parents=True)
        write_sealed(path / "spec.json", one.spec)
    return store


def test_the_most_similar_differs_in_the_fewest_keys(tmp_path: Path) -> None:
    planned = run("pretrain", "planned", pretrain={"tokens": 1, "decay": "cosine"}, seed=1)
    store = stored(
        tmp_path,
        run("pretrain", "a" * 16, pretrain={"tokens": 2, "decay": "linear"}, seed=1),
        run("pretrain", "b" * 16, pretrain={"tokens": 2, "decay": "cosine"}, seed=1),
        run("pretrain", "c" * 16, pretrain={"tokens": 3, "decay": "linear"}, seed=2),
    )
    assert explain(Plan({"planned": planned}), planned, store) == ("b" * 16, {"pretrain.tokens": (1, 2)})
    raised = replace(planned, version=2)
    assert explain(Plan({"planned": raised}), raised, store) == (
        "b" * 16, {"pretrain.version": (2, 1), "pretrain.tokens": (1, 2)}
    )  # fmt: skip


def test_only_stage_runs_of_its_stage_are_compared(tmp_path: Path) -> None:
    planned = run("pretrain", "planned", seed=1)
    store = stored(tmp_path, run("midtrain", "a" * 16, seed=1))
    assert explain(Plan({"planned": planned}), planned, store) == (None, {})


def test_keys_of_earlier_stages_count(tmp_path: Path) -> None:
    first, last = run("pretrain", "first", pretrain={"tokens": 1}), run("midtrain", "last", "first", midtrain={"x": 5})
    store = stored(
        tmp_path,
        run("pretrain", "a" * 16, pretrain={"tokens": 9}),
        run("midtrain", "b" * 16, "a" * 16, midtrain={"x": 5}),
    )
    assert explain(Plan({"first": first, "last": last}), last, store) == ("b" * 16, {"pretrain.tokens": (1, 9)})
