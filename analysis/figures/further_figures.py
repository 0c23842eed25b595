"""Figures of theory, the temperature-matched control, calibration, forking tokens and model sizes.

`extra_figures` lists them. Each function draws one, or raises `NotMeasured` with what the store lacks.
"""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from analysis.figures.charts import (
    TIP,
    Axis,
    colour,
    domain,
    interval_layer,
    line_panel,
    scatter_panel,
    setting_order,
    tips,
    values,
)
from analysis.figures.figure_data import Drawn, FigureData, interval_columns, last_values, over_seeds, text_errors
from analysis.figures.vega_lite import Spec
from analysis.learning import RLCurve, rl_curves
from analysis.learning_table import TEMPERED, row_name
from analysis.measurement_grid import Checkpoint
from analysis.paper_tables import STAGE_TITLES
from analysis.published_files import published
from analysis.study import NotMeasured
from analysis.table_columns import Scores, average_column, average_columns
from pipelines.foreign_text import parsed


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
            drawn = pd.DataFrame(records).merge(text_errors(data, "pretrain", metric), how="left")
            drawn = drawn.assign(low_y=drawn["measured"] - drawn["half"], high_y=drawn["measured"] + drawn["half"])
            drawn = drawn.drop(columns="half")
            x, y = Axis("predicted", f"predicted {title}"), Axis("measured", f"measured {title}")
            panels.append(scatter_panel(drawn, x, y, settings=data.settings, diagonal=True))
            parts.append(drawn.assign(metric=metric))
    if not panels:
        raise NotMeasured("the shaped models of the variants theory:SETTING are not measured")
    caption = (
        "Predicted: the stationary distribution of each setting, with the ce model's distribution as the data's. Each "
        "point is a cell, with the 95 % interval over rows of text of what is measured."
    )
    return Drawn(panels, caption, pd.concat(parts))


def temperature_control(data: FigureData) -> Drawn:
    """Each shaped setting next to ce sampled at the temperature that gives it that setting's entropy, before RL."""
    rows = data.rows[data.rows["stage"] == "grpo"]
    variants = [str(variant) for variant in rows["variant"].unique() if str(variant).startswith("matched:")]
    if not variants:
        raise NotMeasured("no evaluation variant matched:SETTING of ce, sampled with that setting's entropy")
    records = []
    columns = average_columns(data.benchmarks("grpo"))
    scores = [scores for (_, title), scores in columns.items() if title.startswith("Pass@")][-1:]
    for variant in variants if scores else ():
        setting = variant.split(":", 1)[1]
        control = rows[rows["variant"] == variant]
        # A control is compared with its setting at the same steps.
        for objective, step in control[["objective", "step"]].drop_duplicates().itertuples(index=False):
            for role, name, evaluated in ((SHAPED, setting, ""), (CONTROL, str(objective), variant)):
                checkpoint = Checkpoint(data.model, name, "grpo", int(step))
                entry = data.estimates.entry(checkpoint, scores[0], evaluated)
                if entry.value is not None:
                    place = {"setting": setting, "role": role, "objective": name, "step": int(step)}
                    records.append({**place, **interval_columns(entry)})
    if not records:
        raise NotMeasured("the variants matched:SETTING have no Pass@k")
    drawn = pd.DataFrame(records)
    # One panel per RL step; in it a pair of points at each setting, in the colours of the sampled models.
    panels = [_control_panel(drawn[drawn["step"] == step], step, data) for step in sorted(drawn["step"].unique())]
    caption = (
        f"Each pair: the shaped setting above, and below it, hollow, {CONTROL}, with 95 % intervals. "
        "If beta is no more than a temperature, both of each pair are equal."
    )
    return Drawn(panels, caption, drawn)


