"""Reinforcement learning: sampling, the loss, and what is watched."""

import math
from dataclasses import dataclass

from omegaconf import MISSING

from pipelines.errors import nearest, require, require_fraction, require_momentum, require_positive

ADVANTAGES = ("standardised", "centred", "leave_one_out")
LOSSES = ("token", "sequence", "constant")
OVERLONG = ("wrong", "filter", "penalty")
LEFTOVERS = ("discard", "keep")
COLLAPSE = ("off", "mark", "stop")
ENGINES = ("transformers", "vllm")


@dataclass
class GRPOConfig:
    """RL with verifiable rewards. The defaults are the study's: strictly on-policy, no KL term, clip-higher, dynamic
    sampling, 8K tokens a response and 16K from step 700; DAPO's and Dr. GRPO's choices are options."""

    steps: int = MISSING
    tasks: list[str] = MISSING
    """What is asked, in equal shares: families of `data.tasks`, or JSON-lines files (`pipelines.data.questions`)."""
    milestones: int = MISSING
    prompts: int = 128
    """Prompts a step; each is a group."""
    samples: int = 16
    """Responses sampled for each prompt."""
    temperature: float = 1.0
    """Of the sampling, and of the distribution whose log-probabilities the loss takes."""
    max_new_tokens: int = 8192
    """Longest response in tokens, the end token counted."""
    extended_from_step: int | None = 700
    """From this step on the limit is `extended_max_new_tokens`; null: never."""
    extended_max_new_tokens: int = 16384
    engine: str = "transformers"
    """What samples: `transformers`, in process, or `vllm`."""
    importance_cap: float | None = None
    """Truncated importance sampling: the loss of a token is weighted by min(pi_learner / pi_sampler, cap)."""

    advantage: str = "standardised"
    """(r - mean) / std in the group; `centred`: r - mean (Dr. GRPO); `leave_one_out`: r - mean of the others (RLOO)."""
    loss: str = "token"
    """Mean over all tokens (DAPO); `sequence`: mean of responses' means (GRPO); `constant`: sum over tokens divided
    by responses times the limit (Dr. GRPO)."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    epochs: int = 1
    """Passes over a step's batch. With one epoch of one minibatch the update is strictly on-policy."""
    minibatches: int = 1
    """Optimizer steps in a pass."""
    kl_weight: float = 0.0
    """Weight of the KL divergence to the start model in the loss."""
    overlong: str = "wrong"
    """A response that the limit cut is `wrong` (reward 0); `filter`: it is, and stays out of the loss (DAPO);
    `penalty`: it is, and DAPO's soft punishment is added from `overlong_buffer` before the limit on."""
    overlong_buffer: float = 0.2
    """Last share of the limit over which the penalty falls from 0 to -1."""
    dynamic_sampling: bool = True
    """Groups all right or all wrong are dropped and replaced."""
    resample_rounds: int = 2
    """At most this many extra rounds replace them."""
    leftovers: str = "discard"
    """Mixed groups beyond `prompts`: `discard`, or `keep` for the next step, where they are one policy old."""
    pass_rate_low: float = 0.0
    """Only problems are asked that the start model solves at least so often, in `samples` tries each."""
    pass_rate_high: float = 1.0

    learning_rate: float = 1e-6
    warmup_steps: int = 0
    """Steps over which the rate rises to its constant value."""
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    gradient_clip: float = 1.0
    micro_batch_tokens: int = 16384
    """Tokens that an update runs through the model at a time; the gradient is that of the whole batch."""

    held_out_every: int = 10
    """Steps between measurements on held-out problems, from step 0 on; 0: none."""
    held_out_problems: int = 64
    collapse: str = "mark"
    """What happens when entropy or response length collapses: `off`, `mark` the run, or `stop` it."""
    collapse_entropy: float = 0.1
    """Share of the first steps' entropy below which it has collapsed, unless the reward stands near 1."""
    collapse_length: float = 0.5
    """Share of the first steps' response length below which it has collapsed, unless the reward has risen."""

    def __post_init__(self) -> None:
        require_positive(
            "grpo",
            self,
            "steps",
            "prompts",
            "temperature",
            "learning_rate",
            "max_new_tokens",
            "extended_max_new_tokens",
            "milestones",
            "gradient_clip",
            "epochs",
            "minibatches",
            "micro_batch_tokens",
            "held_out_problems",
        )
        for key, options in (
            ("advantage", ADVANTAGES),
            ("loss", LOSSES),
            ("overlong", OVERLONG),
            ("leftovers", LEFTOVERS),
            ("collapse", COLLAPSE),
            ("engine", ENGINES),
        ):
            require(
                getattr(self, key) in options, f"grpo.{key}", getattr(self, key), fix=nearest(getattr(self, key), options)
            )
        require_fraction("grpo", self, "pass_rate_low", "pass_rate_high", "collapse_entropy", "collapse_length")
        require(
            self.samples >= 2,
            "grpo.samples",
            self.samples,
            fix="a group needs at least 2 samples to have an advantage",
        )
        require_momentum("grpo", self)
        for key in ("resample_rounds", "warmup_steps", "held_out_every", "kl_weight", "weight_decay"):
            value = getattr(self, key)
            require(math.isfinite(value) and value >= 0, f"grpo.{key}", value, fix="it must be 0 or more")
        require(
            self.milestones <= self.steps,
            "grpo.milestones",
            self.milestones,
            fix=f"there are only grpo.steps={self.steps} steps",
        )
        require(
            self.minibatches <= self.prompts,
            "grpo.minibatches",
            self.minibatches,
            fix=f"there are only grpo.prompts={self.prompts} groups to share out",
        )
        require(len(self.tasks) > 0, "grpo.tasks", self.tasks, fix="name at least one family of data.tasks")
        require(0 < self.clip_low < 1, "grpo.clip_low", self.clip_low, fix="it must lie between 0 and 1")
        require(self.clip_high > 0, "grpo.clip_high", self.clip_high, fix="it must be above 0")
        require(0 < self.overlong_buffer <= 1, "grpo.overlong_buffer", self.overlong_buffer, fix="it must lie in (0, 1]")
        require(
            self.importance_cap is None or self.importance_cap > 0,
            "grpo.importance_cap",
            self.importance_cap,
            fix="it must be above 0, or null for no correction",
        )
        require(
            self.pass_rate_low < self.pass_rate_high,
            "grpo.pass_rate_low",
            self.pass_rate_low,
            fix=f"it must be below grpo.pass_rate_high={self.pass_rate_high}",
        )

    @property
    def on_policy(self) -> bool:
        """Whether each batch is used for one update, made by the policy that sampled it."""
        return self.epochs == self.minibatches == 1

    def response_limit(self, step: int) -> int:
        """Longest response at step 1, 2, ..."""
        extended = self.extended_from_step is not None and step >= self.extended_from_step
        return self.extended_max_new_tokens if extended else self.max_new_tokens

    def checkpoints(self) -> list[int]:
        """Steps at which a checkpoint is kept, ascending, the last one at the end."""
        return [round(self.steps * i / self.milestones) for i in range(1, self.milestones + 1)]
