"""TensorBoard, CSV and MLflow, each read back by its own library: each step once after any number of attempts."""

import csv
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration.tracking import TrackingConfig
from tests.pipelines.tracking.specs import PRETRAIN, evaluate, train

RUN = "nano/precision/seed3/pretrain-abc123"
LOSSES = [(step, pytest.approx(1 / (step + 1))) for step in range(9)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def attempts(root: Path, tracking: TrackingConfig) -> None:
    """A first attempt, one that resumes, and an evaluation that is done twice."""
    train(root, tracking, range(6))
    train(root, tracking, range(4, 9))
    evaluate(root, tracking)
    evaluate(root, tracking)


def test_tensorboard(root: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    attempts(root, TrackingConfig(tensorboard=True))
    events = EventAccumulator(str(root / "tensorboard" / RUN))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("pretrain/loss")] == LOSSES
    assert [e.step for e in events.Scalars("pretrain/tokens")] == list(range(9))
    assert [(e.step, e.value) for e in events.Scalars("evaluate/Chain-3/avg@16")] == [(8, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("evaluate/Text/items")] == [(8, 4)]
    text = events.Tensors("pretrain/rollouts/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "1\\|1 | 2<br>" in text
    assert "objective: precision" in (root / "tensorboard" / RUN / "hparams.yaml").read_text()


def test_csv(root: Path) -> None:
    attempts(root, TrackingConfig(csv=True))
    folder = root / "csv" / RUN
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["step"]), float(row["pretrain/loss"])) for row in rows] == LOSSES
    with (folder / "evaluate-eee999" / "metrics.csv").open() as file:
        measured = list(csv.DictReader(file))
    assert [(row["step"], row["evaluate/Chain-3/avg@16"] or row["evaluate/Text/perplexity"]) for row in measured] == [
        ("8", "0.25"),
        ("8", "2.5"),
    ]


@pytest.mark.slow
def test_mlflow(root: Path) -> None:
    from mlflow.tracking import MlflowClient

    attempts(root, TrackingConfig(mlflow=True, project="study"))
    client = MlflowClient((root / "mlflow").as_uri())
    experiment: Any = client.get_experiment_by_name("study")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "pretrain/loss")
    assert sorted((m.step, m.value) for m in history) == LOSSES
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "evaluate/Chain-3/avg_16")] == [
        (8, 0.25)
    ]
    assert run.data.tags["signature"] == "abc123"
    assert run.data.params["objective"] == "precision"
    assert run.info.run_name == "pretrain nano/precision/seed3"
    assert run.info.status == "FINISHED"
    assert client.list_artifacts(run.info.run_id, "pretrain")


def test_a_run_of_mlflow_that_is_resumed_is_running_again(root: Path) -> None:
    from mlflow.tracking import MlflowClient

    from pipelines.tracking.lightning_loggers import MLflowTracker

    tracking = TrackingConfig(mlflow=True, project="study")
    train(root, tracking, range(2))
    MLflowTracker(PRETRAIN, root, tracking)
    client = MlflowClient((root / "mlflow").as_uri())
    experiment: Any = client.get_experiment_by_name("study")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "RUNNING"


def test_several_at_once(root: Path) -> None:
    train(root, TrackingConfig(tensorboard=True, csv=True), range(3))
    assert (root / "csv" / RUN / "metrics.csv").exists()
    assert list((root / "tensorboard" / RUN).glob("events.*"))
