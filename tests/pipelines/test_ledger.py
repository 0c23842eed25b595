"""The ledger file, and what the real W&B client writes offline, read back with W&B's own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration.tracking import TrackingConfig
from pipelines.errors import StageFailure
from pipelines.ledger import Ledger
from pipelines.wandb_run import start_wandb_run

SPEC: dict[str, Any] = {
    "stage": "pretrain",
    "signature": "abc123",
    "parent": None,
    "checkpoint": None,
    "config": {"seed": 3, "model": {"layers": 3}, "objective": {"beta": -0.25}, "pretrain": {"tokens": 4096}},
    "labels": {"model": "nano", "objective": "precision", "beta": -0.25, "scale": "nano", "seed": 3, "sweep": "nano"},
}


def test_a_row_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.log({"step": 1, "loss": 2.5})
        ledger.log({"step": 2, "loss": float("nan")})
        rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
        assert [(row["step"], row["loss"]) for row in rows] == [(1, 2.5), (2, None)]
        assert rows[0]["time"] <= rows[1]["time"]
    assert not (tmp_path / "wandb").exists()


def test_a_broken_row_is_named_when_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "resume").mkdir()
    (tmp_path / "ledger.jsonl").write_text('{"step": 1}\n{"ste\n')
    ledger = Ledger(tmp_path)
    with (
        ledger,
        pytest.raises(
            StageFailure, match=r"ledger\.jsonl: one of its lines is not a ledger row .*; delete the folder resume"
        ),
    ):
        ledger.log({"step": 2, "loss": 2.5})


@pytest.mark.slow
def test_wandb_holds_the_same_rows(tmp_path: Path) -> None:
    with Ledger(tmp_path, start_wandb_run(SPEC, tmp_path, TrackingConfig(mode="offline", project="test"))) as ledger:
        ledger.log({"step": 1, "tokens": 512, "loss": 2.5})
        ledger.log({"step": 2, "tokens": 1024, "loss": 2.25})
        ledger.samples("rollouts", [{"question": "1+1", "response": " #### 2", "reward": 1.0}])
        ledger.summarize({"loss": 2.25})
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    leet = Path(sys.executable).parent / "wandb"
    read = [
        subprocess.run(
            [leet, "leet", "inspect", *flags, "--json", str(file)], capture_output=True, text=True, check=True
        ).stdout
        for flags in ([], ["--summary"])
    ]
    config = json.loads(read[1])["config"]
    assert {key: config[key] for key in SPEC["labels"]} == SPEC["labels"]
    assert config["stage"] == SPEC["config"]
    everything = "".join(read)
    for expected in ("precision", "nano/nano/precision/seed3", "pretrain", "2.25", "1024", "abc123", "rollouts"):
        assert expected in everything
