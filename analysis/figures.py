"""The paper's figures 1-7 from a study's own rows, as Vega-Lite descriptions: one description for page and file.

A chart is one or a few panels; a page lays them out and shows values under the pointer, a file has them in a row.
Curves are means over seeds, with the seeds' range as a band.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.paper_tables import GROUPS, counterpart
from analysis.reference import EXPERTS
from analysis.study import Study
from analysis.tables import score_metric
from analysis.vega_lite import SCHEMA, Spec

COLOURS = {
    "ce": "#808080",
    "precision": "#0072b2",
    "diversity": "#d55e00",
    "tail_penalty": "#009e73",
    "head_reward": "#cc79a7",
}
"""Okabe and Ito's colours, which the colour-blind tell apart and which read on light and dark."""

OTHERS = ("#56b4e9", "#e69f00", "#b39b00", "#7b5ea7", "#8c564b", "#17becf", "#7f9c3b", "#a05195")

STEPS_SMOOTHED = 5
"""RL steps in the running mean of a curve."""

CURVE_POINTS = 60
"""Points of a curve at most: a page of hundreds of cells stays small."""


@dataclass(frozen=True)
class Chart:
    """A figure: its panels in Vega-Lite, the data that they draw, and what it shows."""

    name: str
    number: int | None
    """The paper's number; None for what the paper does not have."""
    title: str
    caption: str
    panels: tuple[Spec, ...]
    data: pd.DataFrame
    """What is drawn, for those who read numbers."""


def build_figures(study: Study) -> list[Chart]:
    """Figures 1-7 of a study, for every model in it; those for which nothing has been measured are left out."""
    charts: list[Chart | None] = []
    for model in study.runs["model"].unique():
        configs = [study.specs[s]["config"] for s in study.runs.loc[study.runs["model"] == model, "stage_run"]]
        experts = counterpart(model, next((c["model"] for c in configs if "model" in c), {})) in EXPERTS
        charts += [
            _pretraining(study, model, 2 if experts else 1),
            _base_scores(study, model, 4 if experts else 3),
            _rl_scores(study, model, 6 if experts else 5),
            _rl_curves(study, model),
        ]
    found = [chart for chart in charts if chart]
    return sorted(found, key=lambda chart: chart.number or 99)


def objectives(names: Iterable[str]) -> list[str]:
    """The settings in their usual order, others after them by name."""
    found = set(names)
    return [name for name in COLOURS if name in found] + sorted(found - set(COLOURS))


def colour(names: Iterable[str], **more: Any) -> Spec:
    """The encoding that gives every setting its colour."""
    order = objectives(names)
    others = [name for name in order if name not in COLOURS]
    shades = {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(others)}
    scale = {"domain": order, "range": [COLOURS.get(name) or shades[name] for name in order]}
    return {"field": "objective", "type": "nominal", "scale": scale, "title": None, **more}


def values(frame: pd.DataFrame) -> Spec:
    """A frame as Vega-Lite data: five significant digits, missing numbers left out."""
    rows = []
    for record in frame.to_dict("records"):
        row = {str(k): v.item() if hasattr(v, "item") else v for k, v in record.items() if not _empty(v)}
        rows.append({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()})
    return {"values": rows}


def _empty(value: Any) -> bool:
    return value is None or value is pd.NA or (not isinstance(value, str) and not math.isfinite(value))


def over_seeds(frame: pd.DataFrame, by: list[str], column: str = "value") -> pd.DataFrame:
    """Columns `by`, `mean`, `low`, `high` (range over seeds) and `seeds`."""
    grouped = frame.groupby(by, observed=True, sort=False)[column]
    return grouped.agg(mean="mean", low="min", high="max", seeds="count").reset_index()


