"""The columns of the tables: which metric is a score, and that a further column is one entry."""

from collections.abc import Callable

import pytest

from analysis import table_columns
from analysis.measurement_grid import Benchmark
from analysis.study import read_study
from analysis.table_builder import build_tables
from analysis.table_columns import Scores, largest_metric, metric_title, rl_metrics, score_metric
from tests.analysis.conftest import Measured, known


@pytest.mark.parametrize(
    ("metrics", "group", "score"),
    [
        (["avg@8", "pass@4", "pass@16", "accuracy"], "math", "pass@16"),
        (["avg@8", "pass@4", "accuracy"], "logic", "accuracy"),
        (["avg@8", "pass@4"], "logic", "avg@8"),
        (["perplexity"], "text", None),
    ],
)
def test_the_score_of_a_benchmark(metrics: list[str], group: str, score: str | None) -> None:
    assert score_metric(metrics, group) == score


def test_metrics_are_ordered_by_size_as_numbers() -> None:
    benchmark = Benchmark("math", ["pass@16", "avg@8", "pass@4", "response_length", "cons@8"])
    assert rl_metrics({"Chain-3": benchmark}) == ["avg@8", "cons@8", "pass@4", "pass@16"]
    assert largest_metric(benchmark.metrics, "pass") == "pass@16"
    assert largest_metric(["perplexity"], "pass") is None
    assert [metric_title(metric) for metric in ("pass@4", "accuracy")] == ["Pass@4", "accuracy"]


def test_a_further_column_is_one_entry(make_store: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def length(benchmarks: table_columns.Benchmarks, stage: str = "grpo") -> table_columns.Columns:
        return {("Chain-3", "length"): Scores((("Chain-3", "response_length"),), factor=1)}

    monkeypatch.setitem(table_columns.ARCHITECTURE_COLUMNS, "rope theta", lambda model: model.config.get("rope_theta"))
    for name in ("BASE_MODEL_COLUMNS", "RL_COLUMNS"):
        monkeypatch.setattr(f"analysis.table_builder.{name}", (*getattr(table_columns, name), length))
    tables = {table.number: table for table in build_tables(read_study(*make_store(["objective=ce"])))}
    assert ("", "rope theta") in tables[1].columns
    for number, checkpoint in ((3, ("pretrain", 781)), (14, ("grpo", 20))):
        cell = tables[number].cells.loc["ce"].iloc[-1]["Chain-3", "length"]
        assert cell.value == pytest.approx(known(Measured("ce", 1, *checkpoint, "Chain-3", "response_length")))
