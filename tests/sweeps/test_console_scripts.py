"""The console scripts: what they import in any working directory, and what they print if it is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps import console_scripts
from sweeps.store.stage_runs import Store

FAKE_STAGES = Path(__file__).parent / "fake"
SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a user's own folders of the names of our packages, which must never be imported."""
    for name in ("analysis", "conf", "pipelines", "sweeps"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('the {name} of the user')\n")
    (tmp_path / "conf" / "config.yaml").write_text("seed: not this file\n")
    return tmp_path


def script(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(FAKE_STAGES)}
    return subprocess.run(
        [SCRIPTS / name, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [
        (["shaping-run", "--cfg=job"], 0, "seed: 1"),
        (["shaping-sweeps", "plan", "--no-tree"], 0, "Plan: 1 cells"),
        (["shaping-data", "--help"], 0, "Token shards"),
        (["shaping-torchrun"], 2, "start it with torchrun"),
        (["reproduce-paper-tables", "store=missing"], 2, "store=missing"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_folders_of_the_user_shadow_no_package(command: list[str], code: int, output: str, folder: Path) -> None:
    finished = script(*command, folder=folder)
    assert output in finished.stdout + finished.stderr
    assert finished.returncode == code


@pytest.mark.slow
def test_workers_are_not_shadowed_either(folder: Path) -> None:
    finished = script("shaping-run", "tracking=off", "until=pretrain", "pretrain.milestones=1", folder=folder)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert {run.status for run in Store.open(folder / "store").runs()} == {"done"}


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sweeps.commands.data", None)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/shaping-data"])
    with pytest.raises(ModuleNotFoundError):  # one of our own modules: a broken installation
        console_scripts.main()
    for name in ("sweeps.commands.data", "sweeps.commands.preparation_bar"):  # they are imported again
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(SystemExit, match="2"):
        console_scripts.main()
    assert capsys.readouterr().err == (
        "shaping-data: rich.progress is not installed; pip install 'shaping[platform]'\n"
    )


def test_ctrl_c_during_imports_prints_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take one or two seconds, in which a command is easily stopped."""

    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console_scripts, "import_module", interrupted)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/shaping-run"])
    with pytest.raises(SystemExit) as ended:
        console_scripts.main()
    assert ended.value.code == 130
