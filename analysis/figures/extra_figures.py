"""Figures for what the paper leaves open: maps over the knobs, theory, collapse, what predicts RL.

Each function draws one figure of `EXTRA_FIGURES`, or raises `NotMeasured` with what the store lacks.
"""

from collections.abc import Iterator

import numpy as np
import orjson
import pandas as pd

from analysis.figures.charts import LEGEND, Axis, colour, scatter_panel, setting_order, tooltip, values
from analysis.figures.figure_data import Drawn, Figure, FigureData, averages, last_values, measured, over_seeds
from analysis.figures.vega_lite import Spec
from analysis.statistics import ALPHA, FEWEST_POINTS, holm, rank_correlations
from analysis.study import NotMeasured
from pipelines.configuration import TOKEN_STAGES, TRAINING_STAGES

OVER_SEEDS = ("mean", "low", "high", "seeds")


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
    under_pointer = tooltip("objective", "beta", "knobs", numbers=("mean", "low", "high"), number_format=".4g")
    # The tiles show the value; a point marks that the position was measured.
    scale = {"scheme": "viridis"}
    fill = {"field": "mean", "type": "quantitative", "title": None, "scale": scale, "legend": {"orient": "right"}}
    point = {"type": "point", "filled": True, "size": 40, "color": "white", "stroke": "black"}
    layers: list[Spec] = [
        {"mark": "rect", "encoding": {"x": x, "y": y, "color": fill, "tooltip": under_pointer}},
        {"mark": point, "encoding": {"x": x, "y": y, "tooltip": under_pointer}},
    ]
    return {"title": title, "data": values(drawn), "layer": layers}


def entropy_collapse(data: FigureData) -> Drawn:
    """How much entropy RL loses, and how responses change, against the entropy that RL starts from."""
    panels, parts = [], []
    correlations: dict[str, tuple[float, float, int]] = {}
    titles = {"entropy_fall": "share of entropy lost in RL", "length_change": "last response length / first"}
    for column, title in titles.items():
        drawn = data.facts.dropna(subset=["prior_entropy", column])[["objective", "seed", "prior_entropy", column]]
        if drawn.empty:
            continue
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
    caption = f"Each point is a cell. {'; '.join(sentences)}. P-values are by permuting the settings, Holm-corrected."
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
        "color": {"field": "significant", "type": "nominal", "title": None, "legend": {"orient": "bottom"},
                  "scale": scale},
        "tooltip": [*tooltip("what", numbers=("rho", "p"), number_format=".3g"), *tooltip("settings")],
    }  # fmt: skip
    return {"title": title, "data": values(drawn), "mark": "bar", "encoding": encoding}


def theory(data: FigureData) -> Drawn:
    """Measured entropy and masses against the prediction of each setting's stationary distribution.

    The prediction is an evaluation variant `theory:SETTING` of the cross-entropy model.
    """
    rows = data.rows[(data.rows["stage"] == "pretrain") & (data.rows["group"] == "text")]
    variants = [str(variant) for variant in rows["variant"].unique() if str(variant).startswith("theory:")]
    if not variants:
        raise NotMeasured("no evaluation variant theory:SETTING of ce, the prediction from ce's own distribution")
    panels, parts = [], []
    for metric, title in {"entropy": "entropy (nats)", "head_mass": "head mass", "tail_mass": "tail mass"}.items():
        # One point per setting and seed that has both the prediction and the measurement.
        of_metric = rows[rows["metric"] == metric]
        records = []
        for variant in variants:
            objective = variant.split(":", 1)[1]
            predicted = last_values(of_metric[of_metric["variant"] == variant], ["seed"])
            plain = of_metric[(of_metric["objective"] == objective) & (of_metric["variant"] == "")]
            pairs = pd.concat(
                [predicted.rename("predicted"), last_values(plain, ["seed"]).rename("measured")], axis=1
            ).dropna()
            records += [{"objective": objective, "seed": seed, **row} for seed, row in pairs.to_dict("index").items()]
        if records:
            drawn = pd.DataFrame(records)
            x, y = Axis("predicted", f"predicted {title}"), Axis("measured", f"measured {title}")
            panels.append(scatter_panel(drawn, x, y, settings=data.settings, diagonal=True))
            parts.append(drawn.assign(metric=metric))
    if not panels:
        raise NotMeasured("the shaped models of the variants theory:SETTING are not measured")
    caption = "Predicted: the stationary distribution of each setting, with the ce model's distribution as the data's."
    return Drawn(panels, caption, pd.concat(parts))


