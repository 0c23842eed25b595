"""What measuring a benchmark receives, the checkpoint under evaluation, and what it returns."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel

from pipelines.configuration.evaluation import EvaluationConfig
from pipelines.data.corpus import Corpus
from pipelines.evaluation.benchmark_cache import BenchmarkCache
from pipelines.evaluation.metrics import Estimate
from pipelines.evaluation.sampler import Sampler, WeightStream
from pipelines.evaluation.samples import Sample
from pipelines.stage_context import StageContext
from shaping.objective import Objective


@dataclass(frozen=True)
class Control:
    """A change to a checkpoint's distribution before it is measured.

    `matched:SETTING` divides the logits by `temperature` and multiplies the sampling temperature by it.
    `theory:SETTING` measures the distribution that a tabular model would converge to, trained with `objective` on the
    checkpoint's distribution.
    """

    name: str
    temperature: float = 1.0
    objective: Objective | None = None


UNCHANGED = Control("")
"""Measures the checkpoint's own distribution."""


@dataclass(frozen=True)
class EvaluationContext:
    """A checkpoint under evaluation."""

    stage: StageContext
    model: PreTrainedModel
    config: EvaluationConfig
    top_k: int
    """The k of the data, which divides head from tail."""
    cache: BenchmarkCache
    control: Control = UNCHANGED
    weights: WeightStream | None = None
    """The checkpoint's weights for an engine that is not the checkpoint itself."""

    @cached_property
    def sampler(self) -> Sampler:
        """What samples answers."""
        return Sampler(self.model, self.corpus.tokenizer, self.config.sampler, self.weights)

    @property
    def corpus(self) -> Corpus:
        """The data of the stage run."""
        return self.stage.corpus


@dataclass(frozen=True)
class Coverage:
    """How much of a benchmark was measured, and how much of it did not fit into the model."""

    items: int
    """Items that were measured."""
    available: int | None
    """Items that the benchmark has; None where they are not counted."""
    cut_prompts: int = 0
    """Prompts whose beginning was cut off because the model has no positions for it."""
    cut_answers: int = 0
    """Sampled answers that were cut, by the limit on their length or by the model's positions."""
    unverified: int = 0
    """Sampled answers whose verifier failed or that were too long for it; their reward is 0."""


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of one benchmark."""

    metrics: dict[str, Estimate]
    coverage: Coverage
    samples: list[Sample] = field(default_factory=list)
    """Sampled answers, as in `pipelines.evaluation.samples` but without the benchmark's name."""
    detail: dict[str, Any] = field(default_factory=dict)
    """Statistics of the distribution that do not fit into one number."""
