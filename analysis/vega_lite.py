"""Vega-Lite as SVG, as PNG, and as a script for pages; as a program, the process that draws for another one.

This file imports nothing of the project, so that the process starts in a moment (`analysis.figure_files.Artist`).
"""

import contextlib
import importlib.metadata
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import vl_convert

Spec = dict[str, Any]
"""A description in Vega-Lite."""

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
VERSION = "6.4"
"""Of Vega-Lite."""
DRAWN_BY = f"{importlib.metadata.version('vl-convert-python')} {VERSION}"
"""What a drawing depends on besides its description."""


def svg(spec: Spec) -> str:
    """A description as SVG text; raises `ValueError` for one that is not Vega-Lite."""
    text: str = vl_convert.vegalite_to_svg(spec, vl_version=VERSION)
    # Vega numbers gradients and clips over the life of the process; here they are numbered from 0 in each figure.
    names: dict[str, str] = {}
    return re.sub(r"\b(gradient_|clip)(\d+)\b", lambda m: names.setdefault(m[0], f"{m[1]}{len(names)}"), text)


def png(drawn: str) -> bytes:
    """An SVG as PNG, twice as large."""
    image: bytes = vl_convert.svg_to_png(drawn, scale=2)
    return image


def page_script() -> str:
    """The script that draws Vega-Lite in a page (vega-embed with all it needs), as `window.vegaEmbed`.

    vl-convert carries the libraries; joining them takes seconds, so the result is kept in the user's cache folder.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shaping"
    path = folder / f"vega-embed-{DRAWN_BY.replace(' ', '-')}.js"
    with contextlib.suppress(OSError):
        return path.read_text()
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VERSION)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(script)
        beside.rename(path)
    return script


def main() -> None:
    """Answer each pickled description on standard input with its pickled (SVG, PNG), or with what went wrong."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever Vega may print goes elsewhere
    svg({"data": {"values": [{}]}, "mark": "point"})  # the engine starts while the first description is on its way
    while True:
        try:
            spec = pickle.load(sys.stdin.buffer)
        except EOFError:  # nobody asks any more
            return
        try:
            text = svg(spec)
            answer: tuple[bytes, bytes] | Exception = (text.encode(), png(text))
        except Exception as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
