"""Vega-Lite descriptions as SVG and PNG; run as a program, the process that draws for `figure_files.Artist`.

This file imports nothing from the project, so that the process starts quickly.
"""

import importlib.metadata
import os
import pickle
import re
import sys
from typing import Any

import vl_convert

Spec = dict[str, Any]
"""A Vega-Lite description."""

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
VERSION = "6.4"
"""Of Vega-Lite."""
DRAWN_BY = f"{importlib.metadata.version('vl-convert-python')} {VERSION}"
"""What a drawing depends on besides its description."""


def svg(spec: Spec) -> str:
    """Returns a description as SVG text. Raises `ValueError` if it is not valid Vega-Lite."""
    text: str = vl_convert.vegalite_to_svg(spec, vl_version=VERSION)
    # Vega counts gradients and clips over the life of the process; renumber them from 0, so that each figure's bytes
    # do not depend on those drawn before.
    names: dict[str, str] = {}
    return re.sub(r"\b(gradient_|clip)(\d+)\b", lambda m: names.setdefault(m[0], f"{m[1]}{len(names)}"), text)


def png(svg_text: str) -> bytes:
    """Returns an SVG as PNG, at twice its size."""
    image: bytes = vl_convert.svg_to_png(svg_text, scale=2)
    return image


def browser_script() -> str:
    """Returns the script that draws Vega-Lite in a browser, as `window.vegaEmbed`. Takes a few seconds."""
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VERSION)
    return script


def main() -> None:
    """Answer each pickled description on standard input with the pickled (SVG, PNG), or the exception it raised."""
    # Keep standard output for the answers, and send anything that Vega prints to standard error.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    svg({"data": {"values": [{}]}, "mark": "point"})  # starts the engine before the first description arrives
    while True:
        try:
            spec = pickle.load(sys.stdin.buffer)
        except EOFError:  # the parent has closed the pipe or ended
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