def lines(frame: pd.DataFrame, x: str, title: str, x_title: str, *, log: bool = False, points: bool = True) -> Spec:
    """A panel of curves with bands; `frame` is one of `over_seeds`, with `objective` and `x`."""
    legend = {"orient": "bottom", "columns": 3}
    line = {"type": "line", "strokeWidth": 2, **({"point": {"size": 28}} if points else {})}
    tooltip = [
        {"field": "objective", "type": "nominal"},
        {"field": x, "type": "quantitative", "title": x_title, "format": ","},
        {"field": "mean", "type": "quantitative", "format": ".4g"},
        {"field": "low", "type": "quantitative", "format": ".4g", "title": "lowest seed"},
        {"field": "high", "type": "quantitative", "format": ".4g", "title": "highest seed"},
        {"field": "seeds", "type": "quantitative"},
    ]
    x_axis = {"field": x, "type": "quantitative", "title": x_title, "axis": {"format": "~s", "tickCount": 5}}
    scale: Spec = {"type": "log"} if log else {"zero": False}
    y_axis = {
        "type": "quantitative",
        "title": None,
        "scale": scale,
        "axis": {"tickCount": 5, **({"format": "~s"} if log else {})},
    }
    shade = colour(frame["objective"], legend=legend)
    layers: list[Spec] = []
    if (frame["seeds"] > 1).any():
        layers.append(
            {
                "mark": {"type": "area", "opacity": 0.15},
                "encoding": {"x": x_axis, "y": {**y_axis, "field": "low"}, "y2": {"field": "high"}, "color": shade},
            }
        )
    encoding = {"x": x_axis, "y": {**y_axis, "field": "mean"}, "color": shade, "tooltip": tooltip}
    layers.append({"mark": line, "encoding": encoding})
    return {"title": title, "data": values(frame[["objective", x, "mean", "low", "high", "seeds"]]), "layer": layers}


def measured(study: Study, model: str, stage: str) -> pd.DataFrame:
    """The plain measurements of a model at a stage."""
    rows = study.measurements
    return rows[(rows["model"] == model) & (rows["stage"] == stage) & (rows["variant"] == "")]


def averages(rows: pd.DataFrame, at: str, kind: str | None = None) -> pd.DataFrame:
    """Percent, averaged over benchmarks, for each setting, seed and value of `at`; only where all benchmarks are there.

    `kind` is the metric (`avg`, `pass`), with its largest n or k, of the mathematics benchmarks; None is the score that
    the base models' tables average.
    """
    chosen = []
    for (group, benchmark), own in rows.groupby(["group", "benchmark"], observed=True, sort=False):
        metrics = own["metric"].unique()
        metric: str | None
        if kind is None:
            metric = score_metric(metrics, str(group)) if group in GROUPS else None
        else:
            sizes = sorted((int(m.split("@")[1]), m) for m in metrics if m.startswith(f"{kind}@"))
            metric = sizes[-1][1] if sizes and group == "math" else None
        if metric:
            chosen.append(own[own["metric"] == metric].assign(benchmark=str(benchmark)))
    if not chosen:
        return pd.DataFrame(columns=["objective", "seed", at, "value"])
    together = pd.concat(chosen)
    found = together.groupby(["objective", "seed", at], observed=True, sort=False)["value"].agg(["mean", "count"])
    complete = found.loc[found["count"] == len(chosen), "mean"] * 100
    return complete.rename("value").reset_index()


def _pretraining(study: Study, model: str, number: int) -> Chart | None:
    """Figures 1-2: perplexity converges alike, entropy splits by beta."""
    rows = measured(study, model, "pretrain")
    rows = rows[(rows["group"] == "text") & rows["metric"].isin(["perplexity", "entropy"])]
    if rows.empty:
        return None
    data = over_seeds(rows.astype({"tokens": float}), ["metric", "objective", "tokens"])
    panels = tuple(
        lines(data[data["metric"] == metric], "tokens", title, "pre-training tokens", log=metric == "perplexity")
        for metric, title in (("perplexity", "perplexity"), ("entropy", "entropy (nats)"))
    )
    caption = "On held-out text over pre-training."
    return Chart(f"pretraining-{model}", number, f"Perplexity and entropy, {model}", caption, panels, data)


def _base_scores(study: Study, model: str, number: int) -> Chart | None:
    """Figures 3-4, which are not described in what is known of the paper: the natural reading."""
    panels, parts = [], []
    for stage, title in (("pretrain", "pre-training"), ("midtrain", "mid-training")):
        scores = averages(measured(study, model, stage), "tokens")
        if len(scores):
            data = over_seeds(scores.astype({"tokens": float}), ["objective", "tokens"])
            panels.append(lines(data, "tokens", "average score (percent)", f"{title} tokens"))
            parts.append(data.assign(stage=stage))
    if not panels:
        return None
    caption = "Average over the base models' benchmarks, as in their tables."
    return Chart(f"scores-{model}", number, f"Base-model scores, {model}", caption, tuple(panels), pd.concat(parts))


