"""Vega-Lite descriptions as SVG and PNG; run as a program, the process that draws for `figure_files.Artist`.

Each panel of a figure is drawn by itself. A page shows the panels as they are; a figure's file has them in rows, on
white. Everything that is not data is drawn in `currentColor`, the colour of the text around it.

This file imports nothing from the project, so that the process starts quickly.
"""

import importlib.metadata
import os
import pickle
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import vl_convert

Spec = dict[str, Any]
"""A Vega-Lite description."""

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
VERSION = "6.4"
"""Of Vega-Lite."""
DRAWN_BY = f"{importlib.metadata.version('vl-convert-python')} {VERSION} 3"
"""What a drawing depends on besides its description; the last number is that of the code in this file."""

FILE_WIDTH = 1000
"""Pixels of the widest row of panels in a file."""
PADDING = 12
PANEL = "<!--panel-->"
"""Precedes each panel in a file, so that the panels can be taken from it again."""

DROPPED = (
    (r"<path class=\"(?:fore|back)ground\" aria-hidden=\"true\" d=\"[^\"]*\"(?: pointer-events=\"none\")?"
     r"(?: display=\"none\")?/>", ""),  # frames that are not visible
    (r" (?:opacity|stroke-opacity|fill-opacity)=\"1\"| pointer-events=\"none\"| stroke-miterlimit=\"10\"", ""),
    (r" (?:role|aria-roledescription|aria-hidden|xmlns:xlink|version|class|font-family)=\"[^\"]*\"", ""),
    (r"<g>(<(?:path|text|line)[^>]*>(?:[^<]*</text>)?)</g>", r"\1"),
    (r"<g(?: transform=\"translate\(0(?:\.5)?,0(?:\.5)?\)\")?></g>", ""),
)  # fmt: skip
"""Pattern -> replacement: what Vega writes and no reader sees, half of a drawing."""


class Drawing(NamedTuple):
    """A figure as drawn."""

    panels: list[str]
    """SVG of each panel, on no background."""
    svg: str
    png: bytes


def draw(name: str, specs: Sequence[Spec]) -> Drawing:
    """Returns a figure of these panels. Raises `ValueError` if one of them is not valid Vega-Lite.

    `name` makes the identifiers inside the SVGs unique among those of a page.
    """
    panels = [panel_svg(spec, f"{name}-{number}-") for number, spec in enumerate(specs)]
    text = composed(panels)
    return Drawing(panels, text, png(text))


def panel_svg(spec: Spec, prefix: str) -> str:
    """Returns one panel as SVG; the values of each point and bar are in its attribute `data-tip`."""
    text: str = vl_convert.vegalite_to_svg(spec, vl_version=VERSION)
    # Vega counts gradients and clips over the life of the process; number them from 0, so that each figure's bytes do
    # not depend on those drawn before.
    names: dict[str, str] = {}
    text = re.sub(r"\b(gradient_|clip)(\d+)\b", lambda m: names.setdefault(m[0], f"{prefix}{m[1]}{len(names)}"), text)
    # Points and bars show their values. A line's or band's label would be that of its first point, and an interval
    # repeats that of its point.
    is_datum = r"(?= role=\"graphics-symbol\" aria-roledescription=\"(?:point|bar|circle|rect|tick)\")"
    text = re.sub(rf" aria-label=\"([^\"]*)\"{is_datum}", r' data-tip="\1"', text)
    text = re.sub(r" aria-label=\"[^\"]*\"", "", text)
    for pattern, replacement in DROPPED:
        text = re.sub(pattern, replacement, text)
    # Hundredths of a pixel are enough.
    return re.sub(r" (?:d|transform|x2|y2)=\"[^\"]*\"", lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), text)


def composed(panels: Sequence[str]) -> str:
    """Returns a figure's file: the panels in rows from left to right, black on white."""
    x = y = row_height = width = 0.0
    parts = []
    for panel in panels:
        size = re.search(r"<svg[^>]* width=\"([\d.]+)\" height=\"([\d.]+)\"", panel)
        assert size is not None
        panel_width, panel_height = float(size[1]), float(size[2])
        if x and x + panel_width > FILE_WIDTH:
            x, y, row_height = 0.0, y + row_height + PADDING, 0.0
        parts.append(PANEL + panel.replace("<svg", f'<svg x="{x + PADDING:g}" y="{y + PADDING:g}"', 1))
        x += panel_width + PADDING
        width, row_height = max(width, x), max(row_height, panel_height)
    width, height = width + PADDING, y + row_height + 2 * PADDING
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" color="#000" '
        f'font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}{PANEL}</svg>'
    )


def panels_of(text: str) -> list[str]:
    """Returns the panels of a figure's file; raises `ValueError` if it is not such a file."""
    parts = text.split(PANEL)
    if len(parts) < 3:
        raise ValueError("no panels")
    return [re.sub(r"<svg x=\"[^\"]*\" y=\"[^\"]*\"", "<svg", part, count=1) for part in parts[1:-1]]


def png(svg_text: str) -> bytes:
    """Returns an SVG as PNG, at twice its size."""
    image: bytes = vl_convert.svg_to_png(svg_text, scale=2)
    return image


def main() -> None:
    """Answer each pickled (name, descriptions) on standard input with its pickled `Drawing`, or what it raised."""
    # Keep standard output for the answers, and send anything that Vega prints to standard error.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    panel_svg({"data": {"values": [{}]}, "mark": "point"}, "")  # starts the engine before the first description arrives
    while True:
        try:
            name, specs = pickle.load(sys.stdin.buffer)
        except EOFError:  # the parent has closed the pipe or ended
            return
        try:
            # A plain tuple, since the parent knows `Drawing` by another module's name.
            answer: tuple[Any, ...] | Exception = tuple(draw(name, specs))
        except Exception as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
