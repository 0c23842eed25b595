"""Charts as SVG and PNG files, drawn again only if something about them has changed.

A separate process draws (`analysis.figures.vega_lite`), on a second core, while the other results are made.
"""

import contextlib
import hashlib
import json
import logging
import pickle
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import TracebackType

from analysis.figures import vega_lite
from analysis.figures.charts import Chart, panel_specs
from analysis.figures.vega_lite import DRAWN_BY, Drawing, Spec, panels_of
from pipelines.errors import StageFailure, UserError
from pipelines.files import read_json
from pipelines.foreign_text import printable_values

logger = logging.getLogger("analysis")

DIGESTS = "drawn.json"
"""File next to the figures: a digest of each figure's description, of the program that drew it, and of its files."""


class Artist:
    """Draws in a separate process, one description after the other."""

    def __init__(self) -> None:
        # -P keeps the script's folder off the path: its `statistics.py` would hide Python's.
        command = [sys.executable, "-P", vega_lite.__file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._thread = ThreadPoolExecutor(1)
        self.pid = self._process.pid

    def draw(self, name: str, specs: list[Spec]) -> Future[Drawing]:
        """Returns the drawing of a figure's panels.

        The future raises what drawing raised, or `StageFailure` if the process has ended.
        """
        return self._thread.submit(self._draw, name, specs)

    def _draw(self, name: str, specs: list[Spec]) -> Drawing:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # One request is answered before the next is sent, so the pipes cannot fill up.
        try:
            pickle.dump((name, specs), self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (OSError, EOFError) as error:
            status = self._process.wait()
            raise StageFailure(f"the process that draws figures ended with status {status}; try again") from error
        if isinstance(answer, Exception):
            raise answer
        return Drawing(*answer)

    def close(self) -> None:
        """End the process and drop what it has not drawn yet."""
        self._process.kill()
        self._thread.shutdown(cancel_futures=True)
        with contextlib.suppress(BrokenPipeError), self._process:  # closes the pipes and waits
            pass


class FigureFiles:
    """The figure files of a study: drawing begins with each chart, and the files are written at the end.

    A figure in `previous`, the folder of earlier results, is reused if its description and files have not changed:
    drawing is half of the time of a small study's results. Without earlier results the drawing process starts at once.
    """

    def __init__(self, previous: Path) -> None:
        self._previous = previous
        self._digests = _read_digests(previous / DIGESTS)
        self._drawings: dict[str, tuple[list[Spec], Drawing | Future[Drawing]]] = {}
        if not self._digests:
            self.artist  # noqa: B018  the access starts it

    @cached_property
    def artist(self) -> Artist:
        """The process that draws, started on first access."""
        return Artist()

    def __enter__(self) -> "FigureFiles":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if "artist" in vars(self):
            self.artist.close()

    def begin(self, chart: Chart) -> None:
        """Draw a chart in the background, unless the previous results have it."""
        name, specs = _file_name(chart.name), printable_values(panel_specs(chart))
        # Reuse the previous files if the descriptions, the program and the bytes are all the same.
        drawing = _read_drawing(self._previous, name)
        if drawing is not None and self._digests.get(name) == _digest(specs, drawing):
            self._drawings[name] = specs, drawing
        else:
            logger.debug("figure %s is drawn", name)
            self._drawings[name] = specs, self.artist.draw(name, specs)

    def panels(self, chart: Chart) -> list[str]:
        """Returns the panels of a chart as SVG, once they are drawn. Raises what drawing raised."""
        return self._drawing(_file_name(chart.name)).panels

    def _drawing(self, name: str) -> Drawing:
        drawing = self._drawings[name][1]
        return drawing.result() if isinstance(drawing, Future) else drawing

    def write(self, folder: Path) -> None:
        """Write every chart to `folder` as NAME.svg and NAME.png, and their digests.

        Raises `OSError` if `folder` cannot be written, and what drawing raised.
        """
        digests = {}
        for name, (specs, _) in self._drawings.items():
            drawing = self._drawing(name)
            (folder / f"{name}.svg").write_bytes(drawing.svg.encode(errors="replace"))
            (folder / f"{name}.png").write_bytes(drawing.png)
            digests[name] = _digest(specs, drawing)
        (folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")


def _file_name(chart: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in chart)


def _read_digests(path: Path) -> dict[str, str]:
    try:
        return read_json(path)
    except (FileNotFoundError, UserError):  # then everything is drawn again
        return {}


def _read_drawing(folder: Path, name: str) -> Drawing | None:
    try:
        text = (folder / f"{name}.svg").read_bytes().decode()
        return Drawing(panels_of(text), text, (folder / f"{name}.png").read_bytes())
    except (OSError, ValueError):  # also what is not UTF-8, or has no panels
        return None


def _digest(specs: list[Spec], drawing: Drawing) -> str:
    digest = hashlib.sha256(f"{DRAWN_BY} {json.dumps(specs)}".encode())
    for content in (drawing.svg.encode(errors="replace"), drawing.png):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
