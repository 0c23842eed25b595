"""A corpus that changes after its shards were made: edited, renamed, added to, deleted, copied, or another setting."""

import json
import os
from pathlib import Path

import pytest

from pipelines.configuration.data import DataConfig, SourceConfig
from pipelines.data.preparation import prepare_shards
from pipelines.data.prepared_sources import outdated
from pipelines.errors import UserError
from pipelines.files import sha256


def write(path: Path, words: str) -> None:
    path.write_text("".join(json.dumps({"text": f"{words} {i}", "body": words}) + "\n" for i in range(50)))


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    (tmp_path / "corpus").mkdir()
    write(tmp_path / "corpus" / "a.jsonl", "early birds")
    write(tmp_path / "corpus" / "b.jsonl", "other birds")
    data = DataConfig("t", [], ["chain3"], 100, 0.5, 0.5, 300, 8, shards=str(tmp_path / "shards"))
    data.sources = {"web": SourceConfig("jsonl", str(tmp_path / "corpus"))}
    prepared(data)
    assert outdated(data) is None
    return data


def prepared(data: DataConfig, *, again: bool = False) -> str:
    return sha256(prepare_shards(data, processes=1, validation=0.1, evaluation_files=[], again=again))


def test_what_changes_the_documents_is_named(data: DataConfig, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    before = {name: (folder / name).read_bytes() for name in ("a.jsonl", "b.jsonl")}
    write(folder / "a.jsonl", "later birds")  # of the same size
    assert "a.jsonl has changed since the last shaping-data prepare, so" in str(outdated(data))
    assert "shaping-data prepare data=t --again" in str(outdated(data))
    (folder / "a.jsonl").write_bytes(before["a.jsonl"])
    write(folder / "c.jsonl", "more birds")
    assert "c.jsonl is new since" in str(outdated(data))
    (folder / "c.jsonl").unlink()
    (folder / "b.jsonl").unlink()
    assert "b.jsonl is gone since" in str(outdated(data))
    (folder / "b.jsonl").write_bytes(before["b.jsonl"])
    data.sources["web"].column = "body"
    assert "data.sources.web.column=body: it was text when they were made" in str(outdated(data))
    data.sources["web"].column = "text"
    data.sources["web"].path = str(folder / "a.jsonl")
    assert "data.sources.web.path=" in str(outdated(data))


def test_what_changes_no_document_is_not(data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "corpus"
    os.utime(folder / "a.jsonl", (1, 1))  # as a copy has
    assert outdated(data) is None
    (folder / "b.jsonl").rename(folder / "c.jsonl")
    assert outdated(data) is None
    (folder / "LICENCE").write_text("free")
    assert outdated(data) is None
    monkeypatch.chdir(tmp_path)
    data.sources["web"].path = "corpus"
    assert outdated(data) is None
    # Shards are used where their corpus is not.
    folder.rename(tmp_path / "elsewhere")
    assert outdated(data) is None


def test_shards_are_made_again(data: DataConfig, tmp_path: Path) -> None:
    first = sha256(tmp_path / "shards" / "index.json")
    (tmp_path / "shards" / "notes.txt").write_text("mine")
    write(tmp_path / "corpus" / "c.jsonl", "more birds")
    with pytest.raises(UserError, match="make them again with --again"):
        prepared(data)
    assert prepared(data, again=True) != first
    assert outdated(data) is None
    assert (tmp_path / "shards" / "notes.txt").read_text() == "mine"
    (tmp_path / "corpus" / "c.jsonl").unlink()
    assert prepared(data, again=True) == first
