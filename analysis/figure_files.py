"""Charts as SVG and PNG files, drawn again only if something about them has changed.

A separate process draws (`analysis.vega_lite`), on a second core, while the other results are made.
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

from analysis import vega_lite
from analysis.charts import Chart, static_spec
from analysis.vega_lite import DRAWN_BY, Spec
from pipelines.errors import StageFailure, UserError
from pipelines.files import read_json

logger = logging.getLogger("analysis")

DIGESTS = "drawn.json"
"""File next to the figures: a digest of each figure's description, of the program that drew it, and of its files."""

Images = tuple[bytes, bytes]
"""A chart as SVG and PNG."""


class Artist:
    """Draws in a separate process, one description after the other."""

    def __init__(self) -> None:
        # -P keeps the script's folder off the path: its `statistics.py` would hide Python's.
        command = [sys.executable, "-P", vega_lite.__file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._thread = ThreadPoolExecutor(1)
        self.pid = self._process.pid

    def draw(self, spec: Spec) -> Future[Images]:
        """Returns the drawing of a description.

        The future raises what drawing raised, or `StageFailure` if the process has ended.
        """
        return self._thread.submit(self._draw, spec)

    def _draw(self, spec: Spec) -> Images:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # One request is answered before the next is sent, so the pipes cannot fill up.
        try:
            pickle.dump(spec, self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (OSError, EOFError) as error:
            status = self._process.wait()
            raise StageFailure(f"the process that draws figures ended with status {status}; try again") from error
        if isinstance(answer, Exception):
            raise answer
        images: Images = answer
        return images

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
        self._images: dict[str, tuple[Spec, Images | Future[Images]]] = {}
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
        name = "".join(c if c.isalnum() or c in "-._" else "_" for c in chart.name)
        spec = static_spec(chart)
        # Reuse the previous files if the description, the program and the bytes are all the same.
        images = _read_images(self._previous, name)
        if images is not None and self._digests.get(name) == _digest(spec, images):
            self._images[name] = spec, images
        else:
            logger.debug("figure %s is drawn", name)
            self._images[name] = spec, self.artist.draw(spec)

    def write(self, folder: Path) -> None:
        """Write every chart to `folder` as NAME.svg and NAME.png, and their digests.

        Raises `OSError` if `folder` cannot be written, and what drawing raised.
        """
        digests = {}
        for name, (spec, drawn) in self._images.items():
            images = drawn.result() if isinstance(drawn, Future) else drawn
            (folder / f"{name}.svg").write_bytes(images[0])
            (folder / f"{name}.png").write_bytes(images[1])
            digests[name] = _digest(spec, images)
        (folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")


def _read_digests(path: Path) -> dict[str, str]:
    try:
        return read_json(path)
    except (FileNotFoundError, UserError):  # then everything is drawn again
        return {}


def _read_images(folder: Path, name: str) -> Images | None:
    try:
        return (folder / f"{name}.svg").read_bytes(), (folder / f"{name}.png").read_bytes()
    except OSError:
        return None


def _digest(spec: Spec, images: Images) -> str:
    digest = hashlib.sha256(f"{DRAWN_BY} {json.dumps(spec)}".encode())
    for content in images:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