def temperature_control(data: FigureData) -> Drawn:
    """Each shaped setting next to ce sampled at the temperature that gives it that setting's entropy, before RL."""
    rows = data.rows[data.rows["stage"] == "grpo"]
    variants = [str(variant) for variant in rows["variant"].unique() if str(variant).startswith("matched:")]
    if not variants:
        raise NotMeasured("no evaluation variant matched:SETTING of ce, sampled with that setting's entropy")
    records = []
    for variant in variants:
        setting = variant.split(":", 1)[1]
        # A control is compared with its setting at the same steps.
        control = rows[rows["variant"] == variant]
        shaped = rows[
            (rows["objective"] == setting) & (rows["variant"] == "") & rows["step"].isin(control["step"].unique())
        ]
        for role, part in ((CONTROL, control), (SHAPED, shaped)):
            for row in averages(part, "step", "pass").to_dict("records"):
                records.append({**row, "setting": setting, "role": role})
    if not records:
        raise NotMeasured("the variants matched:SETTING have no Pass@k")
    drawn = over_seeds(pd.DataFrame(records).astype({"step": int}), ["setting", "role", "objective", "step"])
    # One panel per RL step; in it a pair of bars at each setting, in the colours of the sampled models.
    panels = [_control_panel(drawn[drawn["step"] == step], step, data) for step in sorted(drawn["step"].unique())]
    caption = (
        f"Each pair: the shaped setting above, and below it, pale, {CONTROL}. "
        "If beta is no more than a temperature, both bars of each pair are equal."
    )
    return Drawn(panels, caption, drawn)


SHAPED, CONTROL = "the setting", "cross-entropy at its entropy"


def _control_panel(drawn: pd.DataFrame, step: int, data: FigureData) -> Spec:
    encoding = {
        "y": {"field": "setting", "type": "nominal", "sort": setting_order(drawn["setting"]), "title": None},
        "yOffset": {"field": "role", "sort": [SHAPED, CONTROL]},
        "x": {"field": "mean", "type": "quantitative", "title": "Pass@k (percent)", "scale": {"domain": [0, 100]},
              "stack": None},
        "color": colour(drawn["objective"], settings=data.settings),
        "opacity": {"field": "role", "type": "ordinal", "legend": None,
                    "scale": {"domain": [SHAPED, CONTROL], "range": [1, 0.6]}},
        "tooltip": tooltip("setting", "role", "step", *OVER_SEEDS),
    }  # fmt: skip
    return {"title": f"RL step {step}", "data": values(drawn), "mark": "bar", "encoding": encoding}


def calibration(data: FigureData) -> Drawn:
    """Expected calibration error by setting, after each stage."""
    # RL's step 0 is the mid-trained model again, and would look like a model after RL.
    rows = data.rows[(data.rows["stage"] != "grpo") | (data.rows["step"] > 0)]
    rows = rows[(rows["metric"] == "calibration_error") & (rows["variant"] == "")]
    if rows.empty:
        raise NotMeasured("no metric calibration_error of held-out text")
    last = last_values(rows, ["stage", "objective", "seed"]).reset_index()
    drawn = over_seeds(last, ["stage", "objective"])
    encoding = {
        "x": {"field": "stage", "type": "nominal", "title": None, "sort": list(TRAINING_STAGES),
              "axis": {"labelAngle": 0}},
        "xOffset": {"field": "objective", "sort": setting_order(drawn["objective"])},
        "y": {"field": "mean", "type": "quantitative", "title": "expected calibration error", "stack": None},
        "color": colour(drawn["objective"], settings=data.settings, legend=LEGEND),
        "tooltip": tooltip("stage", "objective", *OVER_SEEDS),
    }  # fmt: skip
    panel = {"title": "expected calibration error", "data": values(drawn), "mark": "bar", "encoding": encoding}
    return Drawn([panel], "On held-out text.", drawn)


FORKING_TOKENS = 12
"""The most frequent tokens that are drawn."""


