"""The paper's figures 1-7 from a study's own rows. Curves are means over seeds, bands the range over seeds.

What figures 3-6 of the paper show exactly is not known here; they are drawn as their titles suggest.
"""

import pandas as pd

from analysis.figures.charts import Axis, line_panel
from analysis.figures.figure_data import Drawn, Figure, FigureData, averages, over_seeds
from analysis.study import NotMeasured
from analysis.table_columns import largest_metric

SMOOTHED_STEPS = 5
"""RL steps in the running mean of a curve."""

CURVE_POINTS = 60
"""Most points of a curve, so that a page with hundreds of cells stays small."""


def pretraining(data: FigureData) -> Drawn:
    """Figures 1-2: perplexity converges to the same value, entropy splits by beta."""
    rows = data.measured("pretrain")
    rows = rows[(rows["group"] == "text") & rows["metric"].isin(["perplexity", "entropy"])]
    if rows.empty:
        raise NotMeasured("no perplexity or entropy of held-out text in pre-training")
    # The mean over the held-out texts of each seed, then over seeds.
    by = ["metric", "objective", "tokens", "seed"]
    by_seed = rows.groupby(by, observed=True, sort=False)["value"].mean().reset_index()
    drawn = over_seeds(by_seed.astype({"tokens": float}), by[:-1])
    axis = Axis("tokens", "pre-training tokens")
    # Perplexity falls over orders of magnitude, so its axis is logarithmic.
    panels = [
        line_panel(drawn[drawn["metric"] == metric], axis, title, settings=data.settings, log=metric == "perplexity")
        for metric, title in (("perplexity", "perplexity"), ("entropy", "entropy (nats)"))
    ]
    return Drawn(panels, "On held-out text over pre-training.", drawn)


def base_scores(data: FigureData) -> Drawn:
    """Figures 3-4: average scores over pre-training and mid-training."""
    panels, parts = [], []
    for stage, title in (("pretrain", "pre-training"), ("midtrain", "mid-training")):
        scores = averages(data.measured(stage), "tokens")
        if len(scores):
            drawn = over_seeds(scores.astype({"tokens": float}), ["objective", "tokens"])
            axis = Axis("tokens", f"{title} tokens")
            panels.append(line_panel(drawn, axis, "average score (percent)", settings=data.settings))
            parts.append(drawn.assign(stage=stage))
    if not panels:
        raise NotMeasured("no checkpoint with scores of all benchmarks")
    return Drawn(panels, "Average over the base models' benchmarks, as in their tables.", pd.concat(parts))


def rl_scores(data: FigureData) -> Drawn:
    """Figures 5-6: average results over RL."""
    rows = data.measured("grpo")
    panels, parts = [], []
    for metric, title in (("avg", "Avg@n"), ("pass", "Pass@k")):
        scores = averages(rows, "step", metric)
        if len(scores):
            drawn = over_seeds(scores.astype({"step": float}), ["objective", "step"])
            panels.append(line_panel(drawn, Axis("step", "RL step"), f"{title} (percent)", settings=data.settings))
            parts.append(drawn.assign(metric=metric))
    if not panels:
        raise NotMeasured("no RL step with results of all mathematics benchmarks")
    caption = "Average over the held-out mathematics benchmarks; step 0 is the mid-trained model."
    return Drawn(panels, caption, pd.concat(parts))


def rl_curves(data: FigureData) -> Drawn:
    """Figure 7: entropy and response length in RL, with the reward and the pass@k that they buy."""
    rows = data.study.curves
    rows = rows[(rows["model"] == data.model) & (rows["stage"] == "grpo")]
    columns = {"reward": "reward", "entropy": "entropy (nats)", "response_length": "response length (tokens)"}
    # Pass@k of the training groups, at the largest k that a ledger has.
    if largest := largest_metric((name for name in map(str, rows.columns) if rows[name].notna().any()), "pass"):
        columns[largest] = f"{largest} of the training groups"
    columns["held_out_reward"] = "reward on held-out problems"
    panels, parts = [], []
    for column, title in columns.items():
        if column not in rows or rows[column].isna().all():
            continue
        # Average over seeds first, then smooth each setting's curve.
        drawn = over_seeds(rows[rows[column].notna()], ["objective", "step"], column).sort_values(["objective", "step"])
        is_held_out = column == "held_out_reward"  # measured at few steps: shown as points, not smoothed
        if not is_held_out:
            curves = drawn.groupby("objective", sort=False)[["mean", "low", "high"]]
            smooth = curves.rolling(SMOOTHED_STEPS, min_periods=1, center=True).mean().reset_index(level=0, drop=True)
            drawn = drawn.assign(**{name: smooth[name] for name in ("mean", "low", "high")})
        drawn = thinned(drawn, "step")
        axis = Axis("step", "RL step")
        panels.append(line_panel(drawn, axis, title, settings=data.settings, points=is_held_out))
        parts.append(drawn.assign(metric=column))
    if not panels:
        raise NotMeasured("no finished RL run")
    caption = f"In training, running mean over {SMOOTHED_STEPS} steps; held-out problems as measured."
    return Drawn(panels, caption, pd.concat(parts))


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
