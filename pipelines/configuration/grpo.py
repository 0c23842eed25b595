"""Reinforcement learning: sampling, the loss, the optimizer, and what is monitored."""

import os
from dataclasses import dataclass, field

from omegaconf import MISSING

from pipelines.configuration.budgets import PRECISIONS, milestone_steps
from pipelines.configuration.engines import ENGINES, check_routed
from pipelines.configuration.lora import LoRAConfig
from pipelines.configuration.question_sets import QuestionSetConfig
from pipelines.configuration.signed_content import added_later
from pipelines.errors import (
    require,
    require_fraction,
    require_momentum,
    require_not_negative,
    require_option,
    require_positive,
)

ADVANTAGES = ("standardised", "centred", "leave_one_out")
LOSSES = ("token", "sequence", "constant")
OVERLONG = ("wrong", "filter", "penalty")
LEFTOVERS = ("discard", "keep")
COLLAPSE = ("off", "mark", "stop")
IMPORTANCE_CAP = 2.0
"""The cap of truncated importance sampling where the sampler does not compute as the learner does (as in verl)."""
QUESTION_FILE = ".jsonl"
"""Suffix by which a name in `grpo.tasks` is a file of questions."""


@dataclass
class GRPOConfig:
    """RL with verifiable rewards.

    The defaults are the paper's settings: strictly on-policy, no KL term, clip-higher, dynamic sampling, 128 prompts x
    16 responses, 8K tokens per response and 16K from step 700. DAPO's and Dr. GRPO's choices are options.
    """

    seed: int | None = added_later(as_before=None)
    """Seed of RL's own random numbers: the order of questions, and samples. null: the cell's `seed`. Runs with several
    values share one mid-trained model. Ours."""
    steps: int = MISSING
    """Number of RL steps."""
    tasks: list[str] = MISSING
    """Data sets of questions, asked in equal shares: families of `data.tasks`, sets of `questions`, or JSON-lines files
    (`pipelines.data.questions` has the form)."""
    milestones: int = MISSING
    """Number of checkpoints that are kept and evaluated, equally spaced, the last one at the end."""
    prompts: int = 128
    """Prompts per step; the responses to one prompt form a group. The paper's."""
    samples: int = 16
    """Responses per prompt. The paper's."""
    temperature: float = 1.0
    """Sampling temperature, also of the log-probabilities in the loss. The paper's."""
    max_new_tokens: int = 8192
    """Longest response in tokens, including the end token. The paper's."""
    extended_from_step: int | None = 700
    """First step with the limit `extended_max_new_tokens`; null: never. The paper's."""
    extended_max_new_tokens: int = 16384
    """Longest response in tokens from `extended_from_step` on. The paper's."""
    engine: str = "transformers"
    """Engine that samples: `transformers`, the model itself; `replica`, a copy in bfloat16 on each rank; or `vllm`.
    Ours."""
    precision: str = added_later(as_before="float32")
    """As in pre-training: `float32`; `bfloat16-mixed`: weights in float32, products in bfloat16; `bfloat16`: weights in
    bfloat16. Ours."""
    importance_cap: float | None = None
    """Truncated importance sampling: the loss of a token is weighted by min(pi_learner / pi_sampler, cap). null: 2, but
    no weights where the sampler computes exactly as the learner does (`transformers` in float32); 0: no weights.
    Ours."""

    routing_replay: bool = added_later(as_before=False)
    """Whether the update of a mixture sends each token to the experts that the sampler chose, weighted by the learner's
    scores. Ours."""

    advantage: str = "standardised"
    """`standardised`: (r - mean) / std within the group; `centred`: r - mean (Dr. GRPO); `leave_one_out`: r - mean of
    the other responses (RLOO). Ours."""
    loss: str = "token"
    """`token`: mean over all tokens (DAPO); `sequence`: mean of the responses' means (GRPO); `constant`: sum over
    tokens divided by responses times the limit (Dr. GRPO). Ours."""
    clip_low: float = 0.2
    """The probability ratio is clipped below 1 - clip_low. Ours (DAPO's)."""
    clip_high: float = 0.28
    """The probability ratio is clipped above 1 + clip_high. Ours (DAPO's)."""
    epochs: int = 1
    """Passes over the batch of a step. One epoch of one minibatch is strictly on-policy. The paper's."""
    minibatches: int = 1
    """Optimizer steps per pass. The paper's."""
    kl_weight: float = 0.0
    """Weight of the KL divergence from the start model in the loss. The paper's."""
    overlong: str = "wrong"
    """Responses cut by the limit. `wrong`: reward 0; `filter`: reward 0 and excluded from the loss (DAPO); `penalty`:
    reward 0 plus DAPO's soft penalty, which begins `overlong_buffer` before the limit. Ours."""
    overlong_buffer: float = 0.2
    """Share of the limit, at its end, over which the penalty falls from 0 to -1; in (0, 1]. Ours."""
    dynamic_sampling: bool = True
    """Whether groups that are all right or all wrong are dropped and replaced. The paper's."""
    resample_rounds: int = 2
    """Largest number of extra sampling rounds per step that replace dropped groups; they end when the batch is full.
    Ours."""
    leftovers: str = "discard"
    """Mixed groups beyond `prompts`: `discard`, or `keep` for the next step, where they are one policy old. Ours."""
    pass_rate_low: float = 0.0
    """Only questions are asked whose pass rate, of the start model in `samples` responses, is at least this. Ours."""
    pass_rate_high: float = 1.0
    """Only questions are asked whose pass rate is at most this. Ours."""

    learning_rate: float = 1e-6
    """Learning rate after the warm-up. The paper's."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly to its constant value. Ours."""
    weight_decay: float = 0.1
    """AdamW's weight decay on matrices. The paper's."""
    adam_beta1: float = 0.9
    """AdamW's decay of the first moment. Ours."""
    adam_beta2: float = 0.95
    """AdamW's decay of the second moment. Ours."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient. The paper's."""
    micro_batch_tokens: int = 16384
    """Tokens that an update runs through the model at a time on each rank, unless `compute.micro_batch_tokens` says
    otherwise; the gradient is that of the whole batch. Ours."""
    start_divergence: bool = added_later(as_before=True)
    """Whether the ledger has `kl_start`, for which a copy of the start model is kept in main memory. Ours."""

    lora: LoRAConfig = added_later(as_before=LoRAConfig())
    """Adapters that are trained in place of all weights."""

    held_out_every: int = 10
    """Steps between measurements on held-out questions, beginning at step 0; 0: never. Ours."""
    held_out_problems: int = 64
    """Number of held-out questions. Ours."""
    collapse: str = "mark"
    """What happens when entropy or response length collapses: `off`, `mark` the stage run, or `stop` it. Ours."""
    collapse_entropy: float = 0.1
    """Entropy has collapsed below this share of its value in the first steps, unless the reward is near 1. Ours."""
    collapse_length: float = 0.5
    """Response length has collapsed below this share of its value in the first steps, unless the reward rose. Ours."""

    questions: dict[str, QuestionSetConfig] = field(default_factory=dict)
    """Sets of questions, by the name that `tasks` use, which `shaping-data questions` makes into files."""
    questions_folder: str = "questions"
    """Folder of these files."""

    def __post_init__(self) -> None:
        if isinstance(self.lora, dict):  # of a signed configuration
            self.lora = LoRAConfig(**self.lora)
        self.lora.check("grpo.lora")
        for name, questions in self.questions.items():
            questions.check(f"grpo.questions.{name}")
        self.tasks = [self.question_files.get(task, os.path.expanduser(task)) for task in self.tasks]
        require_positive(
            "grpo", self, "steps", "milestones", "prompts", "temperature", "max_new_tokens", "extended_max_new_tokens"
        )
        require_positive("grpo", self, "learning_rate", "gradient_clip", "epochs", "minibatches", "micro_batch_tokens")
        require_positive("grpo", self, "held_out_problems")
        require(self.seed is None or self.seed >= 0, "grpo.seed", self.seed, fix="it must be 0 or more, or null")
        require_not_negative(
            "grpo", self, "resample_rounds", "warmup_steps", "held_out_every", "kl_weight", "weight_decay"
        )
        require_fraction("grpo", self, "pass_rate_low", "pass_rate_high", "collapse_entropy", "collapse_length")
        require_momentum("grpo", self)
        self._check_options()
        self._check_sampling()
        self._check_replay()
        self._check_counts()
        self._check_loss()

    def _check_options(self) -> None:
        for key, options in (
            ("advantage", ADVANTAGES),
            ("loss", LOSSES),
            ("overlong", OVERLONG),
            ("leftovers", LEFTOVERS),
            ("collapse", COLLAPSE),
            ("engine", ENGINES),
            ("precision", PRECISIONS),
        ):
            require_option(f"grpo.{key}", getattr(self, key), options)

    def _check_sampling(self) -> None:
        require(
            self.samples >= 2,
            "grpo.samples",
            self.samples,
            fix="a group needs at least 2 samples to have an advantage",
        )
        require(len(self.tasks) > 0, "grpo.tasks", self.tasks, fix="name at least one family of data.tasks")
        require(
            self.pass_rate_low < self.pass_rate_high,
            "grpo.pass_rate_low",
            self.pass_rate_low,
            fix=f"it must be below grpo.pass_rate_high={self.pass_rate_high}",
        )

    def _check_replay(self) -> None:
        fix = "the experts of groups that wait for the next step are not kept; set grpo.leftovers=discard"
        require(not self.routing_replay or self.leftovers == "discard", "grpo.routing_replay", True, fix=fix)
        check_routed(self.engine, self.routing_replay)

    def _check_counts(self) -> None:
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
            fix=f"there are only grpo.prompts={self.prompts} groups to divide",
        )

    def _check_loss(self) -> None:
        require(0 < self.clip_low < 1, "grpo.clip_low", self.clip_low, fix="it must be between 0 and 1")
        require(self.clip_high > 0, "grpo.clip_high", self.clip_high, fix="it must be above 0")
        require(0 < self.overlong_buffer <= 1, "grpo.overlong_buffer", self.overlong_buffer, fix="it must be in (0, 1]")
        require(
            self.importance_cap is None or self.importance_cap >= 0,
            "grpo.importance_cap",
            self.importance_cap,
            fix="it must be above 0, or 0 for no correction, or null for one where the sampler is not exact",
        )

    @property
    def question_files(self) -> dict[str, str]:
        """The path of the file of each set of `questions`, which may have to be made yet."""
        folder = os.path.expanduser(self.questions_folder)
        return {name: os.path.join(folder, f"{name}{QUESTION_FILE}") for name in self.questions}

    @property
    def on_policy(self) -> bool:
        """Whether each batch is used for a single update, of the policy that sampled it."""
        return self.epochs == self.minibatches == 1

    def response_limit(self, step: int) -> int:
        """Longest response in tokens at `step`, counted from 1."""
        extended = self.extended_from_step is not None and step >= self.extended_from_step
        return self.extended_max_new_tokens if extended else self.max_new_tokens

    def checkpoints(self) -> list[int]:
        """Steps at which a checkpoint is kept, ascending; the last is the last step."""
        return milestone_steps(self.steps, self.milestones)
