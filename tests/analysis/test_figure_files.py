"""Figures as files: real SVG and PNG, and nothing drawn twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from analysis import figure_files
from analysis.figure_files import Artist, Drawings
from analysis.figures import Chart
from analysis.vega_lite import Spec, png, svg
from pipelines.errors import StageFailure

Draw = Callable[..., list[str]]


def chart(name: str = "rl scores/ce", height: int = 3) -> Chart:
    rows = [{"x": 1, "y": 2}, {"x": 2, "y": height}]
    encoding = {axis: {"field": axis, "type": "quantitative"} for axis in ("x", "y")}
    panel = {"title": "a panel", "data": {"values": rows}, "mark": "line", "encoding": encoding}
    return Chart(name, None, "A chart", "Of two points.", (panel,), pd.DataFrame(rows))


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Draws charts to a folder, as told by another; returns the names of those that were really drawn."""

    def run(charts: list[Chart], folder: str, before: str) -> list[str]:
        drawn = []

        def spy(artist: Artist, spec: Spec) -> Future[figure_files.Files]:
            drawn.append(spec)
            return real(artist, spec)

        monkeypatch.setattr(Artist, "draw", spy)
        (tmp_path / folder).mkdir()
        with Drawings(tmp_path / before) as drawings:
            drawings.begin(charts)
            drawings.write(tmp_path / folder)
        return [next(c.name for c in charts if figure_files.static_spec(c) == spec) for spec in drawn]

    real = Artist.draw
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_chart_is_an_svg_and_a_png_by_a_name_that_is_safe(draw: Draw, tmp_path: Path) -> None:
    draw([chart()], "new", "none")
    found = files(tmp_path / "new")
    assert set(found) == {"rl_scores_ce.svg", "rl_scores_ce.png", figure_files.DRAWN}
    root = ElementTree.fromstring(found["rl_scores_ce.svg"])
    assert root.tag.endswith("svg")
    assert "a panel" in "".join(root.itertext())
    assert found["rl_scores_ce.png"].startswith(b"\x89PNG")


def test_only_what_changed_is_drawn_again(draw: Draw, tmp_path: Path) -> None:
    assert draw([chart("a"), chart("b")], "first", "none") == ["a"] * 2  # one description, two names
    assert draw([chart("a"), chart("b")], "same", "first") == []
    assert files(tmp_path / "same") == files(tmp_path / "first")
    assert draw([chart("a"), chart("b", 4)], "changed", "same") == ["b"]
    again = files(tmp_path / "changed")
    assert again["a.svg"] == files(tmp_path / "same")["a.svg"] != again["b.svg"]
    draw([chart("a"), chart("b", 4)], "anew", "none")
    assert again == files(tmp_path / "anew")


@pytest.mark.parametrize("name", ["a.svg", "a.png"])
def test_a_file_that_was_edited_or_lost_is_drawn_again(draw: Draw, tmp_path: Path, name: str) -> None:
    draw([chart("a")], "first", "none")
    whole = files(tmp_path / "first")
    (tmp_path / "first" / name).write_bytes(b"edited")
    assert draw([chart("a")], "second", "first") == ["a"]
    assert files(tmp_path / "second") == whole
    (tmp_path / "second" / name).unlink()
    assert draw([chart("a")], "third", "second") == ["a"]
    assert files(tmp_path / "third") == whole


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"a": 3})])
def test_a_broken_list_of_what_was_drawn_is_ignored(draw: Draw, tmp_path: Path, text: str) -> None:
    draw([chart("a")], "first", "none")
    (tmp_path / "first" / figure_files.DRAWN).write_text(text)
    assert draw([chart("a")], "second", "first") == ["a"]


def test_what_another_version_drew_is_drawn_again(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    draw([chart("a")], "first", "none")
    monkeypatch.setattr(figure_files, "DRAWN_BY", "0")
    assert draw([chart("a")], "second", "first") == ["a"]


def test_a_figure_of_the_process_that_draws_is_the_same_as_one_drawn_here(draw: Draw, tmp_path: Path) -> None:
    draw([chart("other", 9), chart("a")], "new", "none")
    text = svg(figure_files.static_spec(chart("a")))
    assert files(tmp_path / "new")["a.svg"].decode() == text
    assert files(tmp_path / "new")["a.png"] == png(text)


def test_what_vega_does_not_know_is_raised_and_the_next_is_drawn() -> None:
    artist = Artist()
    try:
        wrong, right = (
            artist.draw({"mark": "smear", "data": {"values": []}}),
            artist.draw(figure_files.static_spec(chart())),
        )
        with pytest.raises(ValueError, match="SVG conversion failed"):
            wrong.result()
        assert right.result()[1].startswith(b"\x89PNG")
    finally:
        artist.close()


def test_a_process_that_draws_no_more_is_told_in_a_sentence() -> None:
    artist = Artist()
    try:
        os.kill(artist.process, signal.SIGKILL)
        with pytest.raises(StageFailure, match="the process that draws figures ended with status -9"):
            artist.draw(figure_files.static_spec(chart())).result()
    finally:
        artist.close()


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    """Not where the rest of the results failed, and not where the command was killed."""
    with Drawings(tmp_path) as drawings:
        drawings.begin([chart(str(number), number) for number in range(20)])
        left = Path(f"/proc/{drawings.artist.process}")
        assert left.exists()
    assert not left.exists()
    began = "import time; from analysis.figure_files import Artist; print(Artist().process, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", began], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        number = int(command.stdout.readline())
        command.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{number}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{number}").exists()
