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

from benchmarks.fault_breakpoints import Breakpoint, phase_of
from benchmarks.fault_differences import RECORD, differences, leftovers, wandb_records, wandb_steps
from benchmarks.fault_targets import MARK, choose, processes
from pipelines.configuration.tracking import TrackingConfig
from tests.pipelines.tracking.specs import train

RUN = "pretrain/0123456789abcdef"
ROW = {"step": 1, "loss": 5.5, "time": 1.0, "tokens_per_second": 100.0}


def write_wandb(store: Path, signature: str, *steps: int, started: str = "20260101_000000") -> Path:
    """Writes the file of an offline W&B run that has these steps."""
    from wandb.proto.wandb_internal_pb2 import HistoryItem, HistoryRecord, Record

    content = b":W&B\xe1\xbe\x00"
    for step in steps:
        item = HistoryItem(key="_step", value_json=str(step))
        record = Record(history=HistoryRecord(item=[item])).SerializeToString()
        content += RECORD.pack(0, len(record), 1) + record
    folder = store / "wandb" / f"offline-run-{started}-{signature}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"run-{signature}.wandb").write_bytes(content)
    return folder


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal stores of one finished stage run."""
    folder = tmp_path / "undisturbed" / RUN
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "model.safetensors").write_bytes(b"weights")
    (folder / "ledger.jsonl").write_text(json.dumps(ROW) + "\n")
    state = {"status": "done", "attempts": [{"log": str(tmp_path / "log")}]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "spec.json").write_text('{"stage": "pretrain", "environment": {"commit": "1"}}')
    (folder / "result.json").write_text(json.dumps({"seconds": 1.0, "metrics": {"loss": 5.5}, "files": {"a": "b"}}))
    write_wandb(tmp_path / "undisturbed", folder.name, 1)
    return tmp_path / "undisturbed", shutil.copytree(tmp_path / "undisturbed", tmp_path / "interrupted")


def test_times_are_no_difference(stores: tuple[Path, Path]) -> None:
    reference, store = stores
    (store / RUN / "ledger.jsonl").write_text(json.dumps(ROW | {"time": 2.0, "tokens_per_second": 1.0}) + "\n")
    (store / RUN / "result.json").write_text(
        json.dumps({"seconds": 9.0, "metrics": {"loss": 5.5}, "files": {"a": "c"}})
    )
    (store / RUN / "spec.json").write_text('{"stage": "pretrain", "environment": {"commit": "2"}}')
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
    "a W&B run": (lambda run: write_wandb(run.parents[1], "abc"), "W&B run abc is one too many"),
    "no W&B run": (lambda run: shutil.rmtree(run.parents[1] / "wandb"), f"W&B run {RUN[-16:]} has 0 files"),
    "two attempts in W&B": (
        lambda run: write_wandb(run.parents[1], run.name, 1, started="20260102_000000"),
        f"W&B run {RUN[-16:]} has 2 files",
    ),
    "a doubled step in W&B": (lambda run: write_wandb(run.parents[1], run.name, 1, 1), "has 1 steps twice"),
    "a missing step in W&B": (lambda run: write_wandb(run.parents[1], run.name), "has 0 of the 1 steps of its ledger"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_difference_is_found(stores: tuple[Path, Path], change: str) -> None:
    reference, store = stores
    make, sentence = CHANGES[change]
    make(store / RUN)
    assert sentence in " ".join(differences(reference, store))


@pytest.mark.parametrize("name", ["work-000002", "leases", "resume", "checkpoints/.step-000001.abcd"])
def test_what_is_left_behind_is_found(stores: tuple[Path, Path], name: str) -> None:
    (stores[1] / RUN / name).mkdir()
    assert leftovers(stores[1]) == [f"left behind: {RUN}/{name}"]


def test_steps_are_missing_in_wandb_only_if_its_loss_was_noted(stores: tuple[Path, Path], tmp_path: Path) -> None:
    reference, store = stores
    write_wandb(store, RUN[-16:])
    (tmp_path / "log").write_text("W&B is lost (BrokenPipeError)\n")
    assert differences(reference, store) == []
    write_wandb(store, RUN[-16:], 1, 1)
    (difference,) = differences(reference, store)
    assert "twice" in difference


@pytest.mark.slow
def test_steps_are_read_from_the_files_of_the_real_client(tmp_path: Path) -> None:
    train(tmp_path, TrackingConfig(mode="offline"), range(600))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30
    while not any(record.WhichOneof("record_type") == "exit" for record in wandb_records(file)):
        assert time.monotonic() < deadline, "the client has not written the end"
        time.sleep(0.1)
    assert file.stat().st_size > 3 * 2**15, "records cross the ends of blocks"
    assert wandb_steps(file) == list(range(600))
    file.write_bytes(file.read_bytes()[: 2**15 + 100])  # a killed client
    steps = wandb_steps(file)
    assert 0 < len(steps) < 600
    assert steps == list(range(len(steps)))


def test_processes_are_found_and_receive_signals() -> None:
    """Descendants, and others by the mark that Slurm passes on to jobs, with their children."""
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
    live = processes("this round")
    family = [process for process in live.values() if command.pid in (process.pid, process.parent)]
    assert len(family) == 2
    target = choose("group", live, commands=[command.pid], near=max(p.pid for p in family), rng=random.Random(1))
    assert target is not None
    assert target.pid == command.pid
    assert target.send(signal.SIGKILL, group=True)
    assert command.wait(30) == -signal.SIGKILL
    command.communicate()
    deadline = time.monotonic() + 10
    while {p.pid for p in family} & set(processes("this round")):
        assert time.monotonic() < deadline, "the child is still running"
        time.sleep(0.02)


OPERATIONS = {
    ("os.rename", "s/.a", "s/pretrain/1/state.json"): "start",
    ("os.link", "s/pretrain/1/leases/.x", "s/pretrain/1/leases/000001.json"): "start",
    ("os.mkdir", "s/pretrain/1/work-000001/checkpoints"): "saving",
    ("os.rename", "s/pretrain/1/work-000001/resume/.a", "s/pretrain/1/work-000001/resume/step-000001"): "saving",
    ("os.rename", "s/pretrain/1/work-000001/ledger.jsonl", "s/pretrain/1/ledger.jsonl"): "publishing",
    ("shutil.rmtree", "s/pretrain/1/leases"): "publishing",
    ("os.rename", "/r/store/cache/.a", "/r/store/cache/tokens"): "caching",
    ("os.mkdir", "/tmp/elsewhere"): None,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_file_operations_have_a_phase(operation: tuple[str, ...]) -> None:
    assert phase_of(operation[0], operation[1:]) == OPERATIONS[operation]


def test_a_process_stops_before_an_operation_of_a_phase(tmp_path: Path) -> None:
    stops = Breakpoint()
    work = tmp_path / "work-000001"
    work.mkdir()
    child = os.fork()
    if not child:
        try:
            stops.install()  # in the child only, since a hook stays
            while True:
                for number in range(3):
                    (work / str(number)).mkdir(exist_ok=True)
                    time.sleep(0.01)
        finally:
            os._exit(1)
    try:
        assert stops.wait("publishing", skip=0, seconds=0.1) is None
        assert stops.wait("saving", skip=2, seconds=30) == child
        before = time.monotonic()
        stops.release()
        assert stops.wait("saving", skip=0, seconds=30) == child
        assert time.monotonic() - before < 30
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
