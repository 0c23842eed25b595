"""Charts as files: each as SVG and as PNG, drawn again only where something of it has changed.

A process of its own draws (`analysis.vega_lite`), on a second core, while the rest of the results is made.
"""

import contextlib
import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import TracebackType

from analysis import vega_lite
from analysis.figures import CONFIG, Chart
from analysis.vega_lite import DRAWN_BY, SCHEMA, Spec
from pipelines.errors import StageFailure

DRAWN = "drawn.json"
"""Beside the figures: what each was drawn from and by, and what came of it, as one digest."""

Files = tuple[bytes, bytes]
"""A chart's SVG and PNG."""


class Artist:
    """Draws in a process of its own, one description after the other."""

    def __init__(self) -> None:
        command = [
            sys.executable,
            "-P",
            vega_lite.__file__,
        ]  # -P: its folder has a `statistics.py` that is not Python's own
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._turns = ThreadPoolExecutor(1)
        self.process = self._process.pid

    def draw(self, spec: Spec) -> Future[Files]:
        """The drawing that will come of a description; as a result it raises what drawing it raised, or `StageFailure`
        where the process is gone."""
        return self._turns.submit(self._ask, spec)

    def _ask(self, spec: Spec) -> Files:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(spec, self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (OSError, EOFError) as error:
            status = self._process.wait()
            raise StageFailure(f"the process that draws figures ended with status {status}; try again") from error
        if isinstance(answer, Exception):
            raise answer
        found: Files = answer
        return found

    def close(self) -> None:
        """End the process; what it has not drawn is not drawn."""
        self._process.kill()
        self._turns.shutdown(cancel_futures=True)
        with contextlib.suppress(BrokenPipeError), self._process:  # closes the pipes and waits
            pass


class Drawings:
    """The figures of a study: begun when the charts are known, written when everything else is.

    What `before`, the folder of earlier results, holds of the same description and unchanged since is taken from there:
    drawing is half of what a small study's results cost. Where it holds nothing, the process that draws starts at once.
    """

    def __init__(self, before: Path) -> None:
        self._before = before
        self._known = _known(before)
        self._drawn: dict[str, tuple[Spec, Files | Future[Files]]] = {}
        if not self._known:
            self.artist  # noqa: B018  it starts

    @cached_property
    def artist(self) -> Artist:
        """What draws here, from when it is first asked for."""
        return Artist()

    def __enter__(self) -> "Drawings":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if "artist" in vars(self):
            self.artist.close()

    def begin(self, charts: Sequence[Chart]) -> None:
        """Draw these charts, in the background."""
        for chart in charts:
            name = "".join(c if c.isalnum() or c in "-._" else "_" for c in chart.name)
            spec = static_spec(chart)
            files = _taken(self._before, name)
            if files is not None and self._known.get(name) == _digest(spec, files):
                self._drawn[name] = spec, files
            else:
                self._drawn[name] = spec, self.artist.draw(spec)

    def write(self, folder: Path) -> None:
        """Write every chart to `folder` as NAME.svg and NAME.png, and `DRAWN`.

        Raises `OSError` where `folder` cannot be written, and what drawing raised.
        """
        digests = {}
        for name, (spec, drawn) in self._drawn.items():
            files = drawn.result() if isinstance(drawn, Future) else drawn
            (folder / f"{name}.svg").write_bytes(files[0])
            (folder / f"{name}.png").write_bytes(files[1])
            digests[name] = _digest(spec, files)
        (folder / DRAWN).write_text(json.dumps(digests, indent=1) + "\n")


def _known(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / DRAWN).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _taken(before: Path, name: str) -> Files | None:
    try:
        return (before / f"{name}.svg").read_bytes(), (before / f"{name}.png").read_bytes()
    except OSError:
        return None


def _digest(spec: Spec, files: Files) -> str:
    found = hashlib.sha256(f"{DRAWN_BY} {json.dumps(spec)}".encode())
    for content in files:
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()


def static_spec(chart: Chart) -> Spec:
    """The panels in a row for a file, on white."""
    panels = [{"width": 260, "height": 200, **panel} for panel in chart.panels]
    config = {**CONFIG, "background": "white", "font": "sans-serif"}
    return {"$schema": SCHEMA, "config": config, "padding": 8, "concat": panels, "columns": 3,
            "resolve": {"scale": {"color": "independent"}}}  # fmt: skip
