"""Figure files: real SVG and PNG, and no figure is drawn twice."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from analysis.figures import figure_files, vega_lite
from analysis.figures.charts import Chart, panel_specs
from analysis.figures.figure_files import Artist, FigureFiles
from analysis.figures.vega_lite import Drawing, Spec, png
from pipelines.errors import StageFailure

Draw = Callable[..., list[str]]


def chart(name: str = "rl scores/ce", height: int = 3) -> Chart:
    rows = [{"x": 1, "y": 2}, {"x": 2, "y": height}]
    encoding = {axis: {"field": axis, "type": "quantitative"} for axis in ("x", "y")}
    panel = {"title": "a panel", "data": {"values": rows}, "mark": "line", "encoding": encoding}
    return Chart(name, None, "A chart", "Of two points.", (panel,), pd.DataFrame(rows))


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Writes charts to a folder, given the folder of previous results; returns the names of those that were drawn."""

    def run(charts: list[Chart], folder: str, previous: str) -> list[str]:
        drawn = []

        def spy(artist: Artist, name: str, specs: list[Spec]) -> Future[Drawing]:
            drawn.append(name)
            return real(artist, name, specs)

        monkeypatch.setattr(Artist, "draw", spy)
        (tmp_path / folder).mkdir()
        with FigureFiles(tmp_path / previous) as written:
            for each in charts:
                written.begin(each)
            written.write(tmp_path / folder)
        return drawn

    real = Artist.draw
    return run


def test_control_characters_do_not_reach_the_drawing_process(draw: Draw, tmp_path: Path) -> None:
    """They are no XML, and Vega prints its warnings to the terminal."""
    made = chart()
    panel = made.panels[0] | {"title": "a\x1b]0;owned\x07\ud83d\x00 title"}
    draw([replace(made, panels=(panel,))], "hostile", "none")
    (svg,) = (tmp_path / "hostile").glob("*.svg")
    ElementTree.fromstring(svg.read_text())
    assert "a\\x1b]0;owned\\x07\\ud83d\\x00 title" in svg.read_text()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_chart_is_an_svg_and_a_png_with_a_safe_name(draw: Draw, tmp_path: Path) -> None:
    draw([chart()], "new", "none")
    written = files(tmp_path / "new")
    assert set(written) == {"rl_scores_ce.svg", "rl_scores_ce.png", figure_files.DIGESTS}
    root = ElementTree.fromstring(written["rl_scores_ce.svg"])
    assert root.tag.endswith("svg")
    assert "a panel" in "".join(root.itertext())
    assert written["rl_scores_ce.png"].startswith(b"\x89PNG")


def test_only_changed_charts_are_drawn_again(draw: Draw, tmp_path: Path) -> None:
    assert draw([chart("a"), chart("b")], "first", "none") == ["a", "b"]
    assert draw([chart("a"), chart("b")], "same", "first") == []
    assert files(tmp_path / "same") == files(tmp_path / "first")
    assert draw([chart("a"), chart("b", 4)], "changed", "same") == ["b"]
    again = files(tmp_path / "changed")
    assert again["a.svg"] == files(tmp_path / "same")["a.svg"] != again["b.svg"]
    draw([chart("a"), chart("b", 4)], "fresh", "none")
    assert again == files(tmp_path / "fresh")


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
def test_a_corrupt_digest_file_is_ignored(draw: Draw, tmp_path: Path, text: str) -> None:
    draw([chart("a")], "first", "none")
    (tmp_path / "first" / figure_files.DIGESTS).write_text(text)
    assert draw([chart("a")], "second", "first") == ["a"]


def test_drawings_of_another_version_are_drawn_again(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    draw([chart("a")], "first", "none")
    monkeypatch.setattr(figure_files, "DRAWN_BY", "0")
    assert draw([chart("a")], "second", "first") == ["a"]


def test_the_drawing_process_gives_the_same_bytes_as_drawing_here(draw: Draw, tmp_path: Path) -> None:
    draw([chart("other", 9), chart("a")], "new", "none")
    here = vega_lite.draw("a", panel_specs(chart("a")))
    assert files(tmp_path / "new")["a.svg"].decode() == here.svg
    assert files(tmp_path / "new")["a.png"] == here.png == png(here.svg)


def test_invalid_vega_lite_is_raised_and_the_next_chart_is_drawn() -> None:
    artist = Artist()
    try:
        wrong, right = (
            artist.draw("a", [{"mark": "smear", "data": {"values": []}}]),
            artist.draw("b", panel_specs(chart())),
        )
        with pytest.raises(ValueError, match="SVG conversion failed"):
            wrong.result()
        assert right.result().png.startswith(b"\x89PNG")
    finally:
        artist.close()


def test_a_dead_drawing_process_is_reported_in_a_sentence() -> None:
    artist = Artist()
    try:
        os.kill(artist.pid, signal.SIGKILL)
        with pytest.raises(StageFailure, match="the process that draws figures ended with status -9"):
            artist.draw("a", panel_specs(chart())).result()
    finally:
        artist.close()


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    """The process ends both when the results fail and when the command is killed."""
    with FigureFiles(tmp_path) as written:
        for number in range(20):
            written.begin(chart(str(number), number))
        process = Path(f"/proc/{written.artist.pid}")
        assert process.exists()
    assert not process.exists()
    code = (
        "import time; from analysis.figures.figure_files import Artist; print(Artist().pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        number = int(command.stdout.readline())
        command.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{number}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{number}").exists()


def test_panels_are_the_same_after_reuse_and_their_names_are_unique(draw: Draw, tmp_path: Path) -> None:
    """A page has all panels in one document, so that no two may clip by the same identifier."""
    panel = {**chart().panels[0], "mark": {"type": "line", "clip": True}}
    two = Chart("two", None, "Two", "", (panel, panel), pd.DataFrame())
    draw([two], "first", "none")
    drawn = vega_lite.draw("two", panel_specs(two))
    with FigureFiles(tmp_path / "first") as written:
        written.begin(two)
        assert written.panels(two) == drawn.panels
    names = [name for text in drawn.panels for name in re.findall(r' id="([^"]+)"', text)]
    assert len(set(names)) == len(names) == 2