def _rl_scores(study: Study, model: str, number: int) -> Chart | None:
    """Figures 5-6, which are not described in what is known of the paper: the natural reading."""
    rows = measured(study, model, "grpo")
    panels, parts = [], []
    for kind, title in (("avg", "Avg@n"), ("pass", "Pass@k")):
        scores = averages(rows, "step", kind)
        if len(scores):
            data = over_seeds(scores.astype({"step": float}), ["objective", "step"])
            panels.append(lines(data, "step", f"{title} (percent)", "RL step"))
            parts.append(data.assign(metric=kind))
    if not panels:
        return None
    caption = "Average over the held-out mathematics benchmarks; step 0 is the mid-trained model."
    return Chart(f"rl-scores-{model}", number, f"RL results, {model}", caption, tuple(panels), pd.concat(parts))


def _rl_curves(study: Study, model: str) -> Chart | None:
    """Figure 7: entropy and response length in RL, with the reward and the pass@k that they buy."""
    rows = study.curves
    rows = rows[(rows["model"] == model) & (rows["stage"] == "grpo")]
    if rows.empty:
        return None
    panels, parts = [], []
    columns = {"reward": "reward", "entropy": "entropy (nats)", "response_length": "response length (tokens)"}
    passes = [name for name in map(str, rows.columns) if name.startswith("pass@") and rows[name].notna().any()]
    if passes:
        largest = max(passes, key=lambda name: int(name.removeprefix("pass@")))
        columns[largest] = f"{largest} of the training groups"
    columns["held_out_reward"] = "reward on held-out problems"
    for column, title in columns.items():
        if column not in rows or rows[column].isna().all():
            continue
        data = over_seeds(rows[rows[column].notna()], ["objective", "step"], column).sort_values(["objective", "step"])
        held_out = column == "held_out_reward"  # measured at few steps, so neither smoothed nor without points
        if not held_out:
            smooth = data.groupby("objective", sort=False)[["mean", "low", "high"]]
            rolled = smooth.rolling(STEPS_SMOOTHED, min_periods=1, center=True).mean().reset_index(level=0, drop=True)
            data = data.assign(**{name: rolled[name] for name in ("mean", "low", "high")})
        data = thinned(data, "step")
        panels.append(lines(data, "step", title, "RL step", points=held_out))
        parts.append(data.assign(metric=column))
    if not panels:
        return None
    caption = f"Of training, running mean over {STEPS_SMOOTHED} steps; held-out problems as measured."
    title = f"RL: reward, entropy, response length and pass@k, {model}"
    return Chart(f"rl-{model}", 7, title, caption, tuple(panels), pd.concat(parts))


def thinned(frame: pd.DataFrame, x: str) -> pd.DataFrame:
    """At most about `CURVE_POINTS` different values of `x`, the ends kept."""
    steps = sorted(frame[x].unique())
    every = -(-len(steps) // CURVE_POINTS)
    return frame[frame[x].isin({*steps[::every], steps[-1]})]


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
"""Looks: everything that is not data takes the colour of the text around it, light or dark."""


def page_specs(chart: Chart) -> list[Spec]:
    """The panels for a page: as wide as their place, with their data column by column, which `report.js` turns back."""
    frame = {"$schema": SCHEMA, "width": "container", "height": 220, "config": CONFIG}
    return [{**frame, **panel, "data": _by_column(panel["data"]["values"])} for panel in chart.panels]


def _by_column(rows: list[Spec]) -> Spec:
    """Rows as name -> column, a third of their size as text; words stand in it once, and rows point at them."""
    columns: Spec = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        column = [row.get(name) for row in rows]
        if all(isinstance(value, str) for value in column):
            words = {word: place for place, word in enumerate(dict.fromkeys(column))}
            columns[name] = {"words": list(words), "at": [words[word] for word in column]}
        else:
            columns[name] = column
    return {"columns": columns, "rows": len(rows)}
