"""Charts as Vega-Lite: the descriptions that page and files share, the settings' colours, and panels of common kinds.

A chart is one or a few panels. A page lays them out and shows values under the pointer; a file has them in rows.
"""

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.figures.vega_lite import SCHEMA, Spec

COLOURS = {
    "ce": "#808080",
    "precision": "#0072b2",
    "diversity": "#d55e00",
    "tail_penalty": "#009e73",
    "head_reward": "#cc79a7",
}
"""Okabe and Ito's colours: the colour-blind can tell them apart, and they are readable on light and dark."""

OTHER_COLOURS = ("#56b4e9", "#e69f00", "#b39b00", "#7b5ea7", "#8c564b", "#17becf", "#7f9c3b", "#a05195")
"""For settings with any other name."""

LEGEND: Spec = {"orient": "bottom", "columns": 3}

CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {"labelColor": "currentColor", "titleColor": "currentColor", "gridColor": "currentColor",
             "gridOpacity": 0.12, "domainColor": "currentColor", "tickColor": "currentColor",
             "titleFontWeight": "normal"},
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "symbolType": "circle",
               "symbolOpacity": 1},
    "title": {"color": "currentColor", "fontSize": 12, "fontWeight": 600, "anchor": "start"},
    "text": {"color": "currentColor"},
    "rule": {"color": "currentColor"},
    "header": {"labelColor": "currentColor", "titleColor": "currentColor"},
}  # fmt: skip
"""Style: everything that is not data takes the colour of the text around it, light or dark."""


@dataclass(frozen=True)
class Chart:
    """A figure: its panels in Vega-Lite, the data that they draw, and what it shows."""

    name: str
    number: int | None
    """The paper's number; None for a figure that is not in the paper."""
    title: str
    caption: str
    panels: tuple[Spec, ...]
    data: pd.DataFrame
    """The data of all panels, for the page's table of numbers."""


def setting_order(names: Iterable[str]) -> list[str]:
    """Returns the settings in their usual order, followed by all others in alphabetical order."""
    distinct = set(names)
    return [name for name in COLOURS if name in distinct] + sorted(distinct - set(COLOURS))


def setting_colours(settings: Iterable[str]) -> dict[str, str]:
    """Returns the colour of each of a study's settings.

    A name outside `COLOURS` gets a colour by its hash, or the next free one, so that it keeps its colour in most
    studies and settings share a colour only if all are taken.
    """
    colours: dict[str, str] = {}
    for name in setting_order(settings):
        # A hash that is the same in every process, unlike Python's.
        start = zlib.crc32(name.encode())
        candidates = [OTHER_COLOURS[(start + shift) % len(OTHER_COLOURS)] for shift in range(len(OTHER_COLOURS))]
        free = (colour for colour in candidates if colour not in colours.values())
        colours[name] = COLOURS.get(name) or next(free, candidates[0])
    return colours


def colour(names: Iterable[str], *, settings: Iterable[str], legend: Spec | None = LEGEND) -> Spec:
    """Returns the encoding that colours the settings `names`; `settings` are all of the study's."""
    colours, order = setting_colours(settings), setting_order(names)
    scale = {"domain": order, "range": [colours[name] for name in order]}
    return {"field": "objective", "type": "nominal", "scale": scale, "title": None, "legend": legend}


def values(frame: pd.DataFrame) -> Spec:
    """Returns a frame as Vega-Lite data: five significant digits, missing numbers left out."""
    rows = []
    for record in frame.to_dict("records"):
        # JSON has no NaN, and numpy's numbers are not JSON.
        row = {str(k): v.item() if hasattr(v, "item") else v for k, v in record.items() if not _is_missing(v)}
        rows.append({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()})
    return {"values": rows}


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (not isinstance(value, str) and not math.isfinite(value))


def tooltip(*fields: str, number_format: str | None = None, numbers: Iterable[str] = ()) -> list[Spec]:
    """Returns what is shown under the pointer: plain `fields`, then `numbers` in `number_format`."""
    return [{"field": name} for name in fields] + [{"field": name, "format": number_format} for name in numbers]


