"""The paper's figures 1-7 from a study's own numbers, with the intervals of its tables.

What figures 3-6 of the paper show exactly is not known here; they are drawn as their titles suggest.
"""

import pandas as pd

from analysis.figures.charts import Axis, coincides, line_panel, small_multiples
from analysis.figures.figure_data import Drawn, Figure, FigureData, interval_columns, minus_baseline, over_seeds
from analysis.figures.vega_lite import Spec
from analysis.headline import held_out_rewards, sampled_entry
from analysis.study import NotMeasured
from analysis.table_columns import Scores, average_column, average_columns, largest_metric, metric_title

SMOOTHED_STEPS = 5
"""RL steps in the running mean of a curve."""

CURVE_POINTS = 60
"""Most points of a curve, so that a page with hundreds of cells stays small."""


def pretraining(data: FigureData) -> Drawn:
    """Figures 1-2: perplexity converges to the same value, entropy splits by beta."""
    benchmarks = data.benchmarks("pretrain")
    panels, parts = [], []
    for metric, title in (("perplexity", "perplexity"), ("entropy", "entropy (nats)")):
        # The mean over the held-out texts that have it.
        texts = [name for name, text in benchmarks.items() if text.group == "text" and metric in text.metrics]
        curve = data.curve("pretrain", Scores(tuple((name, metric) for name in texts), factor=1)) if texts else None
        if curve is None or curve.empty:
            continue
        axis = Axis("tokens", "pre-training tokens")
        # Perplexity falls over orders of magnitude, so its axis is logarithmic.
        drawn, part = _curve_panels(data, curve.astype({"tokens": float}), axis, title=title)
        panels += drawn
        parts.append(part.assign(metric=metric))
    if not panels:
        raise NotMeasured("no perplexity or entropy of held-out text in pre-training")
    return Drawn(panels, f"On held-out text over pre-training. {INTERVALS}", pd.concat(parts))


def base_scores(data: FigureData) -> Drawn:
    """Figures 3-4: average scores over pre-training and mid-training."""
    panels, parts = [], []
    for stage, title in (("pretrain", "pre-training"), ("midtrain", "mid-training")):
        (scores,) = average_column(data.benchmarks(stage), stage).values()
        curve = data.curve(stage, scores)
        if scores.pairs and len(curve):
            axis = Axis("tokens", f"{title} tokens")
            drawn, part = _curve_panels(data, curve.astype({"tokens": float}), axis, title="average score (percent)")
            panels += drawn
            parts.append(part.assign(stage=stage))
    if not panels:
        raise NotMeasured("no checkpoint with scores of all benchmarks")
    caption = f"Average over the base models' benchmarks, as in their tables. {INTERVALS}"
    return Drawn(panels, caption, pd.concat(parts))


def rl_scores(data: FigureData) -> Drawn:
    """Figures 5-6: average results over RL."""
    panels, parts = [], []
    columns = average_columns(data.benchmarks("grpo"))
    for metric in ("avg", "pass"):
        # Of several sizes the largest.
        sized = [scores for scores in columns.values() if scores.pairs and scores.pairs[0][1].startswith(f"{metric}@")]
        curve = data.curve("grpo", sized[-1]) if sized else None
        if curve is not None and len(curve):
            title = f"{metric_title(sized[-1].pairs[0][1])} (percent)"
            drawn, part = _curve_panels(data, curve, Axis("step", "RL step"), title=title)
            panels += drawn
            parts.append(part.assign(metric=metric))
    if not panels:
        raise NotMeasured("no RL step with results of all mathematics benchmarks")
    caption = f"Average over the held-out mathematics benchmarks; step 0 is the model that RL starts from. {INTERVALS}"
    return Drawn(panels, caption, pd.concat(parts))


INTERVALS = (
    "Bands are 95 % intervals, as in the tables; where they are wider than the panel they are cut. Where the lines "
    "coincide, small panels show each setting's difference from cross-entropy."
)


def _curve_panels(data: FigureData, curve: pd.DataFrame, axis: Axis, *, title: str) -> tuple[list[Spec], pd.DataFrame]:
    """A panel of all settings, and small ones of the differences if the lines coincide; also the numbers."""
    is_log = title == "perplexity"
    panels = [line_panel(curve, axis, title, settings=data.settings, log=is_log)]
    if coincides(curve, axis.column) and data.baseline is not None:
        differences = minus_baseline(curve, axis.column, data.baseline)
        if len(differences):
            name = f"{title.partition(' (')[0]} − {data.baseline}’s"
            panels += small_multiples(differences, axis, name, settings=data.settings)
    return panels, curve.drop(columns="entry")


