"""What the paper leaves open, drawn from the same rows: maps over the knobs, theory, collapse, what predicts RL.

A question whose measurements are not in the store is named in `Beyond.missing` with what is lacking.
"""

from dataclasses import dataclass

import numpy as np
import orjson
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from analysis.claim_language import CURVES, Term
from analysis.claim_sources import Missing, StudySource
from analysis.figures import Chart, averages, colour, measured, over_seeds, values
from analysis.statistics import holm
from analysis.study import Study
from analysis.vega_lite import Spec
from pipelines.configuration import TOKEN_STAGES


@dataclass(frozen=True)
class Beyond:
    """Charts, and the questions that could not be drawn: (title, what is lacking)."""

    charts: list[Chart]
    missing: list[tuple[str, str]]


def build_beyond(study: Study) -> Beyond:
    """All of them, for every model where that makes sense."""
    found = Beyond([], [])
    facts = cell_facts(study)
    for model in study.runs["model"].unique():
        own = facts[facts["model"] == model]
        for title, build in (
            (f"Maps over beta, lambda and k, {model}", lambda own=own, model=model: _maps(own, model)),
            (f"Collapse against prior entropy, {model}", lambda own=own, model=model: _collapse(own, model)),
            (f"What predicts RL, {model}", lambda own=own, model=model: _predictors(study, own, model)),
            (f"Theory against measurement, {model}", lambda model=model: _theory(study, model)),
            (f"The temperature-matched control, {model}", lambda model=model: _control(study, model)),
            (f"Calibration, {model}", lambda model=model: _calibration(study, model)),
            (f"Forking tokens, {model}", lambda model=model: _forking(study, model)),
        ):
            _add(found, title, build())
    _add(found, "Scaling over model sizes", _scaling(study, facts))
    return found


def _add(found: Beyond, title: str, chart: Chart | str) -> None:
    if isinstance(chart, Chart):
        found.charts.append(chart)
    else:
        found.missing.append((title, chart))


def cell_facts(study: Study) -> pd.DataFrame:
    """One row a cell (model, objective, seed): its knobs, entropy after pre-training and before RL, RL's result and
    how far entropy fell and responses shortened. What is not measured is NaN."""
    rows = study.measurements
    rows = rows[rows["variant"] == ""]
    cells = study.runs[["model", "objective", "beta", "lam_head", "lam_tail", "top_k", "seed"]]
    frame = cells.drop_duplicates(["model", "objective", "seed"]).reset_index(drop=True)
    key = ["model", "objective", "seed"]
    parts: dict[str, pd.Series] = {}
    for name, stage, metric in (
        ("entropy", "pretrain", "entropy"),
        ("perplexity", "pretrain", "perplexity"),
        ("prior_entropy", "midtrain", "entropy"),
    ):
        own = rows[(rows["stage"] == stage) & (rows["metric"] == metric) & (rows["group"] == "text")]
        parts[name] = _last(own, key)
    for model in frame["model"].unique():
        for kind in ("avg", "pass"):
            scores = averages(measured(study, model, "grpo"), "step", kind).assign(model=model)
            last = _last(scores, key)
            name = f"rl_{kind}"
            parts[name] = pd.concat([parts[name], last]) if name in parts else last
    for name, series in parts.items():
        frame[name] = [series.get(tuple(place), np.nan) for place in frame[key].itertuples(index=False)]
    source = StudySource(study)
    for name in CURVES:
        found: dict[tuple[str, str, int], float] = {}
        for model, objective in frame[["model", "objective"]].drop_duplicates().itertuples(index=False):
            try:
                quantity = source.quantity(Term("rl", objective, (("name", name),)), model)
            except Missing:
                continue
            found |= {(model, objective, s): float(v) for s, v in zip(quantity.seeds, quantity.values, strict=True)}
        frame[name] = [found.get(tuple(place), np.nan) for place in frame[key].itertuples(index=False)]
    return frame


def _last(rows: pd.DataFrame, key: list[str]) -> pd.Series:
    """The value at each cell's last step."""
    if rows.empty:
        return pd.Series(dtype=float)
    plain = rows.astype({name: object for name in key if name != "seed"})
    column = "step" if "step" in plain else "tokens"
    return plain.sort_values(column, kind="stable").groupby(key, sort=False)["value"].last()