def tempered_rl(data: FigureData) -> Drawn:
    """RL's held-out curve of each shaped setting, of cross-entropy, and of cross-entropy tempered to its entropy."""
    curves = {key[1:]: found for key, found in rl_curves(data.study).items() if key[0] == data.model}
    tempered = [(objective, variant) for objective, variant in curves if variant.startswith(TEMPERED)]
    if not tempered:
        raise NotMeasured("no RL from a tempered ce; evaluation.controls.tempered=[grpo] runs it")
    panels, parts = [], []
    for objective, variant in tempered:
        setting = variant.removeprefix(TEMPERED)
        keys = ((setting, ""), (objective, ""), (objective, variant))
        rows = [row for key in keys for row in _held_out_rows(row_name(*key), curves.get(key, []))]
        if not rows:
            continue
        by_seed = pd.DataFrame(rows).groupby(["objective", "seed", "step"], sort=False)["reward"].mean().reset_index()
        drawn = over_seeds(by_seed, ["objective", "step"], "reward")
        names = [*data.settings, row_name(objective, variant)]
        panels.append(
            line_panel(drawn, Axis("step", "RL step"), f"{setting}: held-out reward (percent)", settings=names)
        )
        parts.append(drawn.assign(setting=setting))
    if not panels:
        raise NotMeasured("no held-out curve of RL from a tempered ce; set grpo.held_out_every")
    caption = (
        "RL started from the mid-trained ce model with its logits scaled until it has the setting's entropy on "
        "held-out text. Where its curve is the setting's, beta is a temperature. Means over seeds; bands are their "
        "range."
    )
    return Drawn(panels, caption, pd.concat(parts))


def _held_out_rows(name: str, curves: list[RLCurve]) -> list[dict[str, object]]:
    """Held-out rewards at each step of each run, in percent."""
    return [
        {"objective": name, "seed": curve.seed, "step": step, "reward": 100 * reward}
        for curve in curves
        for step, reward in zip(curve.steps.tolist(), curve.rewards.tolist(), strict=True)
    ]


SHAPED, CONTROL = "the setting", "cross-entropy at its entropy"


def _control_panel(drawn: pd.DataFrame, step: int, data: FigureData) -> Spec:
    drawn = drawn.assign(tip=tips(drawn, "role", ""))
    encoding: Spec = {
        "y": {"field": "setting", "type": "nominal", "sort": setting_order(drawn["setting"]), "title": None},
        "yOffset": {"field": "role", "sort": [SHAPED, CONTROL]},
        "x": {"field": "mean", "type": "quantitative", "title": "Pass@k (percent)",
              "scale": {"domain": domain(drawn), "nice": False}, "axis": {"tickCount": 5}},
        "color": colour(drawn["objective"], settings=data.settings),
        "description": TIP,
    }  # fmt: skip
    encoding["fill"] = {
        "condition": {"test": f"datum.role === '{CONTROL}'", "value": "transparent"},
        **{key: part for key, part in encoding["color"].items() if key != "title"},
        "legend": None,
    }
    point = {"mark": {"type": "point", "size": 60, "opacity": 1, "strokeWidth": 2}, "encoding": encoding}
    return {"title": f"RL step {step}", "data": values(drawn), "layer": [point, interval_layer(encoding, "x")]}


def calibration(data: FigureData) -> Drawn:
    """Expected calibration error by setting, after each stage."""
    records = []
    for stage, title in STAGE_AXIS.items():
        texts = [
            (name, "calibration_error")
            for name, text in data.benchmarks(stage).items()
            if text.group == "text" and "calibration_error" in text.metrics
        ]
        curve = data.curve(stage, Scores(tuple(texts), factor=1)) if texts else pd.DataFrame()
        # RL's step 0 is the mid-trained model again, and would look like a model after RL.
        if len(curve) and stage == "grpo":
            curve = curve[curve["step"] > 0]
        if len(curve):
            last = curve.sort_values("step", kind="stable").groupby("objective", sort=False).last().reset_index()
            records.append(last.assign(stage=title).drop(columns=["entry", "step", "tokens"]))
    if not records:
        raise NotMeasured("no metric calibration_error of held-out text")
    drawn = pd.concat(records)
    # The error is a share, whatever an interval on the scale of its log says.
    drawn = drawn.assign(low=drawn["low"].clip(0, 1), high=drawn["high"].clip(0, 1))
    # One wide interval must not make the bars too small to see: the axis ends at twice the highest.
    top = min(float(drawn["high"].max()), 2 * float(drawn["mean"].max())) or 1.0
    drawn = drawn.assign(tip=tips(drawn, "stage", ""))
    encoding = {
        "x": {"field": "stage", "type": "nominal", "title": None, "sort": list(STAGE_AXIS.values()),
              "axis": {"labelAngle": 0}},
        "xOffset": {"field": "objective", "sort": setting_order(drawn["objective"])},
        "y": {"field": "mean", "type": "quantitative", "title": "expected calibration error", "stack": None,
              "scale": {"domain": [0, top]}},
        "color": colour(drawn["objective"], settings=data.settings),
        "description": TIP,
    }  # fmt: skip
    layers = [{"mark": "bar", "encoding": encoding}, _dark(interval_layer(encoding, "y"))]
    panel = {
        "title": "expected calibration error",
        "data": values(drawn.assign(high=drawn["high"].clip(upper=top))),
        "layer": layers,
    }
    return Drawn(
        [panel], "On held-out text after each stage, with 95 % intervals, cut at the axis.", drawn.drop(columns="tip")
    )


