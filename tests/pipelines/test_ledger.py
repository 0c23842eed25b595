"""The ledger file, its log lines, and the offline files of the real W&B client, read back with W&B's own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration.tracking import TrackingConfig
from pipelines.errors import StageFailure
from pipelines.ledger import Ledger
from pipelines.tracking.start import start_trackers
from tests.pipelines.contexts import captured_log

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


def test_a_broken_row_is_reported_when_training_resumes(tmp_path: Path) -> None:
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


def test_rows_of_a_writer_that_lost_its_lease_are_not_kept(tmp_path: Path) -> None:
    """It was suspended with its ledger open, and writes before and after the next writer has begun."""
    earlier = Ledger(tmp_path)
    for step in (1, 2, 3):
        earlier.log({"step": step})
    (tmp_path / "resume").mkdir()  # a state after step 2
    work = tmp_path.rename(tmp_path.with_name("taken over"))
    earlier.log({"step": 4, "late": True})
    with Ledger(work) as ledger:
        earlier.log({"step": 5, "late": True})
        for step in (3, 4):
            ledger.log({"step": step})
            earlier.log({"step": 6, "late": True})
    rows = [json.loads(line) for line in (work / "ledger.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert not any("late" in row for row in rows)


@pytest.mark.parametrize("first_step", [2, 4])
def test_earlier_rows_are_on_disk_at_every_moment(tmp_path: Path, first_step: int) -> None:
    """A resumed attempt may be killed at any time: all rows that it keeps are there, whether it drops others or not."""
    with Ledger(tmp_path) as ledger:
        for step in (1, 2, 3):
            ledger.log({"step": step})
    (tmp_path / "resume").mkdir()
    seen: list[list[int]] = []

    class Looking:
        """A tracker that looks at the file whenever it is called."""

        def log(self, *_: object, **__: object) -> None:
            seen.append([json.loads(line)["step"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()])

        summarize = samples = finish = log

    with Ledger(tmp_path, [Looking()]) as ledger:
        if first_step < 4:
            ledger.log({"step": first_step})
        ledger.summarize({})
    kept = list(range(1, first_step))
    assert all(steps[: len(kept)] == kept for steps in seen), seen
    assert seen[-1] == [*kept, *([first_step] if first_step < 4 else [])]


def test_a_row_is_logged_as_a_line_of_its_main_values(tmp_path: Path) -> None:
    row = {"step": 3, "loss": 2.51234, "note": None, "benchmark": "Chain-3", **{f"m{i}": i / 3 for i in range(9)}}
    with Ledger(tmp_path) as ledger, captured_log() as records:
        ledger.log(row | {"tokens_per_second": 81234.5})
    (record,) = records
    assert record.levelname == "INFO"
    assert record.getMessage() == (
        "step 3  loss 2.512  benchmark Chain-3  m0 0  m1 0.3333  m2 0.6667  m3 1  tokens_per_second 81,234"
    )


@pytest.mark.slow
def test_wandb_has_the_same_rows(tmp_path: Path) -> None:
    with Ledger(tmp_path, start_trackers(SPEC, tmp_path, TrackingConfig(mode="offline", project="test"))) as ledger:
        ledger.log({"step": 1, "tokens": 512, "loss": 2.5})
        ledger.log({"step": 2, "tokens": 1024, "loss": 2.25})
        ledger.samples("rollouts", [{"question": "1+1", "response": " #### 2", "reward": 1.0}])
        ledger.summarize({"loss": 2.25})
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    leet = Path(sys.executable).parent / "wandb"
    outputs = [
        subprocess.run(
            [leet, "leet", "inspect", *flags, "--json", str(file)], capture_output=True, text=True, check=True
        ).stdout
        for flags in ([], ["--summary"])
    ]
    config = json.loads(outputs[1])["config"]
    assert {key: config[key] for key in SPEC["labels"]} == SPEC["labels"]
    assert config["stage"] == SPEC["config"]
    everything = "".join(outputs)
    for expected in ("precision", "nano/nano/precision/seed3", "pretrain/loss", "2.25", "1024", "abc123", "rollouts"):
        assert expected in everything
