"""One W&B run per stage run, with the real client and a loopback server, through kills, signals and offline work."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from benchmarks.fault_differences import wandb_records
from pipelines.configuration.tracking import TrackingConfig
from pipelines.files import write_sealed
from pipelines.ledger import Ledger
from pipelines.tracking.start import start_trackers
from pipelines.tracking.wandb_run import _arguments, _remove_earlier
from sweeps.monitor.wandb_sync import _tracked, add_evaluations, send_runs
from sweeps.store.stage_runs import Store
from tests.pipelines.tracking.specs import EVALUATE, PRETRAIN
from tests.published import publish
from tests.wandb_server import Received, wandb_server

pytestmark = pytest.mark.slow

ATTEMPT = """
import json, logging, sys
from pathlib import Path
logging.basicConfig()
from pipelines.configuration.tracking import TrackingConfig
from tests.pipelines.tracking.specs import evaluate, train
root, tracking, first, last = Path(sys.argv[1]), TrackingConfig(**json.loads(sys.argv[2])), *map(int, sys.argv[3:5])
evaluate(root, tracking) if first < 0 else train(root, tracking, range(first, last))
"""

WAITING = ATTEMPT.replace(
    "evaluate(root",
    """
from pipelines.ledger import Ledger
log = Ledger.log
def logged(self, row):
    log(self, row)
    if row["step"] == last - 1:
        print("logged", flush=True)
        sys.stdin.readline()
Ledger.log = logged
evaluate(root""",
    1,
)


def arguments(code: str, root: Path, mode: str, *, steps: tuple[int, int], **options: Any) -> list[str]:
    tracking = json.dumps({"mode": mode, **options})
    return [sys.executable, "-c", code, str(root), tracking, *map(str, steps)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    """A server to which all clients send, and no variable of W&B from around."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")  # seconds; 15 otherwise
    monkeypatch.setenv("HOME", str(tmp_path))
    with wandb_server() as (address, received):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        yield received


def finished(root: Path, mode: str, steps: tuple[int, int] = (-1, 0), **options: Any) -> str:
    """An attempt that ends; returns what it printed to standard error."""
    attempt = subprocess.run(
        arguments(ATTEMPT, root, mode, steps=steps, **options), capture_output=True, text=True, timeout=120, check=False
    )
    assert attempt.returncode == 0, attempt.stderr
    return attempt.stderr


def interrupted(root: Path, mode: str, steps: tuple[int, int], *, act: Callable[[subprocess.Popen[str]], None]) -> str:
    """An attempt to which something happens after its last row."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    line = arguments(WAITING, root, mode, steps=steps)
    attempt: subprocess.Popen[str] = subprocess.Popen(line, text=True, **pipes)  # type: ignore[call-overload]
    assert attempt.stdout
    assert attempt.stdout.readline() == "logged\n"
    act(attempt)
    return attempt.communicate("\n", timeout=120)[1]


def services(attempt: subprocess.Popen[str], root: Path) -> list[psutil.Process]:
    """W&B's service, once the run has started."""
    for _ in range(300):
        if list(root.glob("wandb/*run-*/tracking.json")):
            return [p for p in psutil.Process(attempt.pid).children() if p.name() == "wandb-core"]
        time.sleep(0.1)
    raise AssertionError("the W&B run did not start")


def arrived(received: Received, rows: int) -> None:
    for _ in range(300):
        if len(received.history.get("abc123", [])) >= rows:
            return
        time.sleep(0.1)
    raise AssertionError(f"{rows} rows did not arrive: {received.history}")


def steps_of(received: Received, key: str = "pretrain/step") -> list[int]:
    (rows,) = received.history.values()
    return [row[key] for row in rows if key in row]