STAGE_AXIS = {stage: f"after {title if stage == 'grpo' else title.lower()}" for stage, title in STAGE_TITLES.items()}
"""Stage -> its label, in the order of the stages."""


def _dark(layer: Spec) -> Spec:
    """An interval on a bar of the same colour, in the colour of the text."""
    encoding = {name: part for name, part in layer["encoding"].items() if name != "color"}
    return {"mark": {**layer["mark"], "color": "currentColor"}, "encoding": encoding}


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
        "description": TIP,
    }
    drawn = drawn.assign(tip=tips(drawn, "token", ""))
    layers = [{"mark": "bar", "encoding": encoding}, _dark(interval_layer(encoding, "x"))]
    panel = {"title": "forking tokens after RL", "data": values(drawn), "layer": layers}
    caption = (
        "The fifth of RL's sampled tokens with the highest entropy when drawn, at the last step kept; lines are the "
        "range over seeds."
    )
    return Drawn([panel], caption, drawn)


def _forking_rows(data: FigureData) -> Iterator[dict[str, object]]:
    """The rows of every finished RL run's `forking.jsonl`, with its objective and seed."""
    runs = data.study.runs
    finished = runs[(runs["stage"] == "grpo") & (runs["status"] == "done") & (runs["model"] == data.model)]
    for run in finished.to_dict("records"):
        assert data.study.store is not None
        if path := published(data.study.store.run("grpo", run["stage_run"]), "forking.jsonl"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                yield {**parsed(line), "objective": run["objective"], "seed": run["seed"]}


def scaling(data: FigureData) -> Drawn:
    """Scores over model sizes, by setting."""
    # Sizes come from pre-training, which counts the parameters.
    sizes = data.study.runs.dropna(subset=["parameters"]).groupby("model")["parameters"].max()
    if len(sizes) < 2:
        raise NotMeasured(f"models of {len(sizes)} size(s) with counted parameters; it needs two")
    records = []
    for model in sizes.index:
        of_model = replace(data, model=str(model))
        for stage in STAGE_AXIS:
            curve = of_model.curve(stage, _score(of_model, stage)).sort_values("step", kind="stable")
            last = curve.groupby("objective", sort=False).last().reset_index()
            place = {"stage": stage, "parameters": float(sizes[model])}
            records += [{**place, **row} for row in last.drop(columns=["entry", "tokens"]).to_dict("records")]
    if not records:
        raise NotMeasured("no scores are measured yet")
    drawn = pd.DataFrame(records)
    drawn = drawn.assign(tip=tips(drawn, "parameters", "parameters"))
    panels = []
    for stage, title in STAGE_AXIS.items():
        part = drawn[drawn["stage"] == stage]
        if part.empty:
            continue
        encoding = {
            "x": {"field": "parameters", "type": "quantitative", "scale": {"type": "log"}, "axis": {"format": "~s"}},
            "y": {"field": "mean", "type": "quantitative", "title": "percent",
                  "scale": {"domain": domain(part), "nice": False}},
            "color": colour(part["objective"], settings=data.settings),
            "description": TIP,
        }  # fmt: skip
        layers = [{"mark": {"type": "line", "point": True}, "encoding": encoding}, interval_layer(encoding, "y")]
        panels.append({"title": title, "data": values(part), "layer": layers})
    return Drawn(panels, "Averages as in the tables, with 95 % intervals.", drawn.drop(columns="tip"))


def _score(data: FigureData, stage: str) -> Scores:
    """What a stage's tables average: the base models' scores, or Pass@k after RL."""
    if stage != "grpo":
        (scores,) = average_column(data.benchmarks(stage), stage).values()
        return scores
    passes = [s for (_, title), s in average_columns(data.benchmarks(stage)).items() if title.startswith("Pass@")]
    return passes[-1] if passes else Scores(())
