"""Pre-training and mid-training: tokens, batch, optimizer, mixture and milestones."""

import math
from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from pipelines.configuration.lora import LoRAConfig
from pipelines.configuration.signed_content import added_later
from pipelines.errors import require, require_momentum, require_not_negative, require_option, require_positive

DECAYS = ("cosine", "linear", "1-sqrt")
ATTENTION = ("row", "document")
PRECISIONS = ("float32", "bfloat16-mixed", "bfloat16")
MIDTRAIN_OBJECTIVES = ("inherit", "ce")


def milestone_steps(steps: int, milestones: int) -> list[int]:
    """Returns the steps of `milestones` equally spaced checkpoints, ascending; the last is the last step."""
    return [round(steps * i / milestones) for i in range(1, milestones + 1)]


@dataclass
class TrainConfig:
    """Keys that pre-training and mid-training share."""

    key: ClassVar[str] = "train"
    """Name of the stage, which its keys begin with."""
    tokens: int = MISSING
    """Budget in tokens."""
    batch_tokens: int = MISSING
    """Tokens per optimizer step."""
    sequence_length: int = MISSING
    """Tokens per row."""
    learning_rate: float = MISSING
    """Peak learning rate."""
    rope_base: float | None = MISSING
    """Base of the rotary position embeddings; null: that of the start checkpoint, which always keeps its own."""
    mixture: dict[str, float] = MISSING
    """Weight of each source: `text`, a task family of `data.tasks`, or a name of `data.sources`."""
    milestones: int = MISSING
    """Number of checkpoints that are kept and evaluated, equally spaced, the last one at the end."""
    weight_decay: float = 0.1
    """AdamW's weight decay on matrices; scales of norms do not decay. The paper's."""
    adam_beta1: float = 0.9
    """AdamW's decay of the first moment. Ours."""
    adam_beta2: float = 0.95
    """AdamW's decay of the second moment. Ours."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient. The paper's."""
    attention: str = "row"
    """Which earlier tokens a token attends to: `row`: all in its row; `document`: those of its document. Ours."""
    precision: str = "float32"
    """`float32`; `bfloat16-mixed`: only matrix products in bfloat16; `bfloat16`: weights and optimizer too. Ours."""
    spike_sigmas: float | None = None
    """Skip a step whose loss or gradient norm is this many standard deviations above that of the last 128 steps; null:
    skip only steps whose loss or norm is not finite. Ours."""
    max_skipped: int = 0
    """Number of steps that may be skipped in total; one more fails the stage. Ours."""

    def __post_init__(self) -> None:
        require_option(f"{self.key}.attention", self.attention, ATTENTION)
        require_option(f"{self.key}.precision", self.precision, PRECISIONS)
        require_positive(
            self.key, self, "tokens", "batch_tokens", "sequence_length", "learning_rate", "milestones", "gradient_clip"
        )
        if self.rope_base is not None:
            require_positive(self.key, self, "rope_base")
        require_not_negative(self.key, self, "max_skipped", "weight_decay")
        require_momentum(self.key, self)
        require(
            self.spike_sigmas is None or self.spike_sigmas > 0,
            f"{self.key}.spike_sigmas",
            self.spike_sigmas,
            fix="it must be above 0, or null to skip only steps that are not finite",
        )
        self._check_steps()
        self._check_mixture()

    def _check_steps(self) -> None:
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

    def _check_mixture(self) -> None:
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
        """Optimizer steps in the budget (whole batches)."""
        return self.tokens // self.batch_tokens

    def checkpoints(self) -> list[int]:
        """Steps at which a checkpoint is kept, ascending; the last is the last step."""
        return milestone_steps(self.steps, self.milestones)


@dataclass
class PretrainConfig(TrainConfig):
    """Pre-training: the learning rate warms up and then stays constant."""

    key: ClassVar[str] = "pretrain"
    warmup_steps: int = MISSING
    """Steps over which the learning rate rises linearly to its peak."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.warmup_steps <= self.steps,
            "pretrain.warmup_steps",
            self.warmup_steps,
            fix=f"it must be between 0 and the {self.steps} steps of the budget",
        )


@dataclass
class MidtrainConfig(TrainConfig):
    """Mid-training: the learning rate decays, on another mixture and longer rows."""

    key: ClassVar[str] = "midtrain"
    final_learning_rate: float = MISSING
    """Learning rate at the last step."""
    decay: str = "cosine"
    """Shape of the decay: `cosine`, `linear` or `1-sqrt`. Ours."""
    objective: str = "inherit"
    """`inherit`: the cell's objective; `ce`: plain cross-entropy in this stage. Ours."""
    lora: LoRAConfig = added_later(as_before=LoRAConfig())
    """Adapters that are trained in place of all weights."""

    def __post_init__(self) -> None:
        if isinstance(self.lora, dict):  # of a signed configuration
            self.lora = LoRAConfig(**self.lora)
        super().__post_init__()
        self.lora.check("midtrain.lora")
        require_option("midtrain.decay", self.decay, DECAYS)
        require_option("midtrain.objective", self.objective, MIDTRAIN_OBJECTIVES)
        require(
            0 <= self.final_learning_rate <= self.learning_rate,
            "midtrain.final_learning_rate",
            self.final_learning_rate,
            fix=f"the rate decays, so it must be between 0 and midtrain.learning_rate={self.learning_rate}",
        )
