"""The headline's figure: each setting's entropy and RL result as differences from cross-entropy, with intervals."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.charts import TIP, Chart, colour, setting_order, values
from analysis.figures.vega_lite import Spec
from analysis.headline import ENTROPY, Headline, HeadlineRow, Measure
from analysis.headline_words import difference_text
from analysis.tables import Entry

MOST_ROWS = 8
"""Settings in the figure, and in the table before the others are asked for."""


def headline_chart(headline: Headline) -> Chart:
    """Returns the figure; without a baseline, or with one setting, it shows the numbers themselves."""
    rows = first_rows(headline)
    settings = setting_order(row.setting for row in headline.rows)
    panels: list[Spec] = []
    parts = []
    compares = any(row.differences for row in rows)
    seeds = _by_seed(headline, rows, compares=compares)
    for name, measure in (("entropy", ENTROPY), ("result", headline.result)):
        records = _differences(headline, rows, measure) if compares else _numbers(headline, rows, name)
        if not records:
            continue
        drawn = pd.DataFrame(records)
        what = {"entropy": "entropy", "result": "after RL"}[name]
        unit = "points" if compares and measure.unit == "percent" else measure.unit
        title = [what, f"minus ce’s ({unit})" if compares else f"({unit})"]
        panel = interval_panel(drawn, title, settings=settings, zero=compares, labels=not panels)
        panels.append(with_seeds(panel, seeds[name], ends=drawn[["low", "high"]].to_numpy(float)))
        parts.append(drawn.assign(what=" ".join(title)))
    caption = f"95 % intervals; small dots: seeds. Entropy after pre-training; after RL: {headline.result.title}."
    return Chart("headline", None, "The result", caption, tuple(panels), pd.concat(parts) if parts else pd.DataFrame())


def first_rows(headline: Headline) -> list[HeadlineRow]:
    """The rows that the first screen shows: all, or the baselines and those with the largest differences after RL."""
    if len(headline.rows) <= MOST_ROWS:
        return headline.rows

    def size(row: HeadlineRow) -> float:
        difference = row.differences.get("result") or row.differences.get("entropy")
        return float("inf") if not row.differences else abs(difference.estimate.value) if difference else 0.0

    chosen = sorted(headline.rows, key=size, reverse=True)[:MOST_ROWS]
    return [row for row in headline.rows if row in chosen]


def _differences(headline: Headline, rows: list[HeadlineRow], measure: Measure) -> list[dict[str, object]]:
    records: list[dict[str, object]] = []
    for row in rows:
        if difference := row.differences.get(measure.name):
            estimate = difference.estimate
            records.append(
                {
                    "row": headline.name(row),
                    "objective": row.setting,
                    "mean": estimate.value,
                    "low": estimate.value if estimate.low is None else estimate.low,
                    "high": estimate.value if estimate.high is None else estimate.high,
                    "tip": f"{headline.name(row)}; {difference_text(difference, measure)}; {difference.word}",
                }
            )
    return records


def _numbers(headline: Headline, rows: list[HeadlineRow], name: str) -> list[dict[str, object]]:
    records: list[dict[str, object]] = []
    for row in rows:
        entry: Entry = row.entropy if name == "entropy" else row.after
        if entry.value is not None:
            low, high = (entry.value if end is None else end for end in (entry.low, entry.high))
            text = f"{headline.name(row)}; {entry}"
            numbers = {"mean": entry.value, "low": low, "high": high}
            records.append({"row": headline.name(row), "objective": row.setting, **numbers, "tip": text})
    return records


def interval_panel(drawn: pd.DataFrame, title: list[str], *, settings: list[str], zero: bool, labels: bool) -> Spec:
    """Returns a panel with a point and its interval in each row; `zero` adds the line of no difference.

    `drawn` has the columns `row objective mean low high tip`; without `labels` the rows have no names.
    """
    axis = {"labelLimit": 110, "labelFontSize": 12, "labelPadding": 6, "ticks": False, "domain": False}
    y: Spec = {
        "field": "row",
        "type": "nominal",
        "sort": None,
        "title": None,
        "axis": axis if labels else {**axis, "labels": False},
    }
    axis_of_numbers = {"tickCount": 2}
    x: Spec = {"type": "quantitative", "title": None, "scale": {"zero": False}, "axis": axis_of_numbers}
    shade = colour(drawn["objective"], settings=settings, legend=None)
    ends = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.45},
            "encoding": {"y": y, **ends, "color": shade, "description": TIP},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1},
            "encoding": {"y": y, "x": {**x, "field": "mean"}, "color": shade, "description": TIP},
        },
    ]
    if zero:
        mark = {"type": "rule", "strokeDash": [4, 3], "color": "currentColor", "opacity": 0.7}
        layers.insert(0, {"mark": mark, "data": {"values": [{}]}, "encoding": {"x": {"datum": 0}}})
    height = 27 * drawn["row"].nunique()
    return {"title": title, "width": 145, "height": height, "data": values(drawn), "layer": layers}


def _by_seed(headline: Headline, rows: list[HeadlineRow], *, compares: bool) -> dict[str, list[dict[str, object]]]:
    """Measure -> one record for each row and seed: `row objective seed value tip`; none with one seed."""
    records: dict[str, list[dict[str, object]]] = {"entropy": [], "result": []}
    for row in rows:
        for name, measure, column in (("entropy", ENTROPY, "entropy"), ("result", headline.result, "after")):
            by_seed = row.by_seed.get(column, {})
            if compares:
                found = row.differences.get(name)
                by_seed = dict(zip(found.seeds, found.by_seed, strict=True)) if found else {}
            unit = "points" if compares and measure.unit == "percent" else measure.unit
            sign = "+" if compares else ""
            for seed, value in by_seed.items() if len(by_seed) > 1 else ():
                text = f"{value:{sign}.{measure.digits}f} {unit}".replace("-", "−")
                place = {"row": headline.name(row), "objective": row.setting, "seed": seed, "value": value}
                records[name].append({**place, "tip": f"{headline.name(row)}, seed {seed}; {text}"})
    return records


LABELLED_SEEDS = 5
"""Most seeds of a row whose dots have their numbers written next to them."""
TOGETHER = 0.06
"""Dots nearer than this share of a panel's width have one label."""


