"""SIGTERM, SIGHUP, a closed terminal and a closed pipe end a local `shaping-run` as Ctrl-C does: with states saved."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.store.stage_runs import Store, StoredRun
from tests.sweeps.commands.test_run import processes_in, until
from tests.sweeps.commands.untrained import FAKE, FEW, run

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "sweeps.commands.run", *FEW, "until=pretrain", "seed=1,2", "hydra.launcher.workers=2"]
LONG = {**FAKE, "FAKE_SECONDS": "60"}


@pytest.fixture(autouse=True)
def _hangups_are_heard() -> Iterator[None]:
    """Children would inherit that `nohup` has these tests ignore them."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def start(folder: Path, *before: str) -> subprocess.Popen[str]:
    """The command in a new process group, as a shell starts it, with both stage runs at their first step."""
    process = subprocess.Popen(
        [*before, *COMMAND],
        cwd=folder,
        env=LONG,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    until(lambda: len(list(folder.glob("store/pretrain/*/work-*/ledger.jsonl"))) == 2, 60)
    return process


def pretraining(folder: Path) -> list[StoredRun]:
    return [run for run in Store.open(folder / "store").runs() if run.stage == "pretrain"]


def check_saved_and_resumed(folder: Path) -> None:
    """No process is left, both stage runs were stopped with a state, and the same command resumes from it."""
    until(lambda: not processes_in(folder), 20)
    for stored in pretraining(folder):
        assert stored.status == "interrupted"
        assert (stored.work / "resume" / "state.json").exists()
    again = run(*COMMAND[3:], cwd=folder, FAKE_SECONDS="0")
    assert again.returncode == 0, again.stdout + again.stderr
    for stored in pretraining(folder):
        assert stored.result is not None
        assert stored.result["metrics"]["resumed"] > 0


@pytest.mark.parametrize(
    ("number", "receivers"),
    [
        (signal.SIGTERM, "command"),
        (signal.SIGHUP, "group"),
        (signal.SIGTERM, "everything"),
        pytest.param(signal.SIGHUP, "command", marks=pytest.mark.ci_only),
        pytest.param(signal.SIGTERM, "group", marks=pytest.mark.ci_only),
        pytest.param(signal.SIGHUP, "everything", marks=pytest.mark.ci_only),
    ],
)
def test_a_stop_signal_saves_the_states(tmp_path: Path, number: signal.Signals, receivers: str) -> None:
    """To the command (docker stop), to its group (timeout, a shell that ends), to all its processes (systemd)."""
    process = start(tmp_path)
    if receivers == "everything":
        for pid in processes_in(tmp_path):
            os.kill(pid, number)
    elif receivers == "group":
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)  # a shell that ends sends a second one
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in output
    assert "2 of 2 stage runs have saved their progress" in output
    check_saved_and_resumed(tmp_path)


def test_timeout_stops_cleanly(tmp_path: Path) -> None:
    process = start(tmp_path, "timeout", "--preserve-status", "600")
    process.send_signal(signal.SIGALRM)  # what its own timer sends it when the time is over
    process.communicate(timeout=60)
    assert process.returncode == 143
    check_saved_and_resumed(tmp_path)


def test_a_closed_terminal_saves_the_states(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(tmp_path)
        os.execve(sys.executable, COMMAND, LONG)
    os.set_blocking(terminal, False)
    until(lambda: len(list(tmp_path.glob("store/pretrain/*/work-*/ledger.jsonl"))) == 2, 60)
    os.close(terminal)
    os.waitpid(pid, 0)
    check_saved_and_resumed(tmp_path)


def test_a_closed_pipe_saves_the_states(tmp_path: Path) -> None:
    """`shaping-run | head`: the command ends at its next line, which the end of a stage run makes it print."""
    process = start(tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    victim = next(r for r in pretraining(tmp_path) if r.spec["config"]["seed"] == 2)
    os.kill(victim.reread().state["attempts"][-1]["pid"], signal.SIGKILL)
    process.wait(60)
    (survivor,) = [r for r in pretraining(tmp_path) if r.signature != victim.signature]
    assert survivor.status == "interrupted"
    assert (survivor.work / "resume" / "state.json").exists()


def test_nohup_protects_from_a_closed_terminal(tmp_path: Path) -> None:
    process = start(tmp_path, "nohup")
    process.send_signal(signal.SIGHUP)
    time.sleep(2)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    check_saved_and_resumed(tmp_path)