def _maps(facts: pd.DataFrame, model: str) -> Chart | str:
    """Entropy after pre-training, RL's result and entropy's fall over beta x lambda x k; measured places are marked."""
    if facts["beta"].nunique() < 2 and facts["lam_tail"].nunique() < 2:
        return "one setting of the knobs only"
    places = facts.assign(
        knobs=[
            f"{h:g} / {t:g}" + ("" if pd.isna(k) else f", k = {int(k)}")
            for h, t, k in zip(facts["lam_head"], facts["lam_tail"], facts["top_k"], strict=True)
        ]
    )
    panels, parts = [], []
    titles = {
        "entropy": "entropy after pre-training (nats)",
        "rl_pass": "Pass@k after RL (percent)",
        "entropy_fall": "share of entropy lost in RL",
    }
    for column, title in titles.items():
        data = over_seeds(places.dropna(subset=[column]), ["beta", "knobs", "objective"], column)
        if data.empty:
            continue
        x = {"field": "beta", "type": "ordinal", "title": "beta", "axis": {"labelAngle": 0}}
        y = {"field": "knobs", "type": "ordinal", "title": "lambda head / tail"}
        tooltip = [{"field": name} for name in ("objective", "beta", "knobs")]
        tooltip += [{"field": name, "format": ".4g"} for name in ("mean", "low", "high")]
        scale = {"scheme": "viridis"}
        fill = {"field": "mean", "type": "quantitative", "title": None, "scale": scale, "legend": {"orient": "right"}}
        layers: list[Spec] = [
            {"mark": "rect", "encoding": {"x": x, "y": y, "color": fill, "tooltip": tooltip}},
            {"mark": {"type": "point", "filled": True, "size": 40, "color": "white", "stroke": "black"},
             "encoding": {"x": x, "y": y, "tooltip": tooltip}},
        ]  # fmt: skip
        panels.append({"title": title, "data": values(data), "layer": layers})
        parts.append(data.assign(what=title))
    if not panels:
        return "nothing has been measured yet"
    caption = "Each point is a measured setting, the mean over its seeds; empty places were not run."
    name = f"maps-{model}"
    return Chart(name, None, f"Maps over beta, lambda and k, {model}", caption, tuple(panels), pd.concat(parts))


def _scatter(data: pd.DataFrame, x: str, y: str, x_title: str, y_title: str, diagonal: bool = False) -> Spec:
    tooltip = [{"field": "objective"}, {"field": "seed"}]
    tooltip += [{"field": name, "format": ".4g", "type": "quantitative"} for name in (x, y)]
    zero = {"zero": False}
    points: Spec = {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.85},
        "encoding": {
            "x": {"field": x, "type": "quantitative", "title": x_title, "scale": zero},
            "y": {"field": y, "type": "quantitative", "title": y_title, "scale": zero},
            "color": colour(data["objective"], legend={"orient": "bottom", "columns": 3}),
            "tooltip": tooltip,
        },
    }
    layers = [points]
    if diagonal:
        low = float(min(data[x].min(), data[y].min()))
        high = float(max(data[x].max(), data[y].max()))
        ends = [{"x": low, "y": low}, {"x": high, "y": high}]
        line = {"mark": {"type": "line", "strokeDash": [4, 4], "color": "currentColor"}, "data": {"values": ends},
                "encoding": {axis: {"field": axis, "type": "quantitative"} for axis in ("x", "y")}}  # fmt: skip
        layers.append(line)
    return {"title": y_title, "data": values(data), "layer": layers}


def rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, int]:
    """Spearman's rho, its two-sided p-value by Student's t, and the number of points of x and y [n].

    NaN for fewer than four points, and where one of them does not vary.
    """
    count = len(x)
    if count < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan, count
    ranks = [pd.Series(values).rank() for values in (x, y)]
    rho = min(1.0, max(-1.0, float(ranks[0].corr(ranks[1]))))
    statistic = abs(rho) * np.sqrt((count - 2) / ((1 - rho) * (1 + rho))) if abs(rho) < 1 else np.inf
    return rho, float(2 * special.stdtr(count - 2, -statistic)), count


