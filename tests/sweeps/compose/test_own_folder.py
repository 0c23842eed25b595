"""The folder that `shaping-run --init` writes: it composes as it is, and its sample has no question twice."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.claims import read_claims
from pipelines.errors import UserError
from pipelines.tasks.question_files import read_questions
from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.compose.config_files import CONFIG_DIR_VARIABLE
from sweeps.compose.own_folder import TEMPLATE, create_own_folder

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    create_own_folder(tmp_path / "mine")
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


def test_the_template_composes_with_files_of_its_own_only(own: Path) -> None:
    cells = compose_cells(["+sweep=custom"])
    assert [(cell.objective.name, cell.scale, cell.model.name) for cell in cells] == [
        ("ce", "custom", "custom"),
        ("flat", "custom", "custom"),
    ]
    assert cells[0].grpo.tasks == [str(own / "questions.jsonl")]
    assert cells[0].data.sources["corpus"].path == str(own / "corpus.jsonl")
    assert [claim.name for claim in read_claims()] == ["flat-has-more-entropy", "flat-after-rl"]
    # Every file of options begins with what it is for.
    for path in TEMPLATE.rglob("*.yaml"):
        assert path.read_text().startswith("# "), path


def test_the_sample_has_no_question_twice_and_its_answers_are_right(own: Path) -> None:
    asked = read_questions(own / "questions.jsonl", "marked") + read_questions(own / "test.jsonl", "marked")
    for line in asked:
        assert eval(line.question) == int(line.answer)
    rows = [json.loads(line)["text"] for line in (own / "worked.jsonl").read_text().splitlines()]
    worked = {text.splitlines()[0].removeprefix("Q: ") for text in rows}
    questions = [*worked, *(line.question for line in asked)]
    assert len(set(questions)) == len(questions)
    assert all(eval(text.splitlines()[0][3:]) == int(text.rpartition("#### ")[2]) for text in rows)


def test_a_file_of_the_folder_needs_the_folder(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_DIR_VARIABLE)
    with pytest.raises(UserError, match="there is no folder of your own; name the folder that the file is in"):
        compose_cell(["data.shards='${here:shards}'"])


def test_init_names_a_new_folder(tmp_path: Path, shaping_run: Command) -> None:
    written = shaping_run("--init", "my/studies/mine", cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    assert "export SHAPING_CONFIG_DIR=my/studies/mine" in written.stdout
    for words in (["--init", "my/studies/mine"], ["--init"], ["--init=a", "b"], ["--init=my/studies/mine/README.md"]):
        refused = shaping_run(*words, cwd=tmp_path)
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1
        assert "--init" in refused.stderr
