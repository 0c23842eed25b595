"""What a figure is, and the numbers that figures draw: measurements, averages over benchmarks, facts about cells."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.claim_language import CURVES, Term
from analysis.claim_sources import StudySource
from analysis.figures.vega_lite import Spec
from analysis.paper_tables import GROUPS
from analysis.study import NotMeasured, Study
from analysis.table_columns import largest_metric, score_metric

CELL = ["model", "objective", "seed"]


@dataclass(frozen=True)
class FigureData:
    """What the functions that draw figures get: a study, and the model to draw."""

    study: Study
    model: str
    """One of the study's models; empty for a figure over all models."""
    all_facts: pd.DataFrame
    """`cell_facts` of the study."""

    @property
    def settings(self) -> list[str]:
        """All settings of the study, which fix the colours."""
        return self.study.settings

    @property
    def facts(self) -> pd.DataFrame:
        """`cell_facts` of the model."""
        return self.all_facts[self.all_facts["model"] == self.model]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """All measurements of the model, variants included."""
        return self.study.measurements[self.study.measurements["model"] == self.model]

    def measured(self, stage: str) -> pd.DataFrame:
        """The model's measurements at a stage, without variants."""
        return measured(self.study, self.model, stage)


@dataclass(frozen=True)
class Drawn:
    """What a function that draws a figure returns; the figure's entry adds its name, title and number."""

    panels: list[Spec]
    caption: str
    data: pd.DataFrame
    """The data of all panels, for the page's table of numbers."""


@dataclass(frozen=True)
class Figure:
    """A figure and the function that draws it, which raises `NotMeasured` if the store lacks its data."""

    name: str
    """Of its files."""
    title: str
    draw: Callable[[FigureData], Drawn]
    numbers: tuple[int, int] | None = None
    """The paper's numbers for a dense model and for a mixture of experts; None if the paper does not have it."""
    is_per_model: bool = True
    """Whether it is drawn for every model, or once for all of them."""


def measured(study: Study, model: str, stage: str) -> pd.DataFrame:
    """Returns the measurements of a model at a stage, without variants."""
    rows = study.measurements
    return rows[(rows["model"] == model) & (rows["stage"] == stage) & (rows["variant"] == "")]


def over_seeds(frame: pd.DataFrame, by: list[str], column: str = "value") -> pd.DataFrame:
    """Returns columns `by`, `mean`, `low`, `high` (range over seeds) and `seeds`."""
    grouped = frame.groupby(by, observed=True, sort=False)[column]
    return grouped.agg(mean="mean", low="min", high="max", seeds="count").reset_index()


def averages(rows: pd.DataFrame, at: str, metric_name: str | None = None) -> pd.DataFrame:
    """Returns columns `objective seed AT value`: percent, averaged over benchmarks, where all of them were measured.

    `metric_name` is `avg` or `pass`, with its largest n or k, of the mathematics benchmarks; None is the score that the
    base models' tables average.
    """
    # Choose one metric per benchmark.
    chosen = []
    for (group, benchmark), part in rows.groupby(["group", "benchmark"], observed=True, sort=False):
        metrics = part["metric"].unique()
        if metric_name is None:
            metric = score_metric(metrics, str(group)) if group in GROUPS else None
        else:
            metric = largest_metric(metrics, metric_name) if group == "math" else None
        if metric:
            chosen.append(part[part["metric"] == metric].assign(benchmark=str(benchmark)))
    if not chosen:
        return pd.DataFrame(columns=["objective", "seed", at, "value"])
    # An average over fewer benchmarks would not be comparable, so it is dropped.
    grouped = pd.concat(chosen).groupby(["objective", "seed", at], observed=True, sort=False)["value"]
    means = grouped.agg(["mean", "count"])
    complete = means.loc[means["count"] == len(chosen), "mean"] * 100
    return complete.rename("value").reset_index()


def last_values(rows: pd.DataFrame, key: list[str]) -> pd.Series:
    """Returns the value at the last step of each `key`, averaged over benchmarks if there are several texts."""
    if rows.empty:
        return pd.Series(dtype=float)
    # Categories would make pandas list combinations that do not exist.
    plain = rows.astype({name: object for name in key if name != "seed"})
    column = "step" if "step" in plain else "tokens"
    by = [*key, "benchmark"] if "benchmark" in plain and "benchmark" not in key else key
    last = plain.sort_values(column, kind="stable").groupby(by, sort=False, observed=True)["value"].last()
    return last if by == key else last.groupby(level=key, sort=False).mean()


def cell_facts(study: Study) -> pd.DataFrame:
    """Returns one row per cell (model, objective, seed) with NaN for what is not measured.

    Columns: the objective's parameters, entropy and perplexity after pre-training, entropy before RL, RL's results, and
    how far entropy fell and responses shortened in RL.
    """
    runs = study.runs[["model", "objective", "beta", "lam_head", "lam_tail", "top_k", "seed"]]
    frame = runs.drop_duplicates(CELL).reset_index(drop=True)
    models = frame["model"].unique()
    facts: dict[str, pd.Series] = {}

    # Held-out text at the last checkpoint of the base models.
    rows = study.measurements
    text = rows[(rows["variant"] == "") & (rows["group"] == "text")]
    for name, stage, metric in (
        ("entropy", "pretrain", "entropy"),
        ("perplexity", "pretrain", "perplexity"),
        ("prior_entropy", "midtrain", "entropy"),
    ):
        facts[name] = last_values(text[(text["stage"] == stage) & (text["metric"] == metric)], CELL)

    # RL's averages at its last step, model by model, since models may have different benchmarks.
    for metric in ("avg", "pass"):
        by_model = [averages(measured(study, model, "grpo"), "step", metric).assign(model=model) for model in models]
        lasts = [last_values(scores, CELL) for scores in by_model]
        facts[f"rl_{metric}"] = pd.concat(lasts) if lasts else pd.Series(dtype=float)
    for name, series in facts.items():
        frame[name] = [series.get(tuple(cell), np.nan) for cell in frame[CELL].itertuples(index=False)]

    # Measures of RL's curves.
    source = StudySource(study)
    pairs = list(frame[["model", "objective"]].drop_duplicates().itertuples(index=False))
    for name in CURVES:
        measures = _curve_measures(source, name, pairs)
        frame[name] = [measures.get(tuple(cell), np.nan) for cell in frame[CELL].itertuples(index=False)]
    return frame


def _curve_measures(
    source: StudySource, name: str, pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str, int], float]:
    """(model, objective, seed) -> the measure `name` of its RL curve, for those of `pairs` that have one."""
    measures: dict[tuple[str, str, int], float] = {}
    for model, objective in pairs:
        try:
            quantity = source.quantity(Term("rl", objective, (("name", name),)), model)
        except NotMeasured:
            continue
        for seed, value in zip(quantity.seeds, quantity.values, strict=True):
            measures[model, objective, seed] = float(value)
    return measures