def _collapse(facts: pd.DataFrame, model: str) -> Chart | str:
    """How much of its entropy RL takes, and how responses change, against the entropy that RL starts from."""
    panels, sentences, parts = [], [], []
    titles = {"entropy_fall": "share of entropy lost in RL", "length_change": "last response length / first"}
    for column, title in titles.items():
        data = facts.dropna(subset=["prior_entropy", column])[["objective", "seed", "prior_entropy", column]]
        if data.empty:
            continue
        rho, p, n = rank_correlation(data["prior_entropy"].to_numpy(), data[column].to_numpy())
        said = "too few cells for a correlation" if np.isnan(rho) else f"Spearman {rho:+.2f} (p = {p:.2g}, {n} cells)"
        sentences.append(f"{title}: {said}")
        panels.append(_scatter(data, "prior_entropy", column, "text entropy before RL (nats)", title))
        parts.append(data)
    if not panels:
        return "no RL run with a measured entropy before it"
    caption = f"A point is a cell. {'; '.join(sentences)}. Cells of one setting are not independent of each other."
    name = f"collapse-{model}"
    return Chart(name, None, f"Collapse against prior entropy, {model}", caption, tuple(panels), pd.concat(parts))


def _predictors(study: Study, facts: pd.DataFrame, model: str) -> Chart | str:
    """Spearman correlation of every base-model metric with RL's result, over cells."""
    goal = facts.dropna(subset=["rl_pass"])[["objective", "seed", "rl_pass"]]
    if len(goal) < 4:
        return f"{len(goal)} cells with an RL result; a correlation needs 4"
    records = []
    for stage in TOKEN_STAGES:
        rows = measured(study, model, stage)
        if rows.empty:
            continue
        last = _last(rows, ["benchmark", "metric", "objective", "seed"]).reset_index().merge(goal)
        for (benchmark, metric), own in last.groupby(["benchmark", "metric"], sort=False):
            rho, p, n = rank_correlation(own["value"].to_numpy(), own["rl_pass"].to_numpy())
            if not np.isnan(rho):
                records.append({"what": f"{benchmark} {metric}", "stage": stage, "rho": rho, "p": p, "cells": n})
    if not records:
        return "no base-model metric that varies over cells"
    data = pd.DataFrame(records)
    data["p_holm"] = holm(data["p"].to_numpy(float))
    data["significant"] = np.where(data["p_holm"] < 0.05, "significant (Holm)", "not significant")
    data = data.reindex(data["rho"].abs().sort_values(ascending=False, kind="stable").index)
    panels = []
    for stage in ("midtrain", "pretrain"):
        own = data[data["stage"] == stage].head(20)
        if own.empty:
            continue
        tooltip = [
            {"field": "what"},
            *({"field": f, "format": ".3g"} for f in ("rho", "p", "p_holm")),
            {"field": "cells"},
        ]
        encoding = {
            "y": {"field": "what", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 190}},
            "x": {"field": "rho", "type": "quantitative", "title": "Spearman with Pass@k after RL",
                  "scale": {"domain": [-1, 1]}},
            "color": {"field": "significant", "type": "nominal", "title": None, "legend": {"orient": "bottom"},
                      "scale": {"domain": ["significant (Holm)", "not significant"], "range": ["#0072b2", "#b0b0b0"]}},
            "tooltip": tooltip,
        }  # fmt: skip
        panels.append({"title": f"after {stage}", "data": values(own), "mark": "bar", "encoding": encoding})
    best = data.iloc[0]
    caption = (
        f"Over {int(best['cells'])} cells (settings x seeds); the strongest is {best['what']} after {best['stage']}, "
        f"{best['rho']:+.2f} (Holm-corrected p = {best['p_holm']:.2g}). Correlation over cells that share settings is "
        "not cause."
    )
    return Chart(f"predictors-{model}", None, f"What predicts RL, {model}", caption, tuple(panels), data)


