"""What a figure is, and the numbers that figures draw: measurements, averages over benchmarks, facts about cells."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.claim_language import Term
from analysis.claim_sources import StudySource
from analysis.estimates import NORMAL_QUANTILE, Estimates
from analysis.figures.vega_lite import Spec
from analysis.measurement_grid import Benchmarks, Checkpoint
from analysis.paper_tables import GROUPS
from analysis.statistics import t_quantile
from analysis.study import NotMeasured, Study, baselines
from analysis.table_columns import Scores, largest_metric, score_metric
from analysis.tables import Entry

CELL = ["model", "objective", "seed"]
CURVE_COLUMNS = ["objective", "step", "tokens", "mean", "low", "high", "seeds", "entry"]


@dataclass(frozen=True)
class FigureData:
    """What the functions that draw figures get: a study, and the model to draw."""

    study: Study
    model: str
    """One of the study's models; empty for a figure over all models."""
    all_facts: pd.DataFrame
    """`cell_facts` of the study."""
    estimates: Estimates
    """The numbers of the tables, with their intervals."""

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

    @property
    def baseline(self) -> str | None:
        """The model's setting with plain cross-entropy, which differences are taken from."""
        return baselines(self.study).get(self.model)

    def measured(self, stage: str) -> pd.DataFrame:
        """The model's measurements at a stage, without variants."""
        return measured(self.study, self.model, stage)

    def benchmarks(self, stage: str) -> Benchmarks:
        """The model's benchmarks at a stage."""
        return self.estimates.grid.benchmarks.get((self.model, stage), {})

    def curve(self, stage: str, scores: Scores) -> pd.DataFrame:
        """Returns `objective step tokens mean low high seeds entry` at each checkpoint that has all of `scores`."""
        if not scores.pairs:
            return pd.DataFrame(columns=CURVE_COLUMNS)
        rows = self.measured(stage)[["objective", "step", "tokens"]].drop_duplicates(["objective", "step"])
        records = []
        for objective, step, tokens in rows.itertuples(index=False):
            entry = self.estimates.entry(Checkpoint(self.model, str(objective), stage, int(step)), scores)
            if entry.value is not None:
                place = {"objective": str(objective), "step": float(step), "tokens": tokens, "entry": entry}
                records.append({**place, **interval_columns(entry)})
        return pd.DataFrame(records, columns=CURVE_COLUMNS)


def interval_columns(entry: Entry) -> dict[str, float | int | None]:
    """Returns a number as the columns `mean low high seeds`; without an interval its ends are the number."""
    low, high = (entry.value if end is None else end for end in (entry.low, entry.high))
    return {"mean": entry.value, "low": low, "high": high, "seeds": entry.n}


def minus_baseline(curve: pd.DataFrame, at: str, baseline: str | None) -> pd.DataFrame:
    """Returns the rows of `FigureData.curve` minus those of the baseline at the same `at`, paired by seed.

    The interval is Student's over seeds; with one seed it is that of two independent numbers.
    """
    reference = {row[at]: row["entry"] for row in curve[curve["objective"] == baseline].to_dict("records")}
    records = []
    for row in curve[curve["objective"] != baseline].to_dict("records"):
        if row[at] in reference:
            columns = _difference(row["entry"], reference[row[at]])
            if columns:
                records.append({"objective": row["objective"], at: row[at], **columns})
    return pd.DataFrame(records, columns=["objective", at, "mean", "low", "high", "seeds"])


def _difference(entry: Entry, reference: Entry) -> dict[str, float | int] | None:
    differences = np.subtract(entry.by_seed, reference.by_seed)
    differences = differences[np.isfinite(differences)]
    count = len(differences)
    if count == 0:
        return None
    mean = float(differences.mean())
    if count > 1:
        variance = (float(differences.var(ddof=1)) + entry.resolution**2 + reference.resolution**2) / count
        half = t_quantile(count - 1) * math.sqrt(variance)
    else:
        half = math.hypot(
            *((e.high - e.low) / 2 for e in (entry, reference) if e.low is not None and e.high is not None)
        )
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": count}


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
    for name in ("entropy_fall", "length_change"):
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


def text_errors(data: FigureData, stage: str, metric: str) -> pd.DataFrame:
    """Returns `objective seed half`: half of the 95 % interval over rows of held-out text, at the last checkpoint."""
    rows = data.measured(stage)
    rows = rows[(rows["group"] == "text") & (rows["metric"] == metric)].astype({"objective": object})
    last = rows.sort_values("step", kind="stable").groupby(["objective", "seed"])["stderr"].last()
    return (NORMAL_QUANTILE * last.fillna(0)).rename("half").reset_index()