def test_a_killed_stage_run_continues_its_run(tmp_path: Path, server: Received) -> None:
    def kill(attempt: subprocess.Popen[str]) -> None:
        arrived(server, 5)  # the client holds the newest row back
        attempt.kill()

    interrupted(tmp_path, "online", (0, 6), act=kill)
    finished(tmp_path, "online", (4, 9))
    finished(tmp_path, "online")
    finished(tmp_path, "online")  # an evaluation that is done again
    assert list(server.runs) == ["abc123"]
    assert steps_of(server) == list(range(9))
    assert steps_of(server, "evaluate/step") == [8]
    (measured,) = [row for row in server.history["abc123"] if "evaluate/step" in row]
    assert (measured["evaluate/Chain-3/avg@16"], measured["evaluate/tokens"]) == (0.25, 800)
    summary = json.loads(server.summaries["abc123"])
    assert (summary["pretrain/loss"], summary["evaluate/Text/perplexity"]) == (0.1, 2.5)
    assert server.runs["abc123"]["tags"] == ["precision", "nano"]
    axes = json.loads(server.runs["abc123"]["config"])["_wandb"]["value"]["m"]
    assert {"pretrain/*", "evaluate/*"} <= {axis.get("2") for axis in axes}
    assert server.unknown == []


def test_offline_attempts_are_one_run_when_they_are_sent(tmp_path: Path, server: Received) -> None:
    store = Store.create(tmp_path / "store")
    interrupted(store.root, "offline", (0, 6), act=lambda attempt: attempt.kill())
    finished(store.root, "offline", (4, 9))
    finished(store.root, "offline")
    evaluation = store.root / "evaluate" / EVALUATE["signature"]
    evaluation.mkdir()
    (store.root / "evaluate" / "ledger.jsonl").rename(evaluation / "ledger.jsonl")
    write_sealed(evaluation / "spec.json", {"format": 2, "version": 1, **EVALUATE})
    publish(evaluation)
    options: dict[str, Any] = {"project": None, "entity": None, "report": print}
    for added in ([EVALUATE["signature"]], []):
        assert send_runs(store, **options).failed == []
        assert add_evaluations(store, **options) == added
    assert steps_of(server) == list(range(9))
    assert steps_of(server, "evaluate/step") == [8]
    assert json.loads(server.summaries["abc123"])["pretrain/loss"] == 0.1


def test_attempts_of_one_second_are_one_run_too(tmp_path: Path, server: Received) -> None:
    """W&B gives the second of them a folder with another ending."""
    finished(tmp_path, "offline", (0, 5))
    (first,) = tmp_path.glob("wandb/offline-run-*-abc123")
    first.rename(first.with_name(first.name + "-1"))
    finished(tmp_path, "offline", (3, 9))
    (left,) = tmp_path.glob("wandb/offline-run-*")
    left.rename(left.with_name(left.name + "-1"))
    (tmp_path / "STORE.json").write_text('{"format": 1}')
    send_runs(Store(tmp_path), project=None, entity=None, report=print)
    assert list(server.runs) == ["abc123"]
    assert steps_of(server) == list(range(9))
    assert list(_tracked(Store(tmp_path), project=None, entity=None)) == ["abc123"]


def test_what_arrived_online_is_not_doubled_by_an_offline_attempt(tmp_path: Path, server: Received) -> None:
    store = Store.create(tmp_path / "store")
    interrupted(store.root, "online", (0, 6), act=lambda attempt: (arrived(server, 5), attempt.kill())[1])
    finished(store.root, "offline", (4, 9))
    assert send_runs(store, project=None, entity=None, report=print).failed == []
    assert steps_of(server) == list(range(9))


def test_the_service_ignores_what_stops_a_stage(tmp_path: Path, server: Received) -> None:
    def signals(attempt: subprocess.Popen[str]) -> None:
        for service in services(attempt, tmp_path):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                service.send_signal(number)
        time.sleep(0.5)

    errors = interrupted(tmp_path, "online", (0, 6), act=signals)
    assert "is lost" not in errors
    assert steps_of(server) == list(range(6))


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.ci_only)])
def test_a_lost_service_costs_nothing_and_is_noted_once(tmp_path: Path, server: Received, number: int) -> None:
    processes: list[psutil.Process] = []

    def lose(attempt: subprocess.Popen[str]) -> None:
        processes.extend(services(attempt, tmp_path))
        processes[0].send_signal(number)
        time.sleep(0.5)

    errors = interrupted(tmp_path, "offline", (0, 6), act=lose)
    assert errors.count("W&B is lost") == 1
    assert len((tmp_path / "pretrain" / "ledger.jsonl").read_text().splitlines()) == 6
    assert not processes[0].is_running() or processes[0].status() == psutil.STATUS_ZOMBIE


