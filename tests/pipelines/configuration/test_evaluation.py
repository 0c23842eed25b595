"""Checks of benchmarks and of evaluations, which name the whole key."""

from typing import Any

import pytest

from pipelines.configuration.evaluation import BenchmarkConfig, EvaluationConfig
from pipelines.errors import UserError

GOOD: dict[str, Any] = {"kind": "sampled", "group": "math", "task": "chain3", "items": 4, "samples": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "smpled"}, "evaluation.benchmarks.Mine.kind=smpled"),
        ({"items": 0}, "evaluation.benchmarks.Mine.items=0"),
        ({"samples": -1}, "evaluation.benchmarks.Mine.samples=-1"),
        ({"stages": ["grop"]}, "evaluation.benchmarks.Mine.stages=grop"),
        ({"max_new_tokens": 0}, "evaluation.benchmarks.Mine.max_new_tokens=0"),
        ({"verifier": "mth"}, "evaluation.benchmarks.Mine.verifier=mth"),
        ({"shots": -1}, "evaluation.benchmarks.Mine.shots=-1"),
    ],
)
def test_a_benchmark_that_cannot_be_measured_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        EvaluationConfig(benchmarks={"Other": BenchmarkConfig(**GOOD), "Mine": BenchmarkConfig(**GOOD | changes)})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "evaluation.temperature=0.0"),
        ({"top_p": 0.0}, "evaluation.top_p=0.0: it must be in (0, 1]"),
        ({"top_p": 1.5}, "evaluation.top_p=1.5"),
        ({"precision": "int8"}, "evaluation.precision=int8"),
        ({"stage_max_new_tokens": {"grop": 5}}, "evaluation.stage_max_new_tokens=grop"),
        ({"stage_max_new_tokens": {"grpo": 0}}, "evaluation.stage_max_new_tokens.grpo=0"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        EvaluationConfig(
            **{"max_new_tokens": 8, "text_length": 8, "pass_k": [1], **options},
            benchmarks={"Mine": BenchmarkConfig(**GOOD)},
        )
    assert str(error.value).startswith(message)


def test_the_longest_rows_and_answers_of_a_stage_are_those_of_its_benchmarks() -> None:
    def benchmark(kind: str, *stages: str, **options: Any) -> BenchmarkConfig:
        return BenchmarkConfig(**GOOD | {"kind": kind, "stages": list(stages)} | options)

    config = EvaluationConfig(
        max_new_tokens=8,
        text_length=64,
        pass_k=[1],
        stage_max_new_tokens={"grpo": 32},
        benchmarks={
            "Text": benchmark("text", "pretrain"),
            "Short": benchmark("sampled", "midtrain", "grpo"),
            "Long": benchmark("sampled", "grpo", max_new_tokens=99),
            "Choice": benchmark("choice", "pretrain", "midtrain", "grpo"),
        },
    )
    assert config.longest("pretrain") == {"evaluation.text_length": 64}
    assert config.longest("midtrain") == {"evaluation.max_new_tokens": 8}
    assert config.longest("grpo") == {
        "evaluation.stage_max_new_tokens.grpo": 32,
        "evaluation.benchmarks.Long.max_new_tokens": 99,
    }
