"""One's own folder on the command line, and where the file of an option is."""

from pathlib import Path

import pytest

from pipelines.errors import UserError
from sweeps.compose.config_files import CONFIG_DIR_VARIABLE, own_file, path_of_file, unreadable_file, without_config_dir


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with one sweep; the variable is not set."""
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, "")
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    (tmp_path / "mine" / "sweep" / "one.yaml").write_text("name: one\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


@pytest.mark.parametrize("flags", [["--config-dir=mine"], ["--config-dir", "mine"]])
def test_the_flag_is_taken_out_and_names_the_folder_for_all_that_follows(
    flags: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert without_config_dir(["seed=1", *flags, "-m"]) == ["seed=1", "-m"]
    monkeypatch.chdir("/")  # the folder is kept by its whole path
    assert own_file("sweep/one.yaml") == folder / "sweep" / "one.yaml"
    assert path_of_file("sweep/one") == str(folder / "sweep" / "one.yaml")
    assert path_of_file("sweep/nano") == "conf/sweep/nano.yaml"


def test_without_the_flag_nothing_is_ones_own() -> None:
    assert without_config_dir(["seed=1", "data.path=a b"]) == ["seed=1", "data.path=a b"]
    assert own_file("sweep/one.yaml") is None
    assert path_of_file("sweep/one") == "conf/sweep/one.yaml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-dir"], "--config-dir: name a folder: --config-dir=FOLDER"),
        (["--config-dir=nowhere"], "--config-dir=nowhere: there is no such folder"),
        (["seed=1\nseed=2"], "an argument is one line"),
        (["seed=1\n"], "an argument is one line"),
        (["seed=1\r"], "an argument is one line"),
        (["a", "b\u2028c"], "an argument is one line"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        without_config_dir(arguments)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_is_no_text_is_named(folder: Path) -> None:
    without_config_dir(["--config-dir=mine"])
    assert unreadable_file() is None
    (folder / "broken.yaml").write_bytes(b"name: \xff\n")
    assert str(unreadable_file()).startswith(f"{folder / 'broken.yaml'}: ")
