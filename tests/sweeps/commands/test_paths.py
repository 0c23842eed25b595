"""A command works the same from any directory, and on a store that is reached by another path."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.execute.launch import prepared
from sweeps.store.stage_runs import Store

REPOSITORY = Path(__file__).parents[3]
QUESTIONS = "".join(json.dumps({"question": f"{n}+1", "answer": str(n + 1)}) + "\n" for n in range(100))
pytestmark = pytest.mark.slow

FEW = ["until=pretrain", "pretrain.milestones=1", "tracking=off"]


def command(module: str, *arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command with stages that take no time."""
    path = f"{REPOSITORY / 'tests/sweeps/fake'}:{REPOSITORY}"
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def launch(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return command("sweeps.commands.run", *FEW, *arguments, cwd=cwd, **environment)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The directory of a launch and another one."""
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    return tmp_path / "here", tmp_path / "elsewhere"


def test_a_store_is_the_same_by_every_path(folders: tuple[Path, Path]) -> None:
    here, elsewhere = folders
    finished = launch(cwd=here)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (elsewhere / "link").symlink_to(here / "store")
    for path in ("../here/store/", "link", "~/store"):
        again = launch(f"store={path}", cwd=elsewhere, HOME=str(here))
        assert "Nothing to do" in again.stdout, (path, again.stdout, again.stderr)
        status = command(
            "sweeps.commands.shaping_sweeps", "status", "--json", "--store", path, cwd=elsewhere, HOME=str(here)
        )
        assert [row["status"] for row in json.loads(status.stdout)] == ["done", "done"]


def test_two_paths_of_one_store_are_one_store(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders[0])
    os.symlink("store", "link")
    Store.create("store")
    graph, store = prepared(compose_cells(["store=store,./store,link"]))
    assert len(graph.cells) == 1
    assert store.root.resolve() == folders[0].resolve() / "store"


def test_a_retry_from_another_directory_finds_the_files_of_the_launch(folders: tuple[Path, Path]) -> None:
    """Even one that has another file of that name."""
    here, elsewhere = folders
    (here / "questions.jsonl").write_text(QUESTIONS)
    (elsewhere / "questions.jsonl").write_text("")
    files = ["grpo.tasks=[questions.jsonl]", "until=grpo", "grpo.milestones=1", "midtrain.milestones=1"]
    failed = launch(*files, cwd=here, FAKE_FAIL='"stage": "pretrain"')
    assert failed.returncode == 1, failed.stdout + failed.stderr
    for _ in range(2):  # the second time it is read from the record that the first retry has written
        retried = command("sweeps.commands.shaping_sweeps", "retry", "--store", "../here/store", cwd=elsewhere,
                          FAKE_FAIL='"stage": "evaluate"')  # fmt: skip
        assert "grpo.tasks" not in retried.stderr, retried.stderr
    retried = command("sweeps.commands.shaping_sweeps", "retry", "--store", "../here/store", cwd=elsewhere)
    assert retried.returncode == 0, retried.stdout + retried.stderr
    assert {run.status for run in Store.open(here / "store").runs()} == {"done"}


def test_the_home_directory_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells expand `~` only at the beginning of a word."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "questions.jsonl").write_text(QUESTIONS)
    cell = compose_cell(
        [
            "data.shards='~/shards'",
            "grpo.tasks=['~/questions.jsonl']",
            "evaluation.benchmarks.Chain-3.dataset='~/questions.jsonl'",
            "evaluation.benchmarks.Chain-3.task=marked",
        ]
    )
    assert cell.data.shards == f"{tmp_path}/shards"
    assert cell.grpo.tasks == [f"{tmp_path}/questions.jsonl"]
    assert cell.evaluation.benchmarks["Chain-3"].dataset == f"{tmp_path}/questions.jsonl"
