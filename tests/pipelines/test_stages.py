"""Planned stage runs, run outside a worker."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import stages
from pipelines.configuration.tracking import TrackingConfig
from pipelines.data.corpus import prepare
from pipelines.models.causal_lm import build_model, save_checkpoint
from pipelines.stages import run_stage
from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.plan.planner import plan
from tests.conftest import SMALL
from tests.pipelines.contexts import captured_log

OFF = TrackingConfig("off")


@pytest.mark.slow
def test_a_spec_gives_the_same_numbers_again_and_logs_them(tmp_path: Path) -> None:
    runs = {run.stage: run for run in plan([compose_cell(SMALL)]).runs.values()}
    first, second, midtrain = (tmp_path / name for name in ("first", "second", "midtrain"))
    for folder in (first, second, midtrain):
        folder.mkdir()
    outcomes = []
    for folder in (first, second):
        with captured_log() as records:
            outcomes.append(run_stage(runs["pretrain"].spec, folder=folder, root=tmp_path, tracking=OFF)["metrics"])
        lines = [record.getMessage() for record in records]
        name = f"pretrain/{runs['pretrain'].signature}"
        assert lines[0].startswith(f"{name} starts as rank 0 of 1:  ")
        assert "model nano  objective ce" in lines[0]
        assert [line.split()[1] for line in lines if line.startswith("step ")] == [str(step) for step in range(1, 9)]
        assert lines[-1].startswith(f"{name} finished after ")
    assert all(outcomes[0][key] == outcomes[1][key] for key in outcomes[0] if key != "tokens_per_second")

    # Mid-training starts from the checkpoint of its parent.
    spec = runs["midtrain"].spec
    metrics = run_stage(spec, folder=midtrain, root=tmp_path, tracking=OFF, parent=first)["metrics"]
    rows = [json.loads(line) for line in (midtrain / "ledger.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] < outcomes[0]["loss"] + 0.2
    assert metrics["tokens"] == 4096
    assert [path.name for path in (midtrain / "checkpoints").iterdir()] == [f"step-{metrics['steps']:06d}"]


@pytest.mark.slow
def test_rl_from_a_tempered_model_starts_at_the_entropy_of_the_other_setting(tmp_path: Path) -> None:
    """RL's sampled entropy is not held-out text's, so the tempered model is measured as a model that learns nothing."""
    words = [*SMALL, "objective.beta=0.0,5.0", "evaluation.controls={tempered:[grpo]}", "grpo.learning_rate=1e-12"]
    words += ["grpo.steps=1", "grpo.weight_decay=0", "pretrain.milestones=1", "pretrain.learning_rate=0.03"]
    graph = plan(compose_cells(words))
    texts: dict[str, float] = {}
    for run in graph.runs.values():
        if run.stage == "evaluate" and run.parent and run.parent[0] == "pretrain":
            continue
        folder = tmp_path / run.signature
        folder.mkdir()
        folders = {
            "parent": run.parent and tmp_path / run.parent[1],
            "reference": run.reference and tmp_path / run.reference,
        }
        outcome = run_stage(run.spec, folder=folder, root=tmp_path, tracking=OFF, **folders)  # type: ignore[arg-type]
        if run.stage == "evaluate" and run.parent:
            control = run.labels.get("control", "")
            texts[f"{run.parent[0]} {run.labels['objective']} {control}"] = outcome["metrics"]["Docstrings/entropy"]
        if run.control:
            metrics = outcome["metrics"]
            assert metrics["start_entropy"] == pytest.approx(metrics["reference_entropy"], abs=1e-4)
    assert texts["grpo ce tempered:beta=5"] == pytest.approx(texts["midtrain beta=5 "], abs=1e-3)
    assert abs(texts["grpo ce "] - texts["midtrain beta=5 "]) > 0.01


@pytest.mark.parametrize(("stage", "key"), [("pretrain", "pretrain"), ("midtrain", "midtrain")])
def test_the_position_limit_of_a_model_is_the_length_of_its_training_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, key: str
) -> None:
    cell = compose_cell(SMALL)
    spec = {run.stage: run for run in plan([cell]).runs.values()}[stage].spec
    # The parent's checkpoint of mid-training, which has the limit of pre-training.
    corpus = prepare(cell.data, tmp_path / "cache")
    model = build_model(cell.model, corpus.tokenizer, 1e4, seed=0, length=cell.pretrain.sequence_length)
    (tmp_path / "parent" / "checkpoints").mkdir(parents=True)
    if spec["checkpoint"]:
        save_checkpoint(model, corpus.tokenizer, tmp_path / "parent" / "checkpoints" / spec["checkpoint"])
    limits = []

    def train(model: Any, *_: Any, **__: Any) -> dict[str, float]:
        limits.append(model.config.max_position_embeddings)
        return {}

    monkeypatch.setattr("pipelines.stages.train", train)
    (tmp_path / "run").mkdir()
    run_stage(spec, folder=tmp_path / "run", root=tmp_path, tracking=OFF, parent=tmp_path / "parent")
    assert limits == [getattr(cell, key).sequence_length]
    assert cell.pretrain.sequence_length < cell.midtrain.sequence_length


def test_a_measured_model_is_on_the_device_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "use_attention_by_blocks", lambda model: None)
    monkeypatch.setattr(stages, "on_device", lambda model, rank=0: (model, rank))
    assert stages._measurable("a model", 3) == ("a model", 3)  # type: ignore[arg-type, comparison-overlap]


def test_pre_training_a_start_balances_its_experts_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def train(*_: object, balance_rate: float, **__: object) -> dict[str, float]:
        rates.append(balance_rate)
        return {"loss": 2.0}

    monkeypatch.setattr(stages, "train", train)
    for name, value in (("load_model", "a model"), ("parameter_count", 7), ("_objective", None), ("_deferred", False)):
        monkeypatch.setattr(stages, name, lambda *_, value=value, **__: value)
    config = {"pretrain": asdict(compose_cell([]).pretrain), "start": {}}
    for balance in ({"balance_rate": 0.25}, {}):
        context = SimpleNamespace(config=config | balance, corpus=SimpleNamespace(tokenizer=None), source=None)
        outcome = stages._pretrain(context)  # type: ignore[arg-type]
        assert outcome == {"metrics": {"loss": 2.0, "parameters": 7}, "measurements": []}
    assert rates == [0.25, 0.0]
