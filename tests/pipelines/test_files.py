"""Atomic writes under kills, full disks and unwritable folders; checked reads of JSON; hashes against hashlib."""

import errno
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from pipelines.errors import StageFailure, UserError
from pipelines.files import (
    read_json,
    read_sealed,
    remove_leftovers,
    replacing,
    sealed,
    sha256,
    sha256_of,
    why_full,
    write_json,
    write_sealed,
)


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"old": 1})
    code = (
        "import sys, time; from pathlib import Path; from pipelines.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary, temporary.open('w') as file:\n"
        "    file.write('{\"new\":'); file.flush(); print('half', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half\n"
    # Before and after the kill, half of the new content is only in the temporary file.
    assert read_json(path) == {"old": 1}
    writer.kill()
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()
    assert read_json(path) == {"old": 1}
    # The next writer is not disturbed by what the killed one left.
    write_json(path, {"new": 2})
    assert read_json(path) == {"new": 2}
    assert len(os.listdir(tmp_path)) == 2
    remove_leftovers(tmp_path, "*.json", unchanged_seconds=3600)
    assert len(os.listdir(tmp_path)) == 2  # a writer may still be writing
    remove_leftovers(tmp_path, "*.json")
    assert os.listdir(tmp_path) == ["result.json"]


def test_an_exception_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with replacing(path) as temporary:
            (temporary / "inner").mkdir(parents=True)
            (temporary / "inner" / content).write_text(content)
    assert [file.name for file in (path / "inner").iterdir()] == ["new"]

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / "half").write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write_half()
    assert [file.name for file in (path / "inner").iterdir()] == ["new"]
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize(("durable", "order"), [(True, ["folder", "file", "rename", "parent"]), (False, ["rename"])])
def test_durable_writes_flush_content_before_the_rename_and_the_name_after(
    tmp_path: Path, durable: bool, order: list[str]
) -> None:
    events: list[str] = []
    rename = Path.rename

    def record_flush(path: Path) -> None:
        events.append("parent" if path == tmp_path else "folder" if path.is_dir() else "file")

    def record_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    with (
        patch("pipelines.files.flush", record_flush),
        patch.object(Path, "rename", record_rename),
        replacing(tmp_path / "folder", durable=durable) as temporary,
    ):
        temporary.mkdir()
        (temporary / "file").write_text("x")
    assert events == order


def test_concurrent_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the inner writer finishes first, the outer one replaces its file


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux")
def test_a_full_disk_is_a_stage_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    real_open = Path.open
    with (
        patch.object(Path, "open", lambda self, mode="r": real_open(Path("/dev/full"), mode)),
        pytest.raises(StageFailure, match=r"a\.json: No space left on device; free some space"),
    ):
        write_json(path, {"new": "x" * 10**6})
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")  # permissions do not stop a root user, a file in the path does
    with pytest.raises(
        UserError, match=r"file/a\.json: it cannot be written \(Not a directory\); choose another with data.shards=PATH"
    ):
        write_json(tmp_path / "file" / "a.json", {}, key="data.shards")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1', "it is not readable JSON"),
        (b"", "it is not readable JSON"),
        (b'{"a": "\xff"}', "it is not readable JSON"),
        (b"[" * 100_000, "it is not readable JSON"),
        (b"[1]", "it is not a JSON object"),
        (b"null", "it is not a JSON object"),
        (b'{"a": 1}', "it has no 'b'"),
    ],
)
def test_a_broken_json_file_is_named_with_the_fix(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json: {message}.*; delete the folder") as caught:
        read_json(path, ["a", "b"], "delete the folder")
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing.json")
    with pytest.raises(UserError, match=r"it is not a file"):
        read_json(tmp_path)
    for name in ("nothing", "link"):  # a link to nothing, and one to itself, are no missing files
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / name)
        with pytest.raises(UserError, match=r"link: it (is a link to .*nothing, which does not exist|cannot be read)"):
            read_json(tmp_path / "link")


def test_json_survives_writing_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"nested": {"list": [1, 2.5, None, True]}, "unicode": "é\n", "small": 5e-324, "tenth": 0.1}
    write_json(path, content)
    assert read_json(path, ["nested"]) == content
    assert path.read_text() == json.dumps(content, indent=1, sort_keys=True)
    write_json(path, {"metric": math.nan, "other": math.inf})
    read = read_json(path)
    assert math.isnan(read["metric"])
    assert read["other"] == math.inf


def test_hashes_are_those_of_hashlib(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"", os.urandom(3_000_001)):
        path.write_bytes(content)
        assert sha256(path) == sha256(str(path)) == hashlib.sha256(content).hexdigest()
    # Pinned: names of caches and signatures of stage runs are made of it.
    assert sha256_of({"b": [1, None], "a": 0.5}) == hashlib.sha256(b'{"a": 0.5, "b": [1, null]}').hexdigest()
    assert sha256_of({"a": 1, "b": 2}) == sha256_of({"b": 2, "a": 1})


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:659] . PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_disk_that_is_full_inside_a_folder_names_it_and_the_way_out(tmp_path: Path, error: Exception) -> None:
    """Libraries that write checkpoints say so in their own words."""

    def write() -> None:
        with replacing(tmp_path / "step-000004") as temporary:
            temporary.mkdir()
            raise error

    with pytest.raises(StageFailure, match=r"step-000004: .*; (free some space|delete some of your files) and run the"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_libraries_are_no_full_disk(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "a"):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        write()


def test_a_disk_without_inodes_is_told_from_one_without_space(tmp_path: Path) -> None:
    class Disk:
        f_files, f_favail = 1000, 0

    with patch("os.statvfs", lambda path: Disk):
        assert why_full(tmp_path / "a", OSError(errno.ENOSPC, "")).endswith("has no inodes left; delete some files")
    assert why_full(tmp_path / "a", OSError(errno.ENOSPC, "")).endswith("No space left on device; free some space")


@pytest.mark.parametrize("content", [{"a": 1}, {"a": float("nan"), "b": [None, {"c": "\u202e"}]}, {"sha256x": "y"}])
def test_a_sealed_file_is_read_back_and_every_changed_byte_is_noticed(tmp_path: Path, content: dict) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, content)
    assert repr(read_sealed(path)) == repr(content)
    written = path.read_bytes()
    json.loads(written)  # other programs can read it
    for place in range(len(written)):
        changed = bytearray(written)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"a\.json: it"):
            read_sealed(path)
    path.write_bytes(written + b" x")
    with pytest.raises(UserError, match=r"a\.json: it"):
        read_sealed(path)


def test_half_a_surrogate_pair_in_a_record_is_replaced_since_no_page_could_show_it(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.json", {"answer": "\ud800 5", "score": math.nan})
    content = read_sealed(tmp_path / "a.json")
    assert content["answer"] == "\ufffd 5"
    assert math.isnan(content["score"])


def test_sealed_bytes_do_not_depend_on_the_order_of_the_keys() -> None:
    body = b'{\n "a": 2,\n "b": {\n  "c": 1,\n  "d": null\n }'
    expected = body + b',\n "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}'
    assert sealed({"b": {"d": None, "c": 1}, "a": 2}) == sealed({"a": 2, "b": {"c": 1, "d": None}}) == expected
