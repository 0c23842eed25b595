"""The columns of the tables: which quantities each table shows, and how a benchmark's metric becomes a score.

A further column is one entry in this file: a further key of `ARCHITECTURE_COLUMNS`, or a function in
`BASE_MODEL_COLUMNS` or `RL_COLUMNS` that returns it. Its test belongs in tests/analysis/test_table_columns.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.measurement_grid import Benchmarks
from analysis.paper_tables import GROUPS, benchmark_order
from analysis.tables import Column


@dataclass(frozen=True)
class Scores:
    """What one column shows: the mean of these (benchmark, metric) pairs, times `factor`."""

    pairs: tuple[tuple[str, str], ...]
    factor: float = 100


Columns = dict[Column, Scores]


@dataclass(frozen=True)
class Architecture:
    """A model as table 1 describes it."""

    config: dict[str, Any]
    """Its `model` configuration."""
    vocab_size: int | None
    parameters: int | None
    """As counted in pre-training; None before that has run."""


# --- table 1: a row per model -------------------------------------------------------------------------------------

ARCHITECTURE_COLUMNS: dict[str, Callable[[Architecture], Any]] = {
    "layers": lambda model: model.config.get("layers"),
    "d_model": lambda model: model.config.get("d_model"),
    "FFN / expert": lambda model: model.config.get("ffn"),
    "heads": lambda model: model.config.get("heads"),
    "kv heads": lambda model: model.config.get("kv_heads"),
    "head size": lambda model: model.config.get("head_dim"),
    "experts": lambda model: model.config.get("experts"),
    "active": lambda model: model.config.get("active_experts", model.config.get("experts_per_token")),
    "vocabulary": lambda model: model.vocab_size,
    "parameters": lambda model: None if model.parameters is None else f"{model.parameters:,}",
}
"""Column -> its value; None is shown as missing."""


# --- tables 2-13: base models over token checkpoints --------------------------------------------------------------


def score_columns(benchmarks: Benchmarks, stage: str) -> Columns:
    """One score per benchmark, in the paper's groups and order."""
    # The order of GROUPS is the order of the columns.
    columns: Columns = {}
    for group in GROUPS:
        names = [name for name, benchmark in benchmarks.items() if benchmark.group == group]
        for name in benchmark_order(names, stage):
            if metric := score_metric(benchmarks[name].metrics, group):
                columns[group, f"{name} {metric_title(metric)}"] = Scores(((name, metric),))
    return columns


def average_column(benchmarks: Benchmarks, stage: str) -> Columns:
    """The average over all scores."""
    pairs = tuple(pair for scores in score_columns(benchmarks, stage).values() for pair in scores.pairs)
    return {("", "average"): Scores(pairs)}


def text_columns(benchmarks: Benchmarks, stage: str) -> Columns:
    """Perplexity and entropy (nats) on held-out text; with the name of the text if there are several."""
    columns: Columns = {}
    texts = [name for name, benchmark in benchmarks.items() if benchmark.group == "text"]
    for name in texts:
        for metric in ("perplexity", "entropy"):
            if metric in benchmarks[name].metrics:
                title = metric if len(texts) == 1 else f"{name} {metric}"
                columns["text", title] = Scores(((name, metric),), factor=1)
    return columns


BASE_MODEL_COLUMNS: tuple[Callable[[Benchmarks, str], Columns], ...] = (average_column, score_columns, text_columns)
"""The columns of tables 2-13 from left to right, from the measured benchmarks and the stage."""


# --- tables 14-23: one setting over RL steps ----------------------------------------------------------------------

RL_METRICS = ("avg", "cons", "pass")


def rl_metrics(benchmarks: Benchmarks) -> list[str]:
    """The measured Avg@n, Cons@n and Pass@k, in this order and by size."""
    metrics = {
        metric
        for benchmark in benchmarks.values()
        if benchmark.group == "math"
        for metric in benchmark.metrics
        if "@" in metric and metric.split("@")[0] in RL_METRICS
    }
    return sorted(metrics, key=lambda metric: (RL_METRICS.index(metric.split("@")[0]), int(metric.split("@")[1])))


def rl_benchmarks(benchmarks: Benchmarks) -> list[str]:
    """The measured mathematics benchmarks in the paper's order."""
    return benchmark_order([name for name, benchmark in benchmarks.items() if benchmark.group == "math"], "grpo")


def benchmark_columns(benchmarks: Benchmarks) -> Columns:
    """Every RL metric of every benchmark."""
    metrics = rl_metrics(benchmarks)
    return {
        (name, metric_title(metric)): Scores(((name, metric),))
        for name in rl_benchmarks(benchmarks)
        for metric in metrics
    }


def average_columns(benchmarks: Benchmarks) -> Columns:
    """Every RL metric, averaged over the benchmarks."""
    names = rl_benchmarks(benchmarks)
    return {
        ("average", metric_title(metric)): Scores(tuple((name, metric) for name in names))
        for metric in rl_metrics(benchmarks)
    }


RL_COLUMNS: tuple[Callable[[Benchmarks], Columns], ...] = (average_columns, benchmark_columns)
"""The columns of tables 14-23 from left to right, from the measured benchmarks."""


# --- metrics ------------------------------------------------------------------------------------------------------


def score_metric(metrics: Iterable[str], group: str) -> str | None:
    """Returns the metric that is a base model's score on a benchmark, out of those measured.

    Pass@k at the largest k for mathematics and code (as in the paper), else accuracy, else Avg@n, else None.
    """
    measured = set(metrics)
    largest_pass = largest_metric(measured, "pass")
    if largest_pass and group in ("math", "code"):
        return largest_pass
    if "accuracy" in measured:
        return "accuracy"
    return next((metric for metric in sorted(measured) if metric.startswith("avg@")), None)


def largest_metric(metrics: Iterable[str], name: str) -> str | None:
    """Returns the metric `NAME@size` with the largest size, such as `pass@64`; None if there is none."""
    sized = [metric for metric in metrics if metric.startswith(f"{name}@")]
    return max(sized, key=lambda metric: int(metric.split("@")[1]), default=None)


def metric_title(metric: str) -> str:
    """`pass@4` -> `Pass@4`; metrics without a size are unchanged."""
    return metric[0].upper() + metric[1:] if "@" in metric else metric


def join_columns(parts: Iterable[Columns]) -> Columns:
    """Returns the columns of all parts in order."""
    return {column: scores for part in parts for column, scores in part.items()}


def with_columns(records: list[dict[Column, Any]], index: pd.Index) -> pd.DataFrame:
    """Returns the rows as a frame of objects whose columns are (group, name)."""
    frame = pd.DataFrame(records, index=index, dtype=object)
    if len(frame.columns):
        frame.columns = pd.MultiIndex.from_tuples(list(records[0]))
    return frame
