"""The paper's tables 1-23 by number: the stage, model and settings of each, and the order of their columns.

A study's own model takes the place of one of the paper's models: a dense one of the 4B, a mixture of experts of the
10B-A0.5B. These are the two that the paper takes through all stages.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.reference import MODELS

BETA_FAMILY = ("precision", "ce", "diversity")
LAMBDA_FAMILY = ("tail_penalty", "ce", "head_reward")
GROUPS = ("knowledge", "commonsense", "logic", "math", "code")
STAGE_TITLES = {"pretrain": "Pre-training", "midtrain": "Mid-training", "grpo": "RL"}

BENCHMARKS = (
    "MMLU", "MMLU-Pro", "TriviaQA", "NaturalQuestions",
    "HellaSwag", "SIQA", "PIQA", "WinoGrande", "OpenBookQA", "CommonsenseQA",
    "ARC-Easy", "ARC-Challenge", "BBH",
    "GSM8K", "MATH-500", "Minerva", "OlympiadBench",
    "HumanEval+", "MBPP+",
)  # fmt: skip
"""The base models' benchmarks in the paper's order."""

SAMPLED_BENCHMARKS = BENCHMARKS[BENCHMARKS.index("GSM8K") :]
"""Those whose score is the paper's Pass@64: mathematics and code."""

RL_BENCHMARKS = ("AMC23", "AIME24", "AIME25", "MATH-500", "Minerva", "OlympiadBench")


@dataclass(frozen=True)
class PaperTable:
    """What a numbered table shows: one stage of one model, for a family of settings or for one setting's RL."""

    stage: str
    model: str
    settings: tuple[str, ...]


TABLES: dict[int, PaperTable] = {
    **{2 + i: PaperTable("pretrain", model, BETA_FAMILY) for i, model in enumerate(MODELS)},
    **{6 + i: PaperTable("pretrain", model, LAMBDA_FAMILY) for i, model in enumerate(MODELS)},
    10: PaperTable("midtrain", "4B", BETA_FAMILY),
    11: PaperTable("midtrain", "10B-A0.5B", BETA_FAMILY),
    12: PaperTable("midtrain", "4B", LAMBDA_FAMILY),
    13: PaperTable("midtrain", "10B-A0.5B", LAMBDA_FAMILY),
    14: PaperTable("grpo", "4B", ("ce",)),
    15: PaperTable("grpo", "10B-A0.5B", ("ce",)),
    16: PaperTable("grpo", "4B", ("precision",)),
    17: PaperTable("grpo", "4B", ("diversity",)),
    18: PaperTable("grpo", "10B-A0.5B", ("precision",)),
    19: PaperTable("grpo", "10B-A0.5B", ("diversity",)),
    20: PaperTable("grpo", "4B", ("tail_penalty",)),
    21: PaperTable("grpo", "4B", ("head_reward",)),
    22: PaperTable("grpo", "10B-A0.5B", ("tail_penalty",)),
    23: PaperTable("grpo", "10B-A0.5B", ("head_reward",)),
}
"""Number -> what the table shows; table 1 lists the architectures."""


def counterpart(model: str, config: Mapping[str, Any]) -> str:
    """Returns the paper's model whose place `model`, of this architecture, takes."""
    if model in MODELS:
        return model
    return "10B-A0.5B" if config.get("experts") else "4B"


def is_same_measurement(
    row: Mapping[Any, Any], pairs: Collection[tuple[str, str]], *, model: str, scales: Collection[str], progress: int
) -> bool:
    """Returns whether a number that the paper reports, a `row` of `reference`, and ours measure the same.

    Ours is of `model`, in a study of these `scales`, the mean over the (benchmark, metric) `pairs`, measured after
    `progress` tokens or RL steps. Only then does the difference of the two numbers mean anything.
    """
    # "500B" tokens or "step 1000"; the last checkpoint may be a batch away from the budget.
    budget = row["budget"].removeprefix("step ")
    steps = float(budget.removesuffix("B")) * (10**9 if budget.endswith("B") else 1)
    if row["model"] != model or set(scales) != {"paper"} or abs(progress / steps - 1) > 0.01:
        return False
    average = RL_BENCHMARKS if row["stage"] == "grpo" else BENCHMARKS
    benchmarks = average if row["benchmark"] == "average" else (row["benchmark"],)
    if sorted(name for name, _ in pairs) != sorted(benchmarks):
        return False
    if row["metric"] != "score":
        return all(metric == row["metric"] for _, metric in pairs)
    return all((metric == "pass@64") == (name in SAMPLED_BENCHMARKS) for name, metric in pairs)


def benchmark_order(names: Iterable[str], stage: str) -> list[str]:
    """Returns the benchmarks in the paper's order, followed by all others in the order given."""
    order = RL_BENCHMARKS if stage == "grpo" else BENCHMARKS
    distinct = list(dict.fromkeys(names))
    return sorted(distinct, key=lambda name: order.index(name) if name in order else len(order))
