"""Specs of stage runs for tests of trackers."""

from pathlib import Path
from typing import Any

from pipelines.configuration.tracking import TrackingConfig
from pipelines.ledger import Ledger
from pipelines.tracking.start import start_trackers

PRETRAIN: dict[str, Any] = {
    "stage": "pretrain",
    "signature": "abc123",
    "parent": None,
    "checkpoint": None,
    "config": {"seed": 3, "model": {"layers": 3}, "objective": {"beta": -0.25}, "pretrain": {"tokens": 4096}},
    "labels": {"model": "nano", "objective": "precision", "beta": -0.25, "scale": "nano", "seed": 3, "sweep": "nano"},
}

EVALUATE: dict[str, Any] = {
    **PRETRAIN,
    "stage": "evaluate",
    "signature": "eee999",
    "parent": {"stage": "pretrain", "signature": "abc123"},
    "checkpoint": "step-000008",
    "labels": {**PRETRAIN["labels"], "tokens": 800},
}


def train(root: Path, tracking: TrackingConfig, steps: range) -> None:
    """One attempt that logs these steps of pre-training; it resumes if they do not start at 0."""
    folder = root / "pretrain"
    folder.mkdir(exist_ok=True)
    if steps.start:
        (folder / "resume").mkdir(exist_ok=True)
    with Ledger(folder, start_trackers(PRETRAIN, root, tracking)) as ledger:
        for step in steps:
            ledger.log({"step": step, "tokens": step * 100, "loss": 1 / (step + 1), "note": None})
        ledger.samples("rollouts", [{"question": "1|1", "response": "2\n"}])
        ledger.summarize({"loss": 0.1})


def evaluate(root: Path, tracking: TrackingConfig) -> None:
    """One attempt of an evaluation of the checkpoint at step 8."""
    folder = root / "evaluate"
    folder.mkdir(exist_ok=True)
    with Ledger(folder, start_trackers(EVALUATE, root, tracking)) as ledger:
        ledger.log({"step": 1, "benchmark": "Chain-3", "Chain-3/avg@16": 0.25, "items": 3, "seconds": 1.0})
        ledger.log({"step": 2, "benchmark": "Text", "Text/perplexity": 2.5, "items": 4, "seconds": 1.0})
        ledger.summarize({"Chain-3/avg@16": 0.25})