def forking_tokens(data: FigureData) -> Drawn:
    """Where the policy decides: how often which token is among the fifth with the highest entropy, by setting."""
    frame = pd.DataFrame(_forking_rows(data))
    if frame.empty:
        raise NotMeasured("no RL run kept forking.jsonl")
    # The last kept step of each run.
    last = frame[frame["step"] == frame.groupby(["objective", "seed"])["step"].transform("max")]
    tokens = last[last["by"] == "token"]
    if tokens.empty:
        raise NotMeasured("no forking.jsonl of the RL runs lists tokens")
    # Shares rather than counts, since runs sample different numbers of tokens.
    totals = tokens.groupby(["objective", "seed"])["count"].transform("sum")
    tokens = tokens.assign(share=tokens["count"] / totals, token=[repr(token) for token in tokens["token"]])
    common = tokens.groupby("token")["count"].sum().sort_values(ascending=False, kind="stable").index[:FORKING_TOKENS]
    drawn = over_seeds(tokens[tokens["token"].isin(common)], ["objective", "token"], "share")
    encoding = {
        "y": {"field": "token", "type": "nominal", "sort": list(common), "title": None},
        "x": {"field": "mean", "type": "quantitative", "title": "share of the listed forking tokens", "stack": None},
        "yOffset": {"field": "objective", "sort": setting_order(drawn["objective"])},
        "color": colour(drawn["objective"], settings=data.settings),
        "tooltip": tooltip("token", "objective", *OVER_SEEDS),
    }
    panel = {"title": "forking tokens after RL", "data": values(drawn), "mark": "bar", "encoding": encoding}
    caption = "The fifth of RL's sampled tokens with the highest entropy when drawn, at the last step kept."
    return Drawn([panel], caption, drawn)


def _forking_rows(data: FigureData) -> Iterator[dict[str, object]]:
    """The rows of every finished RL run's `forking.jsonl`, with its objective and seed."""
    runs = data.study.runs
    finished = runs[(runs["stage"] == "grpo") & (runs["status"] == "done") & (runs["model"] == data.model)]
    for run in finished.to_dict("records"):
        assert data.study.store is not None
        path = data.study.store.root / "grpo" / run["stage_run"] / "forking.jsonl"
        if path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:
                yield {**orjson.loads(line), "objective": run["objective"], "seed": run["seed"]}


def scaling(data: FigureData) -> Drawn:
    """Scores over model sizes, by setting."""
    # Sizes come from pre-training, which counts the parameters.
    sizes = data.study.runs.dropna(subset=["parameters"]).groupby("model")["parameters"].max()
    if len(sizes) < 2:
        raise NotMeasured(f"models of {len(sizes)} size(s) with counted parameters; it needs two")
    # The last score of each model, stage, setting and seed.
    records = []
    for model in sizes.index:
        for stage, metric in (("pretrain", None), ("midtrain", None), ("grpo", "pass")):
            scores = averages(measured(data.study, model, stage), "step", metric)
            last = last_values(scores, ["objective", "seed"]).reset_index() if len(scores) else scores
            records += [{"stage": stage, "parameters": float(sizes[model]), **row} for row in last.to_dict("records")]
    if not records:
        raise NotMeasured("no scores are measured yet")
    drawn = over_seeds(pd.DataFrame(records), ["stage", "objective", "parameters"])
    panels = []
    for stage, title in (("pretrain", "after pre-training"), ("midtrain", "after mid-training"), ("grpo", "after RL")):
        part = drawn[drawn["stage"] == stage]
        if part.empty:
            continue
        encoding = {
            "x": {"field": "parameters", "type": "quantitative", "scale": {"type": "log"}, "axis": {"format": "~s"}},
            "y": {"field": "mean", "type": "quantitative", "title": "percent", "scale": {"zero": False}},
            "color": colour(part["objective"], settings=data.settings),
            "tooltip": tooltip("objective", "parameters", *OVER_SEEDS),
        }
        mark = {"type": "line", "point": True}
        panels.append({"title": title, "data": values(part), "mark": mark, "encoding": encoding})
    return Drawn(panels, "Averages as in the tables.", drawn)


# A further figure is one entry here and its function above. Its test belongs in
# tests/analysis/figures/test_figures.py, where one test draws every figure of the list.
EXTRA_FIGURES = (
    Figure("maps", "Maps over beta, lambda and k", parameter_maps),
    Figure("collapse", "Collapse against prior entropy", entropy_collapse),
    Figure("predictors", "What predicts RL", predictors),
    Figure("theory", "Theory against measurement", theory),
    Figure("control", "The temperature-matched control", temperature_control),
    Figure("calibration", "Calibration", calibration),
    Figure("forking", "Forking tokens", forking_tokens),
    Figure("scaling", "Scaling over model sizes", scaling, is_per_model=False),
)
