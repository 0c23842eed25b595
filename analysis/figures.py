"""The paper's curves from a study's own rows: what pre-training does to the distribution, and what RL makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FormatStrFormatter

from analysis.frames import Study

COLOURS = {
    "ce": "#4d4d4d",
    "precision": "#0072b2",
    "diversity": "#d55e00",
    "tail_penalty": "#009e73",
    "head_reward": "#cc79a7",
}
"""Okabe and Ito's colours, which the colour-blind tell apart; other settings take matplotlib's cycle."""

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "none",
    "svg.hashsalt": "shaping",
}

SMOOTHING = 5
"""RL steps in the running mean that is drawn over the single steps."""


@dataclass(frozen=True)
class Chart:
    """A drawn figure with its name and what it shows."""

    name: str
    title: str
    figure: Figure


def build_figures(study: Study) -> list[Chart]:
    """All figures of a study; those for which nothing has been measured are left out."""
    charts = []
    with mpl.rc_context(STYLE):
        for model in sorted(study.runs["model"].unique()):
            charts += [
                chart for chart in (_pretraining(study, model), _rl(study, model), _before_after(study, model)) if chart
            ]
    return charts


def _settings(frame: pd.DataFrame) -> list[str]:
    found = list(dict.fromkeys(frame["objective"]))
    return [name for name in COLOURS if name in found] + [name for name in found if name not in COLOURS]


def _lines(
    axes: Axes, frame: pd.DataFrame, x: str, y: str, draw: Callable[[Axes, pd.Series, str, str | None], None]
) -> None:
    """One line a setting: the mean over seeds, by `draw`, and the seeds' range as a band."""
    for name in _settings(frame):
        by_step = frame[frame["objective"] == name].groupby(x)[y]
        mean = by_step.mean()
        draw(axes, mean, name, COLOURS.get(name))
        if frame["seed"].nunique() > 1:
            axes.fill_between(mean.index, by_step.min(), by_step.max(), color=COLOURS.get(name), alpha=0.12, lw=0)


def _markers(axes: Axes, mean: pd.Series, name: str, colour: str | None) -> None:
    axes.plot(mean.index, mean, marker="o", ms=3.5, lw=1.4, label=name, color=colour)


def _smoothed(axes: Axes, mean: pd.Series, name: str, colour: str | None) -> None:
    line = axes.plot(
        mean.index, mean.rolling(SMOOTHING, min_periods=1, center=True).mean(), lw=1.6, label=name, color=colour
    )
    axes.plot(mean.index, mean, lw=0.6, alpha=0.35, color=line[0].get_color())


def _pretraining(study: Study, model: str) -> Chart | None:
    """Figures 1-2: perplexity converges alike, entropy splits by beta."""
    measured = study.measurements
    rows = measured[(measured["model"] == model) & (measured["stage"] == "pretrain") & (measured["group"] == "text")]
    if rows.empty:
        return None
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    for axes, metric, label in zip(
        figure.subplots(1, 2), ("perplexity", "entropy"), ("perplexity", "entropy (nats)"), strict=True
    ):
        _lines(axes, rows[rows["metric"] == metric], "tokens", "value", _markers)
        axes.set(xlabel="pre-training tokens", ylabel=label, title=f"{label} on held-out text")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if metric == "perplexity":
            axes.set_yscale("log")
            for axis_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                axis_formatter(FormatStrFormatter("%g"))
    _legend(figure)
    return Chart(f"pretraining-{model}", f"Perplexity and entropy over pre-training, {model}", figure)


def _rl(study: Study, model: str) -> Chart | None:
    """Figure 7 and its companions: reward, pass@k, entropy and response length over RL steps."""
    rows = study.curves[(study.curves["model"] == model) & (study.curves["stage"] == "grpo")]
    if rows.empty:
        return None
    columns = {"reward": "reward", "entropy": "entropy (nats)", "response_length": "response length (tokens)"}
    passes = [name for name in map(str, rows.columns) if name.startswith("pass@") and rows[name].notna().any()]
    if passes:
        largest = max(passes, key=lambda name: int(name.removeprefix("pass@")))
        columns[largest] = f"{largest} of the training groups"
    if "held_out_reward" in rows and rows["held_out_reward"].notna().any():
        columns["held_out_reward"] = "reward on held-out problems"
    figure = Figure(figsize=(7.2, 2.7 * -(-len(columns) // 3)), layout="constrained")
    grid = figure.subplots(-(-len(columns) // 3), 3, squeeze=False).flatten()
    for axes, (column, label) in zip(grid, columns.items(), strict=False):
        _lines(axes, rows[rows[column].notna()], "step", column, _markers if column.startswith("held") else _smoothed)
        axes.set(xlabel="RL step", title=label)
    for axes in grid[len(columns) :]:
        axes.set_axis_off()
    _legend(figure)
    return Chart(f"rl-{model}", f"RL: reward, entropy, response length and pass@k, {model}", figure)


def _before_after(study: Study, model: str) -> Chart | None:
    """Avg@n on held-out problems before RL and after it, a pair of bars a setting."""
    measured = study.measurements
    rows = measured[
        (measured["model"] == model)
        & (measured["stage"] == "grpo")
        & (measured["group"] == "math")
        & measured["metric"].str.startswith("avg@")
    ]
    if rows.empty:
        return None
    last = rows["step"].max()
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axes = figure.subplots()
    names = _settings(rows)
    for shift, step, alpha, label in ((-0.2, 0, 0.4, "before RL"), (0.2, last, 1.0, f"after {last} steps")):
        mean = rows[rows["step"] == step].groupby("objective")["value"].mean().reindex(names) * 100
        bars = axes.bar(
            [i + shift for i in range(len(names))],
            mean.to_numpy(),
            width=0.38,
            color=[COLOURS.get(name, "C0") for name in names],
            alpha=alpha,
            label=label,
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="percent right (Avg@n)", title="Held-out problems, before RL (pale) and after")
    return Chart(f"before-after-{model}", f"Held-out problems before and after RL, {model}", figure)


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, max(1, len(labels))), frameon=False)
