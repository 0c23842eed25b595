"""Reads a drawn panel back: Vega's scene graph as marks in the units of the axes' labels."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import vl_convert

from analysis.figures.charts import CONFIG
from analysis.figures.vega_lite import SCHEMA, VERSION, Spec

PREFIXES = {"": 1.0, "n": 1e-9, "µ": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9}


class Mark(NamedTuple):
    """A point, a corner of a line, or the end of a bar."""

    shape: str
    """symbol, line or rect."""
    x: float | str
    y: float | str
    """In the axis's numbers, or the label that it is nearest to."""
    colour: str
    opacity: float


class Panel(NamedTuple):
    """What a reader sees of a panel."""

    title: str
    x_title: str
    y_title: str
    marks: list[Mark]
    rectangles: list[dict[str, Any]]
    """Of the bars: x, y, width, height in pixels."""


def read_back(spec: Spec) -> Panel:
    """Returns what is drawn for a panel."""
    full = {"$schema": SCHEMA, "config": {**CONFIG, "background": "white"}, "width": 260, "height": 200, **spec}
    scene = vl_convert.vegalite_to_scenegraph(full, vl_version=VERSION)["scenegraph"]
    nodes = list(_nodes(scene))
    axes = {
        axis: _labels(nodes, orient, is_number=_encoding(spec, axis).get("type") == "quantitative")
        for axis, orient in (("x", "bottom"), ("y", "left"))
    }
    logarithmic = {axis: _encoding(spec, axis).get("scale", {}).get("type") == "log" for axis in axes}

    def located(axis: str, pixel: float) -> float | str:
        return _in_units(axes[axis], pixel, logarithmic[axis])

    marks, rectangles = [], []
    for node in nodes:
        if node.get("role") != "mark" or node.get("marktype") not in ("symbol", "line", "rect"):
            continue
        for item in node["items"]:
            x, y = item.get("x", 0.0), item.get("y", 0.0)
            if node["marktype"] == "rect":
                rectangles.append(item)
                # Across its labels a bar is at its middle; along the numbers it ends at the side away from 0.
                x = _bar_end(axes["x"], x, item["width"])
                y = _bar_end(axes["y"], y, item["height"])
            fill = item.get("fill")
            colour = (None if fill == "transparent" else fill) or item.get("stroke") or ""
            opacity = item.get("opacity", 1.0)
            marks.append(Mark(node["marktype"], located("x", x), located("y", y), colour, opacity))
    (title,) = _texts(scene, "title-text") or [""]
    x_title, y_title = (
        " ".join(text for node in nodes if node.get("orient") == orient for text in _texts(node, "axis-title"))
        for orient in ("bottom", "left")
    )
    return Panel(title, x_title, y_title, marks, rectangles)


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The node and everything below it."""
    yield node
    for item in node.get("items", []):
        yield from _nodes(item)


def _texts(node: dict[str, Any], role: str) -> list[str]:
    return [item["text"] for part in _nodes(node) if part.get("role") == role for item in part["items"]]


def _labels(nodes: list[dict[str, Any]], orient: str, *, is_number: bool) -> list[tuple[float, float | str]]:
    """(pixel, number or text) of the labels of the axes on one side."""
    read = _number if is_number else str
    axis = "x" if orient == "bottom" else "y"
    labels: dict[float, float | str] = {}
    for node in nodes:
        if node.get("orient") == orient:
            for part in _nodes(node):
                if part.get("role") == "axis-label":
                    labels |= {item[axis]: read(item["text"]) for item in part["items"] if item["text"]}
    return sorted(labels.items())


def _number(text: str) -> float:
    """`−1.5k` -> -1500.0"""
    plain = text.replace("−", "-").replace(",", "")
    digits, prefix = (plain[:-1], plain[-1]) if plain[-1] in PREFIXES else (plain, "")
    return float(digits) * PREFIXES[prefix]


def _is_numeric(labels: list[tuple[float, float | str]]) -> bool:
    return len(labels) > 1 and all(isinstance(label, float) for _, label in labels)


def _encoding(spec: Spec, axis: str) -> dict[str, Any]:
    """How the first layer encodes an axis; the layers of a panel share their axes."""
    encoding: dict[str, Any] = spec.get("layer", [spec])[0]["encoding"][axis]
    return encoding


def _bar_end(labels: list[tuple[float, float | str]], start: float, size: float) -> float:
    """The middle of a bar at text labels; else its end that is farther from 0."""
    if not _is_numeric(labels):
        return start + size / 2
    ends = (start, start + size)
    return max(ends, key=lambda end: abs(float(_in_units(labels, end, False))))


def _in_units(labels: list[tuple[float, float | str]], pixel: float, is_log: bool) -> float | str:
    """The number at a pixel by the line through the labels, or the nearest label."""
    if not _is_numeric(labels):
        return min(labels, key=lambda label: abs(label[0] - pixel))[1]
    pixels, numbers = np.array([at for at, _ in labels]), np.array([float(label) for _, label in labels])
    slope, start = np.polyfit(pixels, np.log10(numbers) if is_log else numbers, 1)
    value = slope * pixel + start
    return float(10**value) if is_log else float(value)
