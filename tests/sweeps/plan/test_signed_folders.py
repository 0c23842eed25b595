"""Folders are signed by what is in them, wherever they are."""

import shutil
from pathlib import Path

from pipelines.configuration.data import DataConfig
from pipelines.configuration.evaluation import BenchmarkConfig
from pipelines.configuration.local_files import content_name
from sweeps.plan.signatures import _benchmark_content, data_content


def test_a_folder_of_task_files_is_signed_by_what_is_in_it_wherever_it_is(tmp_path: Path) -> None:
    first, moved = tmp_path / "tasks", tmp_path / "elsewhere" / "other name"
    (first / "part").mkdir(parents=True)
    (first / "mine.yaml").write_text("task: mine\n")
    (first / "part" / "helper.py").write_text("x = 1\n")
    shutil.copytree(first, moved)
    (moved / "__pycache__").mkdir()
    (moved / "__pycache__" / "helper.pyc").write_text("compiled")

    def signed(folder: Path) -> dict[str, object]:
        return _benchmark_content(BenchmarkConfig("harness", "math", "mine", [], items=6, task_folder=str(folder)))

    before = signed(first)
    assert signed(moved) == before
    assert str(tmp_path) not in str(before)
    (moved / "part" / "helper.py").write_text("x = 2\n")
    assert signed(moved)["task_folder"] != before["task_folder"]
    (first / "part" / "helper.py").rename(first / "helper.py")
    assert content_name(first) != before["task_folder"]


def test_token_shards_are_signed_by_their_index_wherever_they_are(tmp_path: Path) -> None:
    for name, index in (("shards", "{}"), ("moved", "{}"), ("others", '{"a": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.json").write_text(index)

    def signed(name: str) -> dict[str, object]:
        return data_content(
            DataConfig("t", [], ["chain3", "boolean"], 300, 0.5, 0.5, 300, 8, shards=str(tmp_path / name))
        )

    assert signed("moved") == signed("shards")
    assert signed("others")["shards"] != signed("shards")["shards"]
    assert str(tmp_path) not in str(signed("shards"))
