"""`shaping-sweeps sync` with the real W&B client and a local server that implements its protocol."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.store.stage_runs import Store
from tests.analysis.conftest import planned, write_run
from tests.wandb_server import wandb_server

WRITE = """
import sys, wandb
run = wandb.init(mode="offline", dir=sys.argv[1], project="shaping", settings=wandb.Settings(silent=True))
for step in range(5):
    run.log({"step": step, "loss": 1 / (step + 1)})
run.finish()
"""

TRAIN = """
import sys, time
from pathlib import Path
from pipelines.configuration.tracking import TrackingConfig
from pipelines.ledger import Ledger
from pipelines.tracking.start import start_trackers
labels = {"model": "nano", "objective": "ce", "seed": 1, "scale": "nano", "sweep": "nano"}
spec = {"stage": "pretrain", "signature": "abc", "parent": None, "checkpoint": None, "labels": labels, "config": {}}
root = Path(sys.argv[1])
with Ledger(root, start_trackers(spec, root, TrackingConfig(mode="online"))) as ledger:
    for step in range(40):
        ledger.log({"step": step, "tokens": step, "loss": 1.0})
        if step == 20:
            print("half way", flush=True)
            sys.stdin.readline()
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(address: str, home: Path) -> dict[str, str]:
    client = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "a" * 40, "WANDB_ERROR_REPORTING": "false"}
    return {**os.environ, **client, "HOME": str(home)}


def sync(store: Path, address: str, *flags: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sweeps.commands.shaping_sweeps", "sync", "--store", str(store), *flags]
    return subprocess.run(
        line, env=environment(address, store), capture_output=True, text=True, timeout=200, check=False
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of one cell up to RL, with an offline W&B run."""
    store = Store.create(tmp_path / "store")
    graph = planned(("objective=ce",))
    for run in graph.runs.values():
        if run.stage != "evaluate" or run.checkpoint == "step-000020":
            write_run(store, run)
    (store.root / "wandb").mkdir()
    subprocess.run(
        [sys.executable, "-c", WRITE, str(store.root)], check=True, env=environment("http://127.0.0.1:9", tmp_path)
    )
    return store


@pytest.mark.slow
def test_runs_and_artifacts_are_sent_once_with_their_lineage(store: Store) -> None:
    with wandb_server() as (address, arrived):
        first = sync(store.root, address, "--artifacts")
        assert first.returncode == 0, first.stderr
        assert "1 runs sent, 0 were sent before, 0 wait" in first.stdout
        assert "4 artifacts sent" in first.stdout
        (rows,) = arrived.history.values()
        assert [row["step"] for row in rows] == list(range(5))
        kinds = [a["variables"]["artifactTypeName"] for a in arrived.artifacts.values()]
        assert sorted(kinds) == ["dataset", "result", "stage-run", "stage-run", "stage-run"]
        chain = [arrived.artifacts[used["artifactID"]]["variables"]["artifactCollectionName"] for used in arrived.used]
        assert [name.split("-")[0] for name in chain] == ["data", "pretrain", "midtrain", "grpo"]
        assert not any("checkpoints" in path for path in arrived.uploads)
        again = sync(store.root, address, "--artifacts")
        assert "0 runs sent, 1 were sent before, 0 wait" in again.stdout
        assert "0 artifacts sent" in again.stdout
        assert len(arrived.used) == 4
        assert arrived.unknown == []


@pytest.mark.slow
def test_a_missing_server_is_reported_and_nothing_is_lost(store: Store) -> None:
    before = {p: p.read_bytes() for p in (store.root / "evaluate").rglob("*.json")}
    with wandb_server() as (address, _):
        pass  # afterwards no server listens at the address
    finished = sync(store.root, address)
    assert finished.returncode == 1
    assert f"W&B at {address}: it does not answer" in finished.stderr
    assert "run the same command again when it does" in finished.stderr
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.slow
def test_a_server_that_dies_does_not_stop_a_stage(tmp_path: Path) -> None:
    with wandb_server() as (address, _):
        line = [sys.executable, "-c", TRAIN, str(tmp_path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        stage = subprocess.Popen(line, env=environment(address, tmp_path), text=True, **pipes)  # type: ignore[call-overload]
        assert stage.stdout.readline() == "half way\n"
    stage.communicate("\n", timeout=100)
    assert stage.returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(40))


@pytest.mark.ci_only
def test_a_stage_starts_without_a_server(tmp_path: Path) -> None:
    line = [sys.executable, "-c", TRAIN, str(tmp_path)]
    variables = environment("http://127.0.0.1:9", tmp_path)
    stage = subprocess.run(line, env=variables, input="\n", capture_output=True, text=True, timeout=150, check=False)
    assert stage.returncode == 0
    assert "this run is kept offline" in stage.stderr
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 40
    assert list((tmp_path / "wandb").glob("offline-run-*"))