def test_the_service_ends_with_a_killed_stage(tmp_path: Path, server: Received) -> None:
    processes: list[psutil.Process] = []
    interrupted(
        tmp_path,
        "offline",
        (0, 6),
        act=lambda attempt: (processes.extend(services(attempt, tmp_path)), attempt.kill())[1],
    )
    assert psutil.wait_procs(processes, timeout=20)[1] == []


@pytest.mark.parametrize("option", ["neither", "console", "system_metrics"])
def test_the_console_and_system_metrics_are_sent_by_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Both are off without their option; the kinds of records are those of W&B's own files."""
    monkeypatch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.1")
    (tmp_path / "pretrain").mkdir()
    tracking = TrackingConfig(mode="offline", **({option: True} if option != "neither" else {}))
    deadline = time.monotonic() + 60

    def records(kind: str) -> list[Any]:
        """Those in the file so far; the client writes it in its own time, at the latest after the run."""
        files = tmp_path.glob("wandb/*run-*/*.wandb")
        found = [record for file in files for record in wandb_records(file) if record.WhichOneof("record_type") == kind]
        assert time.monotonic() < deadline, f"no {kind}"
        return found

    with Ledger(tmp_path / "pretrain", start_trackers(PRETRAIN, tmp_path, tracking)) as ledger:
        while not list(tmp_path.glob("wandb/*run-*/tracking.json")):  # the client has started
            assert time.monotonic() < deadline
            time.sleep(0.05)
        print("printed by the stage")
        ledger.log({"step": 1, "tokens": 100})
        time.sleep(1)  # ten samples
    while not records("exit"):
        time.sleep(0.1)
    printed = "".join(record.output_raw.line for record in records("output_raw"))
    assert ("printed by the stage" in printed) == (option == "console")
    metrics = {item.key for record in records("stats") for item in record.stats.item}
    assert any("memory" in name for name in metrics) == (option == "system_metrics")


def test_variables_of_a_surrounding_run_are_not_taken(
    tmp_path: Path, server: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = {"WANDB_RUN_ID": "theirs", "WANDB_RESUME": "must", "WANDB_SWEEP_ID": "s1", "WANDB_NAME": "theirs"}
    for name, value in (around | {"WANDB_DIR": str(tmp_path / "files"), "WANDB_TAGS": "extra,nano"}).items():
        monkeypatch.setenv(name, value)
    finished(tmp_path, "online", (0, 3))
    assert list(server.runs) == [PRETRAIN["signature"]]
    run = server.runs[PRETRAIN["signature"]]
    assert run["tags"] == ["precision", "nano", "extra"]
    assert run["displayName"] == "pretrain nano/precision/seed3"
    assert "sweep" not in run
    assert list((tmp_path / "files" / "wandb").glob("run-*"))
    assert not (tmp_path / "wandb").exists()


def test_tags_and_names_are_as_long_as_wandb_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_TAGS", f"{'t' * 65},,{'t' * 70}")
    spec = PRETRAIN | {"labels": PRETRAIN["labels"] | {"sweep": "s" * 100, "objective": "o" * 150}}
    arguments = _arguments(spec, TrackingConfig())
    assert arguments["tags"] == ["o" * 64, "nano", "s" * 64, "t" * 64]
    assert (len(arguments["group"]), len(arguments["name"])) == (128, 128)


def test_what_cannot_be_removed_of_an_earlier_attempt_does_not_end_the_next(tmp_path: Path) -> None:
    now, earlier, other = (tmp_path / f"offline-run-{name}" for name in ("2-abc", "1-abc", "1-xyz"))
    now.mkdir()
    other.mkdir()
    earlier.touch()  # a folder's tree cannot be removed where there is a file
    _remove_earlier(SimpleNamespace(id="abc"), now)  # type: ignore[arg-type]
    assert all(path.exists() for path in (now, earlier, other))
    earlier.unlink()
    earlier.mkdir()
    _remove_earlier(SimpleNamespace(id="abc"), now)  # type: ignore[arg-type]
    assert not earlier.exists()
    assert now.exists()
    assert other.exists()
