"""What a stage run has published is what is read again: any file that differs is refused, and named."""

from pathlib import Path

import pytest

from pipelines.errors import StageFailure, UserError
from pipelines.published import checked_checkpoint, checkpoint_hash, published_file, read_result, saved_hashes
from tests.published import publish

SIGNATURE = "ab12" * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published pre-training with two checkpoints; the second has a folder with a file in it."""
    folder = tmp_path / "store" / "pretrain" / SIGNATURE
    for name in ("step-000010/model.safetensors", "step-000020/model.safetensors", "step-000020/code/model.py"):
        path = folder / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (folder / "ledger.jsonl").write_text("{}\n")
    publish(folder)
    return folder


def test_an_unchanged_checkpoint_has_a_hash_of_its_own_files(folder: Path) -> None:
    first, second = (checked_checkpoint(folder, step) for step in ("step-000010", "step-000020"))
    assert first != second
    assert second == checkpoint_hash(read_result(folder)["files"], "step-000020")
    # Neither another checkpoint nor the ledger is part of it.
    (folder / "ledger.jsonl").write_text("{}\n{}\n")
    (folder / "checkpoints/step-000010/model.safetensors").write_text("other weights")
    publish(folder)
    assert checked_checkpoint(folder, "step-000020") == second
    assert checked_checkpoint(folder, "step-000010") != first


def test_the_model_card_is_not_part_of_the_hash_but_is_checked(folder: Path) -> None:
    before = checked_checkpoint(folder, "step-000020")
    (folder / "checkpoints/step-000020/README.md").write_text("trained in an hour")
    publish(folder)
    assert checked_checkpoint(folder, "step-000020") == before
    (folder / "checkpoints/step-000020/README.md").write_text("trained in a minute")
    with pytest.raises(StageFailure, match=r"README\.md: its sha256 is"):
        checked_checkpoint(folder, "step-000020")


@pytest.mark.parametrize("file", ["model.safetensors", "code/model.py"])
def test_a_file_that_is_missing_changed_or_added_is_named(folder: Path, file: str) -> None:
    path = folder / "checkpoints/step-000020" / file
    content = path.read_text()
    path.write_text(content + "x")
    with pytest.raises(StageFailure, match=f"{file}: its sha256 is .*, published was .*--redo"):
        checked_checkpoint(folder, "step-000020")
    path.unlink()
    with pytest.raises(StageFailure, match=f"{file}: it was published and is missing"):
        checked_checkpoint(folder, "step-000020")
    path.write_text(content)
    checked_checkpoint(folder, "step-000020")
    path.with_name("added.py").write_text("import this")
    with pytest.raises(StageFailure, match=r"added\.py: it was added after the stage run was published"):
        checked_checkpoint(folder, "step-000020")
    # What is wrong with one checkpoint does not concern another.
    checked_checkpoint(folder, "step-000010")


def test_an_empty_folder_in_a_checkpoint_is_no_file(folder: Path) -> None:
    (folder / "checkpoints/step-000020/empty").mkdir()
    checked_checkpoint(folder, "step-000020")


def test_a_checkpoint_or_result_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(StageFailure, match="step-000030: no such checkpoint was published"):
        checked_checkpoint(folder, "step-000030")
    # A name that is only the beginning of another is no checkpoint.
    with pytest.raises(StageFailure, match="step-00002: no such checkpoint was published"):
        checked_checkpoint(folder, "step-00002")
    (folder / "result.json").unlink()
    with pytest.raises(StageFailure, match=r"it has no result\.json, so its checkpoints are not published"):
        checked_checkpoint(folder, "step-000020")


def test_a_published_file_is_found_by_name_and_a_changed_one_refused(folder: Path) -> None:
    files = read_result(folder)["files"]
    assert published_file(folder, "samples.jsonl", files) is None
    assert published_file(folder, "ledger.jsonl", files) == folder / "ledger.jsonl"
    (folder / "ledger.jsonl").write_text("changed")
    with pytest.raises(
        UserError, match=f"ledger.jsonl: its sha256 is .* --redo --store {folder.parents[1]} {SIGNATURE}"
    ):
        published_file(folder, "ledger.jsonl", files)


@pytest.mark.parametrize("changes", [{"stage": "midtrain"}, {"signature": "0" * 16}])
def test_the_result_of_another_stage_run_is_refused(folder: Path, changes: dict[str, str]) -> None:
    publish(folder, **changes)
    with pytest.raises(UserError, match="it is the result of"):
        read_result(folder)


def test_a_result_of_another_format_is_refused(folder: Path) -> None:
    publish(folder, format=1)
    with pytest.raises(UserError, match="its format is 1 and this version reads 2"):
        read_result(folder)


def test_without_saved_hashes_there_are_none(tmp_path: Path) -> None:
    assert saved_hashes(tmp_path) == {}