def rl_curves(data: FigureData) -> Drawn:
    """Figure 7: entropy and response length in RL, with the reward and the pass@k that they buy."""
    rows = data.study.curves
    rows = rows[(rows["model"] == data.model) & (rows["stage"] == "grpo")]
    columns = {"reward": "reward", "entropy": "entropy (nats)", "response_length": "response length (tokens)"}
    # Pass@k of the training groups, at the largest k that a ledger has.
    if largest := largest_metric((name for name in map(str, rows.columns) if rows[name].notna().any()), "pass"):
        columns[largest] = f"{largest} of the training groups"
    axis = Axis("step", "RL step")
    panels, parts = [], []
    for column, title in columns.items():
        if column not in rows or rows[column].isna().all():
            continue
        drawn = thinned(_smoothed(rows[rows[column].notna()], column), "step")
        panels.append(line_panel(drawn, axis, title, settings=data.settings, points=False))
        parts.append(drawn.assign(metric=column))
        if data.baseline is not None and coincides(drawn, "step"):
            differences = thinned(_smoothed(_minus(rows, column, data.baseline), column), "step")
            name = f"{title.partition(' (')[0]} − {data.baseline}’s"
            panels += small_multiples(differences, axis, name, settings=data.settings)
    # Held-out problems are measured at few steps, and have intervals over seeds or problems.
    held_out = [
        {"objective": setting, "step": float(step), **interval_columns(sampled_entry(sampled, 1))}
        for (model, setting), steps in held_out_rewards(data.study).items()
        for step, sampled in steps.items()
        if model == data.model
    ]
    if held_out:
        panels.append(line_panel(pd.DataFrame(held_out), axis, "held-out reward (percent)", settings=data.settings))
        parts.append(pd.DataFrame(held_out).assign(metric="held_out_reward"))
    if not panels:
        raise NotMeasured("no finished RL run")
    caption = (
        f"In training, running mean over {SMOOTHED_STEPS} steps; bands are the range of the steps and seeds that it "
        "averages. Held-out problems as measured, with 95 % intervals."
    )
    return Drawn(panels, caption, pd.concat(parts))


def _smoothed(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean over seeds and then over the steps around each step, with the range of what is averaged."""
    drawn = over_seeds(rows, ["objective", "step"], column).sort_values(["objective", "step"])
    curves = drawn.groupby("objective", sort=False)
    ranges = {
        "mean": curves["mean"].rolling(SMOOTHED_STEPS, min_periods=1, center=True).mean(),
        "low": curves["low"].rolling(SMOOTHED_STEPS, min_periods=1, center=True).min(),
        "high": curves["high"].rolling(SMOOTHED_STEPS, min_periods=1, center=True).max(),
    }
    return drawn.assign(**{name: values.reset_index(level=0, drop=True) for name, values in ranges.items()})


def _minus(rows: pd.DataFrame, column: str, baseline: str) -> pd.DataFrame:
    """A column of RL's curves minus the baseline's, at the same seed and step."""
    kept = rows.loc[rows[column].notna(), ["objective", "seed", "step", column]]
    reference = kept[kept["objective"] == baseline].drop(columns="objective")
    pairs = kept[kept["objective"] != baseline].merge(reference, on=["seed", "step"], suffixes=("", " of baseline"))
    return pairs.assign(**{column: pairs[column] - pairs[f"{column} of baseline"]})


def thinned(frame: pd.DataFrame, x: str) -> pd.DataFrame:
    """Returns the rows at about `CURVE_POINTS` evenly spread values of `x`, the first and last included."""
    steps = sorted(frame[x].unique())
    every = -(-len(steps) // CURVE_POINTS)
    return frame[frame[x].isin({*steps[::every], steps[-1]})]


PAPER_FIGURES = (
    Figure("pretraining", "Perplexity and entropy", pretraining, (1, 2)),
    Figure("scores", "Base-model scores", base_scores, (3, 4)),
    Figure("rl-scores", "RL results", rl_scores, (5, 6)),
    Figure("rl", "RL: reward, entropy, response length and pass@k", rl_curves, (7, 7)),
)