TIP: Spec = {"field": "tip", "type": "nominal"}
"""The encoding `description`: what is shown under the pointer, one line for each part between `; `."""


def tips(frame: pd.DataFrame, at: str, title: str) -> list[str]:
    """Returns `TIP`'s text for each row of `over_seeds`: setting, where it is, number, interval and seeds."""
    return [
        f"{objective}; {title}: {x:,.6g}; {mean:.4g} [{low:.4g}, {high:.4g}]; {seeds} seed{'s' if seeds > 1 else ''}"
        for objective, x, mean, low, high, seeds in zip(
            *(frame[name].tolist() for name in ("objective", at, "mean", "low", "high", "seeds")), strict=True
        )
    ]


@dataclass(frozen=True)
class Axis:
    """A column of the data and the title of its axis."""

    column: str
    title: str


def line_panel(
    frame: pd.DataFrame, x: Axis, title: str, *, settings: Iterable[str], log: bool = False, points: bool = True
) -> Spec:
    """Returns a panel of curves, with the range over seeds as a band.

    `frame` is one of `over_seeds`, with the columns `objective` and `x`.
    """
    # The axes are shared by the band and the line.
    x_axis = {"field": x.column, "type": "quantitative", "title": x.title, "axis": {"format": "~s", "tickCount": 5}}
    scale: Spec = {"type": "log"} if log else {"zero": False}
    y_axis: Spec = {
        "type": "quantitative",
        "title": None,
        "scale": scale,
        "axis": {"tickCount": 5, **({"format": "~s"} if log else {})},
    }
    shade = colour(frame["objective"], settings=settings)
    # The band is drawn first, below the line, and only if there is more than one seed.
    layers: list[Spec] = []
    if (frame["seeds"] > 1).any():
        band = {"x": x_axis, "y": {**y_axis, "field": "low"}, "y2": {"field": "high"}, "color": shade}
        layers.append({"mark": {"type": "area", "opacity": 0.15}, "encoding": band})
    # Points are too many to tell apart in curves over RL steps, so they are optional.
    line = {"type": "line", "strokeWidth": 2, **({"point": {"size": 28}} if points else {})}
    encoding = {"x": x_axis, "y": {**y_axis, "field": "mean"}, "color": shade, "description": TIP}
    layers.append({"mark": line, "encoding": encoding})
    data = frame[["objective", x.column, "mean", "low", "high", "seeds"]]
    data = data.assign(tip=tips(data, x.column, x.title))
    return {"title": title, "data": values(data), "layer": layers}


def scatter_panel(frame: pd.DataFrame, x: Axis, y: Axis, *, settings: Iterable[str], diagonal: bool = False) -> Spec:
    """Returns a panel with one point per cell; `diagonal` adds the line on which both are equal."""
    numbers = [{"field": axis.column, "format": ".4g", "type": "quantitative"} for axis in (x, y)]
    zero = {"zero": False}
    points: Spec = {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.85},
        "encoding": {
            "x": {"field": x.column, "type": "quantitative", "title": x.title, "scale": zero},
            "y": {"field": y.column, "type": "quantitative", "title": y.title, "scale": zero},
            "color": colour(frame["objective"], settings=settings),
            "tooltip": [*tooltip("objective", "seed"), *numbers],
        },
    }
    layers = [points]
    if diagonal:
        # The line's ends are data of their layer, not of the panel.
        low = float(min(frame[x.column].min(), frame[y.column].min()))
        high = float(max(frame[x.column].max(), frame[y.column].max()))
        ends = [{"x": low, "y": low}, {"x": high, "y": high}]
        line = {"mark": {"type": "line", "strokeDash": [4, 4], "color": "currentColor"}, "data": {"values": ends},
                "encoding": {axis: {"field": axis, "type": "quantitative"} for axis in ("x", "y")}}  # fmt: skip
        layers.append(line)
    return {"title": y.title, "data": values(frame), "layer": layers}


def panel_specs(chart: Chart) -> list[Spec]:
    """Returns the whole description of each panel, for a page as for a file."""
    return [{"$schema": SCHEMA, "config": CONFIG, "width": 300, "height": 190, **panel} for panel in chart.panels]