def _theory(study: Study, model: str) -> Chart | str:
    """Measured entropy and masses against what the stationary distribution of each setting predicts from ce."""
    rows = study.measurements
    rows = rows[(rows["model"] == model) & (rows["stage"] == "pretrain") & (rows["group"] == "text")]
    variants = [v for v in rows["variant"].unique() if v.startswith("theory:")]
    if not variants:
        return "no evaluation variant theory:SETTING of ce: the stationary distribution with ce's own as the data's"
    metrics = {"entropy": "entropy (nats)", "head_mass": "head mass", "tail_mass": "tail mass"}
    panels, parts = [], []
    for metric, title in metrics.items():
        own = rows[rows["metric"] == metric]
        records = []
        for variant in variants:
            objective = variant.split(":", 1)[1]
            predicted = _last(own[(own["objective"] == "ce") & (own["variant"] == variant)], ["seed"])
            found = _last(own[(own["objective"] == objective) & (own["variant"] == "")], ["seed"])
            both = pd.concat([predicted.rename("predicted"), found.rename("measured")], axis=1).dropna()
            records += [{"objective": objective, "seed": seed, **row} for seed, row in both.to_dict("index").items()]
        if records:
            data = pd.DataFrame(records)
            panels.append(_scatter(data, "predicted", "measured", f"predicted {title}", f"measured {title}", True))
            parts.append(data.assign(metric=metric))
    if not panels:
        return "the shaped models of the variants theory:SETTING are not measured"
    caption = "Predicted: the stationary distribution of each setting with the ce model's distribution as the data's."
    name = f"theory-{model}"
    return Chart(name, None, f"Theory against measurement, {model}", caption, tuple(panels), pd.concat(parts))


def _control(study: Study, model: str) -> Chart | str:
    """Each shaped setting beside ce sampled at the temperature that gives it that setting's entropy, before RL."""
    rows = study.measurements
    rows = rows[(rows["model"] == model) & (rows["stage"] == "grpo")]
    variants = [v for v in rows["variant"].unique() if v.startswith("matched:")]
    if not variants:
        return "no evaluation variant matched:SETTING of ce: sampled at the temperature with that setting's entropy"
    records = []
    for variant in variants:
        objective = variant.split(":", 1)[1]
        own = rows[(rows["objective"] == "ce") & (rows["variant"] == variant)]
        shaped = rows[(rows["objective"] == objective) & (rows["variant"] == "") & rows["step"].isin(own["step"])]
        for name, part in (("ce, entropy matched", own), (objective, shaped)):
            for row in averages(part, "step", "pass").to_dict("records"):
                records.append({**row, "setting": objective, "who": name})
    if not records:
        return "the variants matched:SETTING have no Pass@k"
    frame = pd.DataFrame(records)
    data = over_seeds(frame.astype({"step": float}), ["setting", "who", "step"])
    encoding = {
        "y": {"field": "setting", "type": "nominal", "title": None},
        "yOffset": {"field": "who"},
        "x": {"field": "mean", "type": "quantitative", "title": "Pass@k (percent)"},
        "color": {"field": "who", "type": "nominal", "title": None, "legend": {"orient": "bottom"}},
        "tooltip": [{"field": f} for f in ("setting", "who", "step", "mean", "low", "high", "seeds")],
    }
    panel = {"title": "shaped against tempered", "data": values(data), "mark": "bar", "encoding": encoding}
    caption = "If beta is no more than a temperature, each pair of bars is equal."
    return Chart(f"control-{model}", None, f"The temperature-matched control, {model}", caption, (panel,), data)


def _calibration(study: Study, model: str) -> Chart | str:
    """Expected calibration error by setting, after pre-training and mid-training."""
    rows = study.measurements
    rows = rows[(rows["model"] == model) & (rows["metric"] == "calibration_error") & (rows["variant"] == "")]
    if rows.empty:
        return "no metric calibration_error on held-out text"
    last = _last(rows, ["stage", "objective", "seed"]).reset_index()
    data = over_seeds(last, ["stage", "objective"])
    encoding = {
        "x": {"field": "stage", "type": "nominal", "title": None, "axis": {"labelAngle": 0}},
        "xOffset": {"field": "objective"},
        "y": {"field": "mean", "type": "quantitative", "title": "expected calibration error"},
        "color": colour(data["objective"], legend={"orient": "bottom", "columns": 3}),
        "tooltip": [{"field": f} for f in ("stage", "objective", "mean", "low", "high", "seeds")],
    }
    panel = {"title": "expected calibration error", "data": values(data), "mark": "bar", "encoding": encoding}
    return Chart(f"calibration-{model}", None, f"Calibration, {model}", "On held-out text.", (panel,), data)


