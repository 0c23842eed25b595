"""The last value that a key may have, and the first that is refused with the key's name."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.configuration.budgets import MidtrainConfig, PretrainConfig, milestone_steps
from pipelines.configuration.compute import ComputeConfig, micro_batch
from pipelines.configuration.data import DataConfig
from pipelines.configuration.evaluation import BenchmarkConfig, EvaluationConfig
from pipelines.configuration.grpo import GRPOConfig
from pipelines.configuration.model import ModelConfig
from pipelines.configuration.objective import ObjectiveConfig
from pipelines.configuration.question_sets import QuestionSetConfig
from pipelines.configuration.tracking import TrackingConfig
from pipelines.errors import UserError

BUDGET: dict[str, Any] = {
    "tokens": 640, "batch_tokens": 64, "sequence_length": 16, "learning_rate": 0.01, "rope_base": 1e4,
    "mixture": {"text": 1.0}, "milestones": 2,
}  # fmt: skip
SHAPE: dict[str, Any] = {"layers": 1, "d_model": 8, "ffn": 8, "heads": 2, "kv_heads": 1, "head_dim": 4}


def pretrain(**changes: Any) -> PretrainConfig:
    return PretrainConfig(**(BUDGET | {"warmup_steps": 0} | changes))


def midtrain(**changes: Any) -> MidtrainConfig:
    return MidtrainConfig(**(BUDGET | {"final_learning_rate": 0.0} | changes))


def grpo(**changes: Any) -> GRPOConfig:
    return GRPOConfig(**({"steps": 4, "tasks": ["t"], "milestones": 1, "prompts": 3, "pass_rate_high": 0.5} | changes))


def mixture_of_experts(**changes: Any) -> ModelConfig:
    return ModelConfig("m", **(SHAPE | {"experts": 4, "active_experts": 2} | changes))


def dense(**changes: Any) -> ModelConfig:
    return ModelConfig("m", **(SHAPE | changes))


def evaluation(**changes: Any) -> EvaluationConfig:
    values = {"max_new_tokens": 4, "text_length": 8, "pass_k": [1], "benchmarks": {}}
    return EvaluationConfig("e", **(values | changes))


def sampled(**changes: Any) -> EvaluationConfig:
    """Of a benchmark with four samples."""
    benchmark = BenchmarkConfig("sampled", "math", "chain3", items=1, samples=4)
    config = evaluation(benchmarks={"B": benchmark}, **changes)
    config.check_means_something()
    return config


def questions(**changes: Any) -> QuestionSetConfig:
    values = {"path": "a.jsonl", "difficulty": "level", "difficulty_high": 3.0}
    made = QuestionSetConfig(**(values | changes))
    made.check("grpo.questions.q")
    return made


def data(**changes: Any) -> DataConfig:
    return DataConfig("d", **({"vocab_size": 300} | changes))


EDGES: list[tuple[Callable[..., Any], str, Any, Any]] = [
    (pretrain, "pretrain.warmup_steps", 10, 11),
    (pretrain, "pretrain.warmup_steps", 0, -1),
    (pretrain, "pretrain.milestones", 10, 11),
    (pretrain, "pretrain.weight_decay", 0.0, -0.1),
    (pretrain, "pretrain.max_skipped", 0, -1),
    (pretrain, "pretrain.spike_sigmas", 0.1, 0.0),
    (pretrain, "pretrain.adam_beta1", 0.0, 1.0),
    (pretrain, "pretrain.adam_beta2", 0.999, 1.0),
    (midtrain, "midtrain.final_learning_rate", 0.01, 0.011),
    (midtrain, "midtrain.final_learning_rate", 0.0, -0.001),
    (grpo, "grpo.samples", 2, 1),
    (grpo, "grpo.milestones", 4, 5),
    (grpo, "grpo.minibatches", 3, 4),
    (grpo, "grpo.pass_rate_low", 0.49, 0.5),
    (grpo, "grpo.pass_rate_high", 1.0, 1.1),
    (grpo, "grpo.clip_low", 0.99, 1.0),
    (grpo, "grpo.clip_low", 0.01, 0.0),
    (grpo, "grpo.clip_high", 0.01, 0.0),
    (grpo, "grpo.overlong_buffer", 1.0, 1.1),
    (grpo, "grpo.overlong_buffer", 0.1, 0.0),
    (grpo, "grpo.importance_cap", 0.0, -0.1),
    (grpo, "grpo.kl_weight", 0.0, -0.1),
    (grpo, "grpo.held_out_every", 0, -1),
    (grpo, "grpo.resample_rounds", 0, -1),
    (grpo, "grpo.seed", 0, -1),
    (ObjectiveConfig, "objective.beta", -0.999, -1.0),
    (ObjectiveConfig, "objective.top_k", 1, 0),
    (mixture_of_experts, "model.active_experts", 1, 0),
    (mixture_of_experts, "model.active_experts", 4, 5),
    (mixture_of_experts, "model.balance_rate", 0.0, -0.001),
    (dense, "model.active_experts", 0, 1),
    (dense, "model.head_dim", 2, 3),
    (evaluation, "evaluation.top_p", 1.0, 1.01),
    (evaluation, "evaluation.top_p", 0.01, 0.0),
    (ComputeConfig, "compute.micro_batch_tokens", 1, 0),
    (ComputeConfig, "compute.shard_ranks", 0, -1),
    (ComputeConfig, "compute.keep_last", 1, 0),
    (ComputeConfig, "compute.verifier_workers", 0, -1),
    (questions, "grpo.questions.q.difficulty_low", 3.0, 3.5),
    (data, "data.vocab_size", 258, 257),
    (data, "data.top_k", 300, 301),
    (data, "data.careless_share", 1.0, 1.01),
    (TrackingConfig, "tracking.project", "p" * 128, "p" * 129),
]


@pytest.mark.parametrize(
    ("make", "key", "allowed", "refused"),
    EDGES,
    ids=[f"{row[1]}={row[3]:.9}" if isinstance(row[3], str) else f"{row[1]}={row[3]}" for row in EDGES],
)
def test_the_edge_is_allowed_and_what_is_beyond_is_not(
    make: Callable[..., Any], key: str, allowed: Any, refused: Any
) -> None:
    name = key.rpartition(".")[2]
    assert getattr(make(**{name: allowed}), name) == allowed
    with pytest.raises(UserError, match=f"^{re.escape(f'{key}={refused}')}: "):
        make(**{name: refused})


def test_pass_at_k_is_of_as_many_samples_as_there_are_at_most() -> None:
    assert sampled(pass_k=[1, 4]).pass_k == [1, 4]
    with pytest.raises(UserError, match=r"^evaluation\.pass_k=5: no benchmark has so many samples"):
        sampled(pass_k=[1, 5])


def test_milestones_are_at_the_nearest_steps() -> None:
    assert milestone_steps(10, 4) == [2, 5, 8, 10]  # of 2.5, 5, 7.5 and 10; halves go to the even step
    assert milestone_steps(11, 3) == [4, 7, 11]  # of 3.67 and 7.33


def test_of_many_values_that_fit_the_first_and_the_last_are_listed() -> None:
    budget = pretrain(tokens=120 * 16 * 2, batch_tokens=120 * 16)
    with pytest.raises(UserError, match=r"that fit: 1, 2, 3, 4, 5, 6, \.\.\., 20, 24, 30, 40, 60, 120$"):
        micro_batch(budget, ComputeConfig(), 7)
