"""Budgets of the token stages: tokens, rates, mixture, milestones."""

import math
from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from pipelines.errors import nearest, require, require_momentum, require_positive

DECAYS = ("cosine", "linear", "1-sqrt")
ATTENTION = ("row", "document")
PRECISIONS = ("float32", "bfloat16-mixed", "bfloat16")


@dataclass
class TrainConfig:
    """What pre-training and mid-training share: budget, batch, optimizer, mixture and milestones."""

    key: ClassVar[str] = "train"
    tokens: int = MISSING
    """Budget in tokens."""
    batch_tokens: int = MISSING
    """Tokens in one optimizer step."""
    sequence_length: int = MISSING
    learning_rate: float = MISSING
    rope_base: float = MISSING
    mixture: dict[str, float] = MISSING
    """Weight of each source: `text`, a family of `data.tasks`, or a name of `data.sources`."""
    milestones: int = MISSING
    """Checkpoints kept and evaluated, equally far apart, the last at the end."""
    weight_decay: float = 0.1
    """On matrices; the scales of norms do not decay."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    gradient_clip: float = 1.0
    attention: str = "row"
    """What a token attends to: all of its `row` before it, or its own `document` in that row."""
    precision: str = "float32"
    """`bfloat16-mixed`: products in bfloat16, weights and optimizer in float32; `bfloat16`: all in bfloat16."""
    spike_sigmas: float | None = None
    """A step whose loss or gradient norm lies that many standard deviations above the last 128 is skipped; null: only
    one that is not finite."""
    max_skipped: int = 0
    """Steps that may be skipped in all; one more ends the training."""

    def __post_init__(self) -> None:
        for key, options in (("attention", ATTENTION), ("precision", PRECISIONS)):
            value = getattr(self, key)
            require(value in options, f"{self.key}.{key}", value, fix=nearest(value, options))
        require(
            self.spike_sigmas is None or self.spike_sigmas > 0,
            f"{self.key}.spike_sigmas",
            self.spike_sigmas,
            fix="it must be above 0, or null to skip only what is not finite",
        )
        require(self.max_skipped >= 0, f"{self.key}.max_skipped", self.max_skipped, fix="it must be 0 or more")
        require_positive(
            self.key,
            self,
            "tokens",
            "batch_tokens",
            "sequence_length",
            "learning_rate",
            "rope_base",
            "milestones",
            "gradient_clip",
        )
        require(
            self.batch_tokens % self.sequence_length == 0,
            f"{self.key}.batch_tokens",
            self.batch_tokens,
            fix=f"it must be a multiple of {self.key}.sequence_length={self.sequence_length}",
        )
        require(
            self.steps >= self.milestones,
            f"{self.key}.milestones",
            self.milestones,
            fix=f"a budget of {self.tokens} tokens has only {self.steps} steps of {self.batch_tokens}",
        )
        require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"{self.key}.weight_decay",
            self.weight_decay,
            fix="it must be finite and 0 or more",
        )
        require_momentum(self.key, self)
        for source, weight in self.mixture.items():
            require(
                math.isfinite(weight) and weight >= 0,
                f"{self.key}.mixture.{source}",
                weight,
                fix="a weight must be finite and 0 or more",
            )
        require(
            sum(self.mixture.values()) > 0,
            f"{self.key}.mixture",
            self.mixture,
            fix="at least one weight must be above 0",
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of the budget (whole batches)."""
        return self.tokens // self.batch_tokens

    def checkpoints(self) -> list[int]:
        """Steps at which a checkpoint is kept, ascending, the last one at the end."""
        return [round(self.steps * i / self.milestones) for i in range(1, self.milestones + 1)]


@dataclass
class PretrainConfig(TrainConfig):
    """Pre-training: warm-up, then a constant rate."""

    key: ClassVar[str] = "pretrain"
    warmup_steps: int = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.warmup_steps <= self.steps,
            "pretrain.warmup_steps",
            self.warmup_steps,
            fix=f"it must lie between 0 and the {self.steps} steps of the budget",
        )


@dataclass
class MidtrainConfig(TrainConfig):
    """Mid-training: the rate decays to `final_learning_rate` on another mixture and longer sequences."""

    key: ClassVar[str] = "midtrain"
    final_learning_rate: float = MISSING
    decay: str = "cosine"
    objective: str = "inherit"
    """`inherit`: the cell's objective; `ce`: plain cross-entropy in this stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.decay in DECAYS, "midtrain.decay", self.decay, fix=nearest(self.decay, DECAYS))
        require(
            self.objective in ("inherit", "ce"),
            "midtrain.objective",
            self.objective,
            fix=nearest(self.objective, ("inherit", "ce")),
        )
        require(
            0 <= self.final_learning_rate <= self.learning_rate,
            "midtrain.final_learning_rate",
            self.final_learning_rate,
            fix=f"the rate decays, so it must lie between 0 and midtrain.learning_rate={self.learning_rate}",
        )