FORKING_TOKENS = 12


def _forking(study: Study, model: str) -> Chart | str:
    """Where the policy decides: how often which token is among the fifth of highest entropy, by setting."""
    done = study.runs[
        (study.runs["stage"] == "grpo") & (study.runs["status"] == "done") & (study.runs["model"] == model)
    ]
    records = []
    for row in done.to_dict("records"):
        assert study.store is not None
        path = study.store.root / "grpo" / row["stage_run"] / "forking.jsonl"
        if path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:
                records.append({**orjson.loads(line), "objective": row["objective"], "seed": row["seed"]})
    if not records:
        return "no RL run kept forking.jsonl"
    frame = pd.DataFrame(records)
    last = frame[frame["step"] == frame.groupby(["objective", "seed"])["step"].transform("max")]
    tokens = last[last["by"] == "token"]
    if tokens.empty:
        return "the RL runs' forking.jsonl name no token"
    totals = tokens.groupby(["objective", "seed"])["count"].transform("sum")
    tokens = tokens.assign(share=tokens["count"] / totals, token=[repr(token) for token in tokens["token"]])
    common = tokens.groupby("token")["count"].sum().sort_values(ascending=False, kind="stable").index[:FORKING_TOKENS]
    data = over_seeds(tokens[tokens["token"].isin(common)], ["objective", "token"], "share")
    encoding = {
        "y": {"field": "token", "type": "nominal", "sort": list(common), "title": None},
        "x": {"field": "mean", "type": "quantitative", "title": "share of the listed forking tokens"},
        "yOffset": {"field": "objective"},
        "color": colour(data["objective"], legend={"orient": "bottom", "columns": 3}),
        "tooltip": [{"field": f} for f in ("token", "objective", "mean", "low", "high", "seeds")],
    }
    panel = {"title": "forking tokens after RL", "data": values(data), "mark": "bar", "encoding": encoding}
    caption = "The fifth of RL's sampled tokens that were drawn from the highest entropy, at the last step kept."
    return Chart(f"forking-{model}", None, f"Forking tokens, {model}", caption, (panel,), data)


def _scaling(study: Study, facts: pd.DataFrame) -> Chart | str:
    """Scores over model sizes, by setting."""
    sizes = study.runs.dropna(subset=["parameters"]).groupby("model")["parameters"].max()
    if len(sizes) < 2:
        return f"models of {len(sizes)} size(s) with counted parameters; it needs two"
    records = []
    for model in sizes.index:
        for stage, kind in (("pretrain", None), ("midtrain", None), ("grpo", "pass")):
            scores = averages(measured(study, model, stage), "step", kind)
            last = _last(scores, ["objective", "seed"]).reset_index() if len(scores) else scores
            records += [{"stage": stage, "parameters": float(sizes[model]), **row} for row in last.to_dict("records")]
    data = over_seeds(pd.DataFrame(records), ["stage", "objective", "parameters"]) if records else pd.DataFrame()
    panels = []
    for stage, title in (("pretrain", "after pre-training"), ("midtrain", "after mid-training"), ("grpo", "after RL")):
        own = data[data["stage"] == stage] if len(data) else data
        if own.empty:
            continue
        encoding = {
            "x": {"field": "parameters", "type": "quantitative", "scale": {"type": "log"}, "axis": {"format": "~s"}},
            "y": {"field": "mean", "type": "quantitative", "title": "percent", "scale": {"zero": False}},
            "color": colour(own["objective"], legend={"orient": "bottom", "columns": 3}),
            "tooltip": [{"field": f} for f in ("objective", "parameters", "mean", "low", "high", "seeds")],
        }
        panels.append(
            {"title": title, "data": values(own), "mark": {"type": "line", "point": True}, "encoding": encoding}
        )
    if not panels:
        return "no scores are measured yet"
    return Chart("scaling", None, "Scaling over model sizes", "Averages as in the tables.", tuple(panels), data)