def with_seeds(panel: Spec, records: list[dict[str, object]], *, ends: np.ndarray[Any, Any]) -> Spec:
    """Returns a panel of intervals with a small dot for each seed, labelled by its number where there is room.

    `records` have `row objective seed value tip`; `ends` are those of the panel's intervals.
    """
    if not records:
        return panel
    drawn = pd.DataFrame(records)
    width = float(max(ends.max(), drawn["value"].max()) - min(ends.min(), drawn["value"].min())) or 1.0
    interval, point = panel["layer"][-2:]
    encoding = {"y": point["encoding"]["y"], "x": {**point["encoding"]["x"], "field": "value"}}
    dot = {"type": "point", "filled": True, "size": 16, "opacity": 1, "stroke": "currentColor", "strokeWidth": 0.6}
    colours = {"color": point["encoding"]["color"], "description": TIP}
    layers = [{"mark": dot, "data": values(drawn), "encoding": {**encoding, **colours}}]
    if drawn.groupby("row").size().max() <= LABELLED_SEEDS:
        mark = {"type": "text", "dy": -7, "fontSize": 8, "color": "currentColor"}
        text = {"text": {"field": "label", "type": "nominal"}}
        labels = values(_seed_labels(drawn, width * TOGETHER))
        layers.append({"mark": mark, "data": labels, "encoding": {**encoding, **text}})
    # The mean is drawn last, above the dots.
    return {**panel, "layer": [*panel["layer"][:-2], interval, *layers, point]}


def _seed_labels(drawn: pd.DataFrame, together: float) -> pd.DataFrame:
    """Columns `row value label`: the numbers of seeds, of neighbours joined by commas."""
    labels: list[dict[str, object]] = []
    for row, part in drawn.sort_values("value", kind="stable").groupby("row", sort=False):
        groups: list[list[tuple[float, int]]] = []
        for value, seed in zip(part["value"].tolist(), part["seed"].tolist(), strict=True):
            if groups and value - groups[-1][-1][0] < together:
                groups[-1].append((value, seed))
            else:
                groups.append([(value, seed)])
        for group in groups:
            middle = sum(value for value, _ in group) / len(group)
            labels.append(
                {
                    "row": row,
                    "value": middle,
                    "label": ",".join(str(seed) for _, seed in sorted(group, key=lambda pair: pair[1])),
                }
            )
    return pd.DataFrame(labels)
