"""A corpus of one's own: one file of data in a folder, prepared and trained on, without a key about anything else."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.compose.cells import compose_cell
from sweeps.compose.config_files import CONFIG_DIR_VARIABLE
from sweeps.store.stage_runs import Store
from tests.conftest import SMALL

Command = Callable[..., subprocess.CompletedProcess[str]]

DATA = """
defaults: [nano]
name: mine
sources: {mine: {kind: jsonl, path: corpus.jsonl}}
shards: shards
mixtures:
  pretrain: {mine: 0.8, text: 0.2}
"""
"""Docstrings, tasks and mid-training's mixture are those of `nano`."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own" / "data").mkdir(parents=True)
    (tmp_path / "own" / "data" / "mine.yaml").write_text(DATA)
    texts = [f"Paragraph {i} of a corpus says that {i} and {i + 1} make {2 * i + 1}. " * 5 for i in range(400)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, str(tmp_path / "own"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_mixtures_of_the_data_are_those_of_the_stages(folder: Path) -> None:
    cell = compose_cell(["data=mine"])
    assert cell.pretrain.mixture["mine"] == 0.8
    assert cell.pretrain.mixture["text"] == 0.2
    assert cell.midtrain.mixture == compose_cell([]).midtrain.mixture
    only = compose_cell(["data=mine", "data.mixtures.pretrain={mine:1}"])
    assert only.pretrain.mixture == {"mine": 1.0}
    # A mixture of a stage changes only that stage.
    typed = compose_cell(["data=mine", "pretrain.mixture.mine=0.5"])
    assert (typed.pretrain.mixture["mine"], typed.data.mixtures.pretrain["mine"]) == (0.5, 0.8)
    # Keys of stages that do not run are not checked.
    (folder / "own" / "data" / "bare.yaml").write_text(
        "name: bare\nsources: {mine: {kind: text, path: a}}\nmixtures: {pretrain: {mine: 1}, midtrain: {mine: 1}}\n"
    )
    keep = "evaluation.benchmarks={Mine:{kind:text,group:text,task:mine,items:8}}"
    assert compose_cell(["data=bare", "until=midtrain", keep]).midtrain.mixture == {"mine": 1.0}


@pytest.mark.slow
def test_one_file_of_data_is_enough(folder: Path, shaping_run: Command) -> None:
    prepared = shaping_run(
        "prepare", "data=mine", "data.vocab_size=300", "--processes=1", cwd=folder, module="sweeps.commands.data"
    )
    assert prepared.returncode == 0, prepared.stderr
    small = [key for key in SMALL if not key.startswith("data.text")]
    finished = shaping_run("data=mine", *small, "until=pretrain", "tracking=off", cwd=folder)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (run,) = [run for run in Store.open(folder / "store").runs() if run.stage == "pretrain"]
    assert run.status == "done"
    assert run.spec["config"]["pretrain"]["mixture"]["mine"] == 0.8
