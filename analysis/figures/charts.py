"""Charts as Vega-Lite: the descriptions that page and files share, the settings' colours, and panels of common kinds.

A chart is one or a few panels. A page lays them out and shows values under the pointer; a file has them in rows.
"""

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
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

TEMPERED = ", tempered to "
"""In the names of what is not a setting but cross-entropy with its logits scaled."""
TEMPERED_COLOUR = "#56b4e9"
"""Of cross-entropy tempered to any setting's entropy."""

OTHER_COLOURS = ("#e69f00", "#b39b00", "#7b5ea7", "#8c564b", "#17becf", "#7f9c3b", "#a05195", "#c06c84")
"""For settings with any other name."""

LEGEND: Spec = {"orient": "bottom", "columns": 3}

CONFIG: Spec = {
    "background": "transparent",
    "font": "Arial, sans-serif",
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
        fixed = TEMPERED_COLOUR if TEMPERED in name else COLOURS.get(name)
        colours[name] = fixed or next(free, candidates[0])
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


TIP: Spec = {"field": "tip", "type": "nominal"}
"""The encoding `description`: what is shown under the pointer, one line for each part between `; `."""


def tips(frame: pd.DataFrame, at: str, title: str) -> list[str]:
    """Returns `TIP`'s text for each row: setting, where it is, number, interval and seeds."""
    places = [f"{title}: {x:,.6g}" if isinstance(x, int | float) else str(x) for x in frame[at].tolist()]
    columns = (frame[name].tolist() for name in ("objective", "mean", "low", "high", "seeds"))
    return [
        f"{objective}; {place}; {mean:.4g} [{low:.4g}, {high:.4g}]; {seeds} seed{'s' if seeds > 1 else ''}"
        for place, objective, mean, low, high, seeds in zip(places, *columns, strict=True)
    ]


@dataclass(frozen=True)
class Axis:
    """A column of the data and the title of its axis."""

    column: str
    title: str


ROOM = 0.6
"""How far intervals may widen an axis at either end, as a share of the range of the numbers themselves."""
COINCIDE = 0.12
"""Lines coincide if the settings differ by less than this share of the range of their panel."""
BANDS = 12
"""Most settings whose bands can be told apart in one panel."""
MULTIPLES = 6
"""Most small panels of one measure."""


def line_panel(
    frame: pd.DataFrame, x: Axis, title: str, *, settings: Iterable[str], log: bool = False, points: bool = True
) -> Spec:
    """Returns a panel of curves with their intervals as bands.

    `frame` has the columns `objective`, `x`, `mean`, `low`, `high` and `seeds`. The axis fits the curves, and
    wider bands are cut.
    """
    # The axes are shared by the band and the line.
    x_axis = {"field": x.column, "type": "quantitative", "title": x.title, "axis": {"format": "~s", "tickCount": 5}}
    scale: Spec = {"domain": domain(frame, log=log), "nice": False, **({"type": "log"} if log else {"zero": False})}
    y_axis: Spec = {
        "type": "quantitative",
        "title": None,
        "scale": scale,
        "axis": {"tickCount": 5, **({"format": "~s"} if log else {})},
    }
    shade = colour(frame["objective"], settings=settings)
    # The band is drawn first, below the line.
    layers: list[Spec] = []
    if frame["objective"].nunique() <= BANDS and (frame["low"] < frame["high"]).any():
        band = {"x": x_axis, "y": {**y_axis, "field": "low"}, "y2": {"field": "high"}, "color": shade}
        layers.append({"mark": {"type": "area", "opacity": 0.15, "clip": True}, "encoding": band})
    # Points are too many to tell apart in curves over RL steps, so they are optional.
    line = {"type": "line", "strokeWidth": 2, **({"point": {"size": 28}} if points else {})}
    encoding = {"x": x_axis, "y": {**y_axis, "field": "mean"}, "color": shade, "description": TIP}
    layers.append({"mark": line, "encoding": encoding})
    data = frame[["objective", x.column, "mean", "low", "high", "seeds"]]
    data = data.assign(tip=tips(data, x.column, x.title))
    return {"title": title, "data": values(data), "layer": layers}


def domain(frame: pd.DataFrame, *, log: bool = False) -> list[float]:
    """Returns the ends of an axis for `mean`: its range, and of the intervals as much as leaves differences visible."""
    numbers = frame[["mean", "low", "high"]].to_numpy(float)
    if log:
        numbers = np.log(np.clip(numbers, 1e-12, None))
    low, high = float(numbers[:, 0].min()), float(numbers[:, 0].max())
    room = ROOM * (high - low) or 0.05 * abs(high) or 1.0
    ends = [max(low - room, float(numbers.min())), min(high + room, float(numbers.max()))]
    margin = 0.04 * (ends[1] - ends[0]) or room
    ends = [ends[0] - margin, ends[1] + margin]
    return [float(f"{math.exp(end) if log else end:.4g}") for end in ends]


def coincides(frame: pd.DataFrame, at: str) -> bool:
    """Whether the settings' lines are too close to be told apart in a panel of their whole range."""
    spread = frame.groupby(at)["mean"].agg(lambda means: means.max() - means.min())
    total = frame["mean"].max() - frame["mean"].min()
    return frame["objective"].nunique() > 1 and bool(spread.median() < COINCIDE * total)


def small_multiples(frame: pd.DataFrame, x: Axis, title: str, *, settings: Iterable[str]) -> list[Spec]:
    """Returns a small panel for each setting with its difference from the baseline, all with the same axis."""
    shown = setting_order(frame["objective"])[:MULTIPLES]
    ends = domain(pd.concat([frame, pd.DataFrame({"mean": [0.0], "low": [0.0], "high": [0.0]})]))
    panels = []
    for setting in shown:
        panel = line_panel(frame[frame["objective"] == setting], x, title, settings=settings)
        for layer in panel["layer"]:
            layer["encoding"]["y"]["scale"]["domain"] = ends
            layer["encoding"]["y"]["axis"] = {"tickCount": 4}
            layer["encoding"]["x"]["axis"] = {"format": "~s", "tickCount": 3}
            layer["encoding"]["color"] = {**layer["encoding"]["color"], "legend": None}
        mark = {"type": "rule", "strokeDash": [4, 3], "color": "currentColor", "opacity": 0.7}
        zero = {"mark": mark, "data": {"values": [{}]}, "encoding": {"y": {"datum": 0}}}
        panels.append(
            {**panel, "title": [title, setting], "width": 150, "height": 110, "layer": [*panel["layer"], zero]}
        )
    return panels


def interval_layer(encoding: Spec, along: str) -> Spec:
    """Returns a rule from `low` to `high` along an axis, for a layer of points or bars with this `encoding`."""
    ends = {along: {**encoding[along], "field": "low"}, f"{along}2": {"field": "high"}}
    others = {
        name: part for name, part in encoding.items() if name not in (along, "opacity", "shape", "fill", "description")
    }
    mark = {"type": "rule", "strokeWidth": 2, "opacity": 0.55, "clip": True}
    return {"mark": mark, "encoding": {**others, **ends}}


def scatter_panel(frame: pd.DataFrame, x: Axis, y: Axis, *, settings: Iterable[str], diagonal: bool = False) -> Spec:
    """Returns a panel with one point per cell; `diagonal` adds the line on which both are equal.

    `frame` has the columns `objective`, `seed`, `x` and `y`, and may have the ends of intervals: `low_x`, `high_x`,
    `low_y`, `high_y`.
    """
    zero = {"zero": False}
    frame = frame.assign(
        tip=[
            f"{row['objective']}, seed {row['seed']}; {x.title}: {row[x.column]:.4g}; {y.title}: {row[y.column]:.4g}"
            for row in frame.to_dict("records")
        ]
    )
    encoding = {
        "x": {"field": x.column, "type": "quantitative", "title": x.title, "scale": zero, "axis": {"tickCount": 5}},
        "y": {"field": y.column, "type": "quantitative", "title": y.title, "scale": zero, "axis": {"tickCount": 5}},
        "color": colour(frame["objective"], settings=settings),
        "description": TIP,
    }
    layers: list[Spec] = [{"mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.9}, "encoding": encoding}]
    for along in ("x", "y"):
        if f"low_{along}" in frame:
            rule = interval_layer(encoding, along)
            rule["encoding"][along]["field"], rule["encoding"][f"{along}2"]["field"] = f"low_{along}", f"high_{along}"
            layers.append(rule)
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
