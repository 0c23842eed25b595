"""Figures for what the paper leaves open: maps over the knobs, theory, collapse, what predicts RL.

Each function draws one figure of `EXTRA_FIGURES`, or raises `NotMeasured` with what the store lacks.
"""

import numpy as np
import pandas as pd

from analysis.figures.charts import (
    TIP,
    Axis,
    scatter_panel,
    tips,
    values,
)
from analysis.figures.figure_data import Drawn, Figure, FigureData, last_values, over_seeds, text_errors
from analysis.figures.further_figures import (
    calibration,
    forking_tokens,
    scaling,
    temperature_control,
    tempered_rl,
    theory,
)
from analysis.figures.vega_lite import Spec
from analysis.statistics import ALPHA, FEWEST_POINTS, holm, rank_correlations
from analysis.study import NotMeasured
from pipelines.configuration import TOKEN_STAGES


def parameter_maps(data: FigureData) -> Drawn:
    """Entropy after pre-training, RL's result and entropy's fall over beta x lambda x k; measured points are marked."""
    facts = data.facts.dropna(subset=["beta", "lam_head", "lam_tail"])
    if facts["beta"].nunique() < 2 and facts["lam_tail"].nunique() < 2:
        raise NotMeasured("only one setting of the knobs")
    # One row of the map per combination of lambda and k.
    facts = facts.assign(
        knobs=[
            f"{head:g} / {tail:g}" + ("" if pd.isna(k) else f", k = {int(k)}")
            for head, tail, k in zip(facts["lam_head"], facts["lam_tail"], facts["top_k"], strict=True)
        ]
    )
    # One panel per measured quantity.
    panels, parts = [], []
    for column, title in {
        "entropy": "entropy after pre-training (nats)",
        "rl_pass": "Pass@k after RL (percent)",
        "entropy_fall": "share of entropy lost in RL",
    }.items():
        drawn = over_seeds(facts.dropna(subset=[column]), ["beta", "knobs", "objective"], column)
        if len(drawn):
            panels.append(_map_panel(drawn, title))
            parts.append(drawn.assign(what=title))
    if not panels:
        raise NotMeasured("nothing has been measured yet")
    caption = "Each point is a measured setting, the mean over its seeds; empty positions were not run."
    return Drawn(panels, caption, pd.concat(parts))


def _map_panel(drawn: pd.DataFrame, title: str) -> Spec:
    x = {"field": "beta", "type": "ordinal", "title": "beta", "axis": {"labelAngle": 0}}
    y = {"field": "knobs", "type": "ordinal", "title": "lambda head / tail"}
    drawn = drawn.assign(
        tip=tips(drawn, "knobs", ""), text=[f"{mean:.3g}" for mean in drawn["mean"]], range=_ranges(drawn)
    )
    # The tiles show the value; a point marks that the position was measured.
    scale = {"scheme": "viridis"}
    fill = {"field": "mean", "type": "quantitative", "title": None, "scale": scale, "legend": {"orient": "right"}}
    point = {"type": "point", "filled": True, "size": 40, "color": "white", "stroke": "black"}
    layers: list[Spec] = [
        {"mark": "rect", "encoding": {"x": x, "y": y, "color": fill, "description": TIP}},
        {"mark": point, "encoding": {"x": x, "y": y, "description": TIP}},
    ]
    # Few tiles have room for their number and its range over seeds.
    if len(drawn) <= TILES_WITH_NUMBERS:
        for field, shift in (("text", -11), ("range", 13)):
            mark = {"type": "text", "dy": shift, "fontSize": 9, "color": "white", "stroke": "black", "strokeWidth": 2.5,
                    "strokeJoin": "round"}  # fmt: skip
            encoding = {"x": x, "y": y, "text": {"field": field, "type": "nominal"}}
            layers += [{"mark": mark, "encoding": encoding}, {"mark": {**mark, "strokeWidth": 0}, "encoding": encoding}]
    return {"title": title, "data": values(drawn), "layer": layers}


TILES_WITH_NUMBERS = 12


def _ranges(drawn: pd.DataFrame) -> list[str]:
    """The range over seeds of each tile; empty for one seed."""
    return [
        f"{low:.3g} to {high:.3g}" if seeds > 1 else ""
        for low, high, seeds in zip(drawn["low"], drawn["high"], drawn["seeds"], strict=True)
    ]


def entropy_collapse(data: FigureData) -> Drawn:
    """How much entropy RL loses, and how responses change, against the entropy that RL starts from."""
    panels, parts = [], []
    correlations: dict[str, tuple[float, float, int]] = {}
    titles = {"entropy_fall": "share of entropy lost in RL", "length_change": "last response length / first"}
    for column, title in titles.items():
        drawn = data.facts.dropna(subset=["prior_entropy", column])[["objective", "seed", "prior_entropy", column]]
        if drawn.empty:
            continue
        drawn = drawn.merge(text_errors(data, "midtrain", "entropy"), how="left")
        drawn = drawn.assign(
            low_x=drawn["prior_entropy"] - drawn["half"], high_x=drawn["prior_entropy"] + drawn["half"]
        ).drop(columns="half")
        # Seeds of a setting are not independent of each other, so the settings are the points of the test.
        means = drawn.groupby("objective")[["prior_entropy", column]].mean().to_numpy()
        (rho,), (p,) = rank_correlations(means[:, :1].T, means[:, 1])
        correlations[title] = (float(rho), float(p), len(means))
        x, y = Axis("prior_entropy", "text entropy before RL (nats)"), Axis(column, title)
        panels.append(scatter_panel(drawn, x, y, settings=data.settings))
        parts.append(drawn)
    if not panels:
        raise NotMeasured("no RL run with a measured entropy before it")
    corrected = holm(np.array([p for _, p, _ in correlations.values()]))
    sentences = [
        f"{title}: too few settings for a correlation ({n} of {FEWEST_POINTS})"
        if np.isnan(rho)
        else f"{title}: Spearman {rho:+.2f} over the means of {n} settings (p = {p:.2g})"
        for (title, (rho, _, n)), p in zip(correlations.items(), corrected, strict=True)
    ]
    caption = (
        f"Each point is a cell, with the 95 % interval of its entropy over rows of text. {'; '.join(sentences)}. "
        "P-values are by permuting the settings, Holm-corrected."
    )
    return Drawn(panels, caption, pd.concat(parts))


