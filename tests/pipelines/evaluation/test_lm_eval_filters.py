"""Which of a task's filters and metrics decides: the one that the benchmark names, else the first."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.configuration.evaluation import BenchmarkConfig
from pipelines.errors import UserError
from pipelines.evaluation import lm_eval_tasks
from pipelines.evaluation.lm_eval_tasks import _judged, run_task

ROWS = [
    {"filter": name, "metrics": ["exact", "other"], "exact": exact, "other": 1 - exact}
    for name, scores in (("strict", [0, 0, 0, 1]), ("flexible", [1, 1, 0, 1]))
    for exact in scores
]


def benchmark(metric: str | None) -> BenchmarkConfig:
    return BenchmarkConfig("harness", "math", "t", items=4, samples=1, metric=metric)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A context whose task has two filters, evaluated by lm-eval to `ROWS`."""
    task = SimpleNamespace(OUTPUT_TYPE="multiple_choice")
    monkeypatch.setattr(lm_eval_tasks, "load_tasks", lambda *_: {"t": task})
    monkeypatch.setattr(lm_eval_tasks, "chosen_docs", lambda tasks, _: (tasks, {}, 4))
    monkeypatch.setattr(lm_eval_tasks, "RolloutLM", lambda *_, **__: SimpleNamespace(cut_prompts=0))
    monkeypatch.setattr(lm_eval_tasks.lm_eval, "evaluate", lambda *_, **__: {"samples": {"t": ROWS}})
    corpus = SimpleNamespace(tokenizer=None)
    return SimpleNamespace(model=None, corpus=corpus, cache=None, sampler=None)


@pytest.mark.parametrize(
    ("metric", "accuracy"), [("exact,strict", 1 / 4), ("exact,flexible", 3 / 4), ("other,flexible", 1 / 4)]
)
def test_the_accuracy_is_that_of_the_named_filter(evaluated: Any, metric: str, accuracy: float) -> None:
    result = run_task(evaluated, "B", benchmark(metric))
    assert (result.metrics["accuracy"].value, result.metrics["accuracy"].n) == (accuracy, 4)


@pytest.mark.parametrize("metric", ["exact,none", "none,strict", "none"])
def test_an_unknown_filter_or_metric_is_named_with_the_known_ones(evaluated: Any, metric: str) -> None:
    with pytest.raises(UserError, match=r"evaluation\.benchmarks\.B\.metric=none|exact,none|none,strict") as error:
        run_task(evaluated, "B", benchmark(metric))
    assert "exact,flexible, exact,strict, other,flexible, other,strict" in str(error.value)


class Task:
    """Filters an answer in two ways, and accepts `7` by one metric and everything else by another."""

    def __init__(self) -> None:
        self._instances: list[Any] = []

    def apply_filters(self) -> None:
        (instance,) = self._instances
        (text,) = instance.resps
        instance.filtered_resps = {"first": text.split()[0], "last": [text.split()[-1]]}

    def process_results(self, _: Any, answers: list[str]) -> Mapping[str, float]:
        return {"exact": float(answers == ["7"]), "differs": float(answers != ["7"])}


@pytest.mark.parametrize(
    ("metric", "answer", "accepted"),
    [
        (None, "7", True),
        ("exact,first", "7", True),
        ("exact,last", "['8']", False),
        ("differs,first", "7", False),
        ("differs,last", "['8']", True),
        ("differs", "7", False),
    ],
)
def test_a_sampled_answer_is_scored_by_the_named_filter_and_metric(
    metric: str | None, answer: str, accepted: bool
) -> None:
    instance = SimpleNamespace(doc={}, resps=[], filtered_resps={}, args=("p", {}))
    verifier, found, reference = _judged(benchmark(metric), Task(), instance, text="7 or 8")  # type: ignore[arg-type]
    assert (verifier, found, reference) == ("exact", answer, answer if accepted else "")
