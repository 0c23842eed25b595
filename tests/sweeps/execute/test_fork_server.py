"""Local workers: what they do not import, how they end, and what they rely on in Python's fork server."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import spawn
from pathlib import Path
from types import ModuleType

import pytest

from sweeps.execute.fork_server import start_worker

COMMAND = """
import functools, sys, time
from pathlib import Path
print("the command's file runs", flush=True)
if __name__ == "__main__":
    from sweeps.execute import fork_server
    from tests.sweeps.execute.test_fork_server import report, sleep
    fork_server.PRELOAD.clear()
    work, folder = {"report": report, "sleep": sleep}[sys.argv[1]], Path(sys.argv[2])
    worker = fork_server.start_worker(work, folder, environment={"COLOUR": "blue"}, tracked=False)
    print(worker.process.pid, flush=True)
    worker.process.join()
    print(worker.log.read_text(), worker.log.with_suffix(".out").read_text(), worker.process.exitcode)
"""


def report(log: Path) -> None:
    print("log", log.name, "colour", os.environ["COLOUR"])
    print("first folder of modules:", sys.path[0], file=sys.stderr)
    sys.exit(7)


def sleep(log: Path) -> None:
    time.sleep(60)


def command(folder: Path, work: str) -> "subprocess.Popen[str]":
    """Starts a command with a file that prints a line whenever it is run."""
    (folder / "command.py").write_text(COMMAND)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen(
        [sys.executable, folder / "command.py", work, folder / "jobs"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_worker_has_its_environment_and_logs_and_does_not_run_the_commands_file(tmp_path: Path) -> None:
    output = command(tmp_path, "report").communicate(timeout=60)[0]
    assert output.count("the command's file runs") == 1
    pid = output.splitlines()[1]
    assert f"log {pid}_0_log.err colour blue" in output
    assert output.splitlines()[-1].endswith(" 7")


@pytest.mark.parametrize("killed", ["command", "fork server"])
def test_no_worker_outlives_its_command_or_the_fork_server(tmp_path: Path, killed: str) -> None:
    process = command(tmp_path, "sleep")
    assert process.stdout is not None
    worker = int([process.stdout.readline() for _ in range(2)][1])
    parent = int(Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[1])
    assert parent != process.pid
    os.kill(process.pid if killed == "command" else parent, signal.SIGKILL)
    deadline = time.time() + 10
    while Path(f"/proc/{worker}").exists():
        assert time.time() < deadline, "the worker is still running"
        time.sleep(0.02)
    process.kill()
    process.communicate()


def test_python_finds_the_main_module_where_we_replace_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`start_worker` relies on this: without a file or spec in `sys.modules["__main__"]`, a worker runs no main module.

    If this fails, Python has changed, and `_server_settings` in `sweeps/execute/fork_server.py` needs another way.
    """
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert not {"init_main_from_name", "init_main_from_path"} & set(spawn.get_preparation_data("worker"))
    main.__file__ = "/command.py"
    assert spawn.get_preparation_data("worker")["init_main_from_path"] == "/command.py"


def test_a_worker_can_watch_its_command(tmp_path: Path) -> None:
    """The sentinel of the parent process belongs to the command, not to the fork server."""
    worker = start_worker(write_parent, tmp_path, environment={}, tracked=False)
    worker.process.join(60)
    assert worker.process.exitcode == 0, worker.log.read_text()
    assert worker.log.with_suffix(".out").read_text() == f"{os.getpid()}\n"


def write_parent(log: Path) -> None:
    command = multiprocessing.parent_process()
    assert command is not None
    print(command.pid)


def test_ctrl_c_while_the_server_imports_ends_both_without_a_traceback(tmp_path: Path) -> None:
    """The terminal sends it to the whole group: to the command and to the server, which is importing."""
    (tmp_path / "slow_import.py").write_text("print('importing', flush=True); import time; time.sleep(60)")
    (tmp_path / "command.py").write_text(
        "import sys; from pathlib import Path\n"
        "from sweeps.execute import fork_server\n"
        "fork_server.PRELOAD[:] = ['slow_import']\n"
        "try:\n    fork_server.start_worker(print, Path('jobs'), environment={}, tracked=False)\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    interrupted = subprocess.Popen(
        [sys.executable, "command.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[3]}:{tmp_path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert interrupted.stdout is not None
    assert interrupted.stdout.readline() == "importing\n"
    os.killpg(interrupted.pid, signal.SIGINT)
    # The pipe ends when the server has ended too.
    assert interrupted.communicate(timeout=30)[0] == ""
    assert interrupted.returncode == 130
