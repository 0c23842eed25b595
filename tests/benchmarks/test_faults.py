"""The harness of interruptions: it sees what differs, what is left behind, and the processes of its commands."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fault_differences import differences, leftovers
from benchmarks.fault_targets import MARK, Targets

RUN = "pretrain/0123456789abcdef"
ROW = {"step": 1, "loss": 5.5, "time": 1.0, "tokens_per_second": 100.0}


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal stores of one finished stage run."""
    folder = tmp_path / "undisturbed" / RUN
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "model.safetensors").write_bytes(b"weights")
    (folder / "ledger.jsonl").write_text(json.dumps(ROW) + "\n")
    (folder / "state.json").write_text('{"status": "done"}')
    (folder / "result.json").write_text(json.dumps({"seconds": 1.0, "metrics": {"loss": 5.5}, "files": {"a": "b"}}))
    (tmp_path / "undisturbed" / "wandb" / "offline-run-20260101_000000-0123456789abcdef").mkdir(parents=True)
    return tmp_path / "undisturbed", shutil.copytree(tmp_path / "undisturbed", tmp_path / "interrupted")


def test_times_are_no_difference(stores: tuple[Path, Path]) -> None:
    reference, store = stores
    (store / RUN / "ledger.jsonl").write_text(json.dumps(ROW | {"time": 2.0, "tokens_per_second": 1.0}) + "\n")
    (store / RUN / "result.json").write_text(
        json.dumps({"seconds": 9.0, "metrics": {"loss": 5.5}, "files": {"a": "c"}})
    )
    (store / "wandb" / "offline-run-20260102_000000-0123456789abcdef").mkdir()  # a second attempt at the same run
    assert differences(reference, store) == []
    assert leftovers(store) == []


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a weight": (
        lambda run: (run / "checkpoints/model.safetensors").write_bytes(b"weightS"),
        "model.safetensors differs",
    ),
    "a doubled row": (lambda run: (run / "ledger.jsonl").write_text(2 * (json.dumps(ROW) + "\n")), "2 rows for 1"),
    "a value": (
        lambda run: (run / "ledger.jsonl").write_text(json.dumps(ROW | {"loss": 5.6}) + "\n"),
        "ledger.jsonl differs in row 1, loss",
    ),
    "a metric": (
        lambda run: (run / "result.json").write_text(json.dumps({"metrics": {"loss": 1}})),
        "result.json differs in metrics",
    ),
    "a missing file": (lambda run: (run / "ledger.jsonl").unlink(), "ledger.jsonl is missing"),
    "one file more": (lambda run: (run / "more").touch(), "more is not in the undisturbed run"),
    "a state": (lambda run: (run / "state.json").write_text('{"status": "running"}'), "its state is running"),
    "a stage run": (lambda run: shutil.rmtree(run), "the stage run is missing"),
    "a W&B run": (
        lambda run: (run.parents[1] / "wandb" / "offline-run-20260101_000000-abc").mkdir(),
        "W&B run abc is one too many",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_difference_is_found(stores: tuple[Path, Path], change: str) -> None:
    reference, store = stores
    make, sentence = CHANGES[change]
    make(store / RUN)
    (difference,) = differences(reference, store)
    assert sentence in difference


@pytest.mark.parametrize("name", ["work-000002", "leases", "resume", "checkpoints/.step-000001.abcd"])
def test_what_is_left_behind_is_found(stores: tuple[Path, Path], name: str) -> None:
    (stores[1] / RUN / name).mkdir()
    assert leftovers(stores[1]) == [f"left behind: {RUN}/{name}"]


def test_processes_are_found_by_their_mark_and_receive_signals() -> None:
    """A child counts too, since it inherits the mark."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, MARK: "this round"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert command.stdout is not None
    command.stdout.readline()
    assert len(Targets.marked("this round")) == 2
    assert Targets.marked("another round") == []
    target = Targets("this round", [command.pid]).choose("group", random.Random(1))
    assert target is not None
    assert target.send(signal.SIGKILL)
    assert command.wait(30) == -signal.SIGKILL
    command.communicate()
    deadline = time.monotonic() + 10
    while Targets.marked("this round"):
        assert time.monotonic() < deadline, "the child is still running"
        time.sleep(0.02)
