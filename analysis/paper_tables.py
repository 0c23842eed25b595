"""The paper's tables 1-23 by number: which stage, model and settings each one is of, and the order of its columns.

A study's own model takes the place of the paper's model of its kind: a dense one that of the 4B, a mixture of experts
that of the 10B-A0.5B, the two that the paper takes through all stages.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.reference import MODELS

BETA = ("precision", "ce", "diversity")
LAMBDA = ("tail_penalty", "ce", "head_reward")
SETTINGS = ("ce", "precision", "diversity", "tail_penalty", "head_reward")
GROUPS = ("knowledge", "commonsense", "logic", "math", "code")
STAGE_NAMES = {"pretrain": "Pre-training", "midtrain": "Mid-training", "grpo": "RL"}

BENCHMARKS = (
    "MMLU", "MMLU-Pro", "TriviaQA", "NaturalQuestions",
    "HellaSwag", "SIQA", "PIQA", "WinoGrande", "OpenBookQA", "CommonsenseQA",
    "ARC-Easy", "ARC-Challenge", "BBH",
    "GSM8K", "MATH-500", "Minerva", "OlympiadBench",
    "HumanEval+", "MBPP+",
)  # fmt: skip
"""The base models' benchmarks in the paper's order."""

RL_BENCHMARKS = ("AMC23", "AIME24", "AIME25", "MATH-500", "Minerva", "OlympiadBench")


@dataclass(frozen=True)
class Place:
    """What a numbered table is of: a family of settings over a stage, or one setting's RL."""

    stage: str
    model: str
    settings: tuple[str, ...]


TABLES: dict[int, Place] = {
    **{2 + i: Place("pretrain", model, BETA) for i, model in enumerate(MODELS)},
    **{6 + i: Place("pretrain", model, LAMBDA) for i, model in enumerate(MODELS)},
    10: Place("midtrain", "4B", BETA),
    11: Place("midtrain", "10B-A0.5B", BETA),
    12: Place("midtrain", "4B", LAMBDA),
    13: Place("midtrain", "10B-A0.5B", LAMBDA),
    14: Place("grpo", "4B", ("ce",)),
    15: Place("grpo", "10B-A0.5B", ("ce",)),
    16: Place("grpo", "4B", ("precision",)),
    17: Place("grpo", "4B", ("diversity",)),
    18: Place("grpo", "10B-A0.5B", ("precision",)),
    19: Place("grpo", "10B-A0.5B", ("diversity",)),
    20: Place("grpo", "4B", ("tail_penalty",)),
    21: Place("grpo", "4B", ("head_reward",)),
    22: Place("grpo", "10B-A0.5B", ("tail_penalty",)),
    23: Place("grpo", "10B-A0.5B", ("head_reward",)),
}
"""Number -> what the table is of; table 1 is the architectures."""


def counterpart(model: str, config: Mapping[str, Any]) -> str:
    """The paper's model whose place `model` of this architecture takes."""
    if model in MODELS:
        return model
    return "10B-A0.5B" if config.get("experts") else "4B"


def benchmark_order(names: Iterable[str], stage: str) -> list[str]:
    """The benchmarks in the paper's order, those it does not have after them as they come."""
    order = RL_BENCHMARKS if stage == "grpo" else BENCHMARKS
    found = list(dict.fromkeys(names))
    return sorted(found, key=lambda name: order.index(name) if name in order else len(order))
