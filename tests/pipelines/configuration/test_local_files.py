"""Content names: a file or folder is signed by what is in it."""

import hashlib
from pathlib import Path

import pytest

from pipelines.configuration.local_files import content_name, path_of
from pipelines.errors import StageFailure


def test_a_file_is_named_by_its_sha256_and_suffix(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_bytes(b"one")
    expected = hashlib.sha256(b"one").hexdigest() + ".jsonl"
    assert content_name(file) == content_name(str(file)) == expected
    other = tmp_path / "copy.jsonl"
    other.write_bytes(b"one")
    assert content_name(other) == expected


def test_a_folder_is_named_by_its_files_and_their_names_wherever_it_is(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, str]) -> str:
        for path, text in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        return content_name(tmp_path / name)

    first = folder("a", {"x.yaml": "1", "sub/y.py": "2"})
    assert first.endswith(".folder")
    assert folder("b", {"sub/y.py": "2", "x.yaml": "1", "__pycache__/y.pyc": "compiled"}) == first
    assert folder("c", {"x.yaml": "1", "sub/y.py": "3"}) != first
    assert folder("d", {"x.yaml": "1", "y.py": "2"}) != first


def test_a_content_name_leads_to_its_file_unless_that_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("1")
    name = content_name(file)
    assert path_of(name, {name: str(file)}, "data.x") == str(file)
    for paths in ({name: str(tmp_path / "gone.csv")}, {}):
        with pytest.raises(StageFailure, match=r"^data\.x=.*: it has gone or its content has changed"):
            path_of(name, paths, "data.x")
    file.write_text("2")
    with pytest.raises(StageFailure, match="its content has changed"):
        path_of(name, {name: str(file)}, "data.x")