SIGNIFICANT, NOT_SIGNIFICANT = f"significant ({100 * ALPHA:.0f} %, corrected)", "not significant"


def predictors(data: FigureData) -> Drawn:
    """Spearman correlation of every base-model metric with RL's result, over settings."""
    results = data.facts.dropna(subset=["rl_pass"])[["objective", "seed", "rl_pass"]]
    settings = results["objective"].nunique()
    if settings < FEWEST_POINTS:
        raise NotMeasured(
            f"{settings} settings with an RL result; a rank correlation over fewer than {FEWEST_POINTS} cannot be "
            "significant"
        )
    # Settings are the points, each the mean over its seeds: the seeds of a setting are not independent of each other.
    y = results.groupby("objective")["rl_pass"].mean()
    x = _base_metrics(data, results)
    rho, p = rank_correlations(x[y.index].to_numpy(), y.to_numpy())
    correlations = x.index.to_frame(index=False).assign(rho=rho, p=p, settings=settings).dropna(subset=["rho"])
    if correlations.empty:
        raise NotMeasured("no base-model metric that is measured for every setting and varies with RL's result")
    correlations["significant"] = np.where(correlations["p"] < ALPHA, SIGNIFICANT, NOT_SIGNIFICANT)
    # The strongest come first.
    order = correlations["rho"].abs().sort_values(ascending=False, kind="stable").index
    correlations = correlations.reindex(order)
    panels = []
    for stage in reversed(TOKEN_STAGES):
        strongest = correlations[correlations["stage"] == stage].head(20)
        if len(strongest):
            panels.append(_correlation_panel(strongest, f"after {stage}"))
    best, count = correlations.iloc[0], int((correlations["p"] < ALPHA).sum())
    caption = (
        f"Over {settings} settings (means over seeds); {count} of {len(correlations)} metrics are significant. The "
        f"strongest is {best['what']} after {best['stage']}, {best['rho']:+.2f} (p = {best['p']:.2g}, by permuting the "
        "settings, corrected over all metrics). A correlation does not show a cause."
    )
    return Drawn(panels, caption, correlations)


def _base_metrics(data: FigureData, results: pd.DataFrame) -> pd.DataFrame:
    """Each metric of the base models, (what, stage) x settings: means over the seeds of `results`.

    Metrics that are not measured for every setting are left out.
    """
    parts = []
    for stage in TOKEN_STAGES:
        rows = data.measured(stage)
        if rows.empty:
            continue
        # Only the metrics at the last checkpoint are candidates.
        last = last_values(rows, ["benchmark", "metric", "objective", "seed"]).reset_index().merge(results)
        parts.append(last.assign(what=last["benchmark"] + " " + last["metric"], stage=stage))
    if not parts:
        raise NotMeasured("no metric of a base model")
    return pd.concat(parts).pivot_table("value", ["what", "stage"], "objective", sort=False).dropna()


def _correlation_panel(drawn: pd.DataFrame, title: str) -> Spec:
    scale = {"domain": [SIGNIFICANT, NOT_SIGNIFICANT], "range": ["#0072b2", "#b0b0b0"]}
    encoding = {
        "y": {"field": "what", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 190}},
        "x": {
            "field": "rho",
            "type": "quantitative",
            "title": "Spearman with Pass@k after RL",
            "scale": {"domain": [-1, 1]},
        },
        "color": {"field": "significant", "type": "nominal", "title": None, "scale": scale,
                  "legend": {"orient": "bottom", "columns": 1, "labelLimit": 0}},
        "description": TIP,
    }  # fmt: skip
    drawn = drawn.assign(
        tip=[
            f"{what}; rho {rho:.3g}; p = {p:.3g}; {settings} settings"
            for what, rho, p, settings in drawn[["what", "rho", "p", "settings"]].itertuples(index=False)
        ]
    )
    height = 13 * len(drawn)
    return {"title": title, "height": height, "data": values(drawn), "mark": "bar", "encoding": encoding}


# A further figure is one entry here and its function above. Its test belongs in
# tests/analysis/figures/test_figures.py, where one test draws every figure of the list.
EXTRA_FIGURES = (
    Figure("maps", "Maps over beta, lambda and k", parameter_maps),
    Figure("collapse", "Collapse against prior entropy", entropy_collapse),
    Figure("predictors", "What predicts RL", predictors),
    Figure("theory", "Theory against measurement", theory),
    Figure("control", "The temperature-matched control", temperature_control),
    Figure("tempered", "RL from tempered cross-entropy", tempered_rl),
    Figure("calibration", "Calibration", calibration),
    Figure("forking", "Forking tokens", forking_tokens),
    Figure("scaling", "Scaling over model sizes", scaling, is_per_model=False),
)
