"""A cell: the complete, typed configuration of one model taken through all stages.

Every key that a user can set stands here, once, with its default and its check. The dataclasses are what Hydra
composes `conf/` into; turning a composed configuration into these objects (`Cell.from_config`) runs every check,
before anything is written. No torch at import: composing and planning a study must not load it.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING, DictConfig, OmegaConf

from pipelines import gym
from pipelines.errors import UserError, nearest, require
from pipelines.formats import FORMATS
from pipelines.tasks import FAMILIES
from pipelines.verifiers.registry import VERIFIERS

STAGES = ("pretrain", "midtrain", "grpo")
"""The training stages in their order; evaluations hang off their checkpoints."""

STAGE_VERSIONS = {"pretrain": 1, "midtrain": 1, "grpo": 2, "evaluate": 2}
"""Version of each stage's code, part of its signature: raised by hand when a change alters results."""


def _positive(prefix: str, owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        require(math.isfinite(value) and value > 0, f"{prefix}.{name}", value, "it must be finite and above 0")


def _fraction(prefix: str, owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        require(0 <= value <= 1, f"{prefix}.{name}", value, "it must lie between 0 and 1")


@dataclass
class ModelConfig:
    """Architecture of a `Qwen3ForCausalLM`, or with `experts` of a `MiniMaxM2ForCausalLM`; the vocabulary comes from
    the tokenizer in `data`."""

    name: str = MISSING
    layers: int = MISSING
    d_model: int = MISSING
    ffn: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING
    head_dim: int = MISSING
    tied_embeddings: bool = True
    experts: int = 0
    """Experts of a layer, each with a hidden size of `ffn`; 0: a dense model."""
    active_experts: int = 0
    """Experts that a token is sent to."""
    balance_rate: float = 1e-3
    """How far the router's bias moves after each step, by the sign of an expert's load error."""

    def __post_init__(self) -> None:
        _positive("model", self, "layers", "d_model", "ffn", "heads", "kv_heads", "head_dim")
        require(
            self.heads % self.kv_heads == 0,
            "model.kv_heads",
            self.kv_heads,
            f"it must divide model.heads={self.heads}",
        )
        require(
            self.head_dim % 2 == 0,
            "model.head_dim",
            self.head_dim,
            "it must be even: rotary embeddings pair channels",
        )
        require(self.experts >= 0, "model.experts", self.experts, "it must be 0 or more")
        require(
            math.isfinite(self.balance_rate) and self.balance_rate >= 0,
            "model.balance_rate",
            self.balance_rate,
            "it must be 0 or more",
        )
        require(
            (1 if self.experts else 0) <= self.active_experts <= self.experts,
            "model.active_experts",
            self.active_experts,
            f"it must lie between 1 and model.experts={self.experts}" if self.experts else "a dense model has none",
        )


@dataclass
class ObjectiveConfig:
    """The knobs of the training objective: beta, the two lambdas, and the size k of the head."""

    name: str = "custom"
    beta: float = 0.0
    lam_head: float = 0.0
    lam_tail: float = 0.0
    top_k: int = 100

    def __post_init__(self) -> None:
        for key in ("beta", "lam_head", "lam_tail"):
            value = getattr(self, key)
            require(math.isfinite(value), f"objective.{key}", value, "it must be a finite number")
        require(
            self.beta > -1,
            "objective.beta",
            self.beta,
            "it must be above -1, where the gradient would no longer vanish at a sure prediction",
        )
        require(self.top_k >= 1, "objective.top_k", self.top_k, "the head holds at least one token")


SOURCE_KINDS = ("hub", "jsonl", "parquet", "text")


@dataclass
class SourceConfig:
    """A corpus that `shaping-data prepare` turns into token shards."""

    kind: str = MISSING
    """`hub`: a data set of the Hugging Face Hub, streamed; `jsonl`, `parquet` and `text`: files."""
    path: str = MISSING
    """The data set's name, or a glob of files (`.gz` is unpacked); a text file holds documents between blank lines."""
    subset: str | None = None
    """Configuration of the data set (`hub`)."""
    split: str = "train"
    """Split of the data set (`hub`)."""
    column: str = "text"
    """Field of a record that holds the document."""
    revision: str | None = None
    """Commit of the data set (`hub`)."""

    def __post_init__(self) -> None:
        require(self.kind in SOURCE_KINDS, "data.sources.*.kind", self.kind, nearest(self.kind, SOURCE_KINDS))


@dataclass
class DataConfig:
    """Text, generated tasks and the tokenizer trained on them; or token shards, made by `shaping-data prepare`."""

    name: str = MISSING
    text: list[str] = field(default_factory=lambda: ["sympy", "networkx"])
    """Installed packages whose docstrings are the text."""
    tasks: list[str] = MISSING
    """Families of generated reasoning tasks (names of `pipelines.tasks.FAMILIES`)."""
    tasks_per_family: int = MISSING
    """Distinct questions generated for each family, before they are split by hash."""
    worked_share: float = MISSING
    """Share of training answers that show their steps; the others state an answer outright."""
    careless_share: float = MISSING
    """Share of the outright answers that are wrong."""
    vocab_size: int = MISSING
    top_k: int = MISSING
    """Size of the head at this vocabulary; objectives take it unless they name their own."""
    seed: int = 0
    """Seed of the generated tasks: one data set for all cells, whatever their own seed."""
    shards: str | None = None
    """Folder of token shards, whose tokenizer is then used and whose sources can be mixed; null: none."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """What `shaping-data prepare` reads, by the name that mixtures use."""
    tokenizer: str | None = None
    """A tokenizer of the Hub or a folder of one; null: a byte-level BPE of `vocab_size` is trained on the data."""

    def __post_init__(self) -> None:
        for package in self.text:
            require(
                find_spec(package) is not None, "data.text", package, "no such package is installed; pip install it"
            )
        for task in self.tasks:
            if gym.is_gym(task):
                gym.check(task)
            else:
                require(task in FAMILIES, "data.tasks", task, nearest(task, FAMILIES))
        _positive("data", self, "tasks_per_family", "vocab_size", "top_k")
        _fraction("data", self, "worked_share", "careless_share")
        require(
            self.vocab_size > 257,
            "data.vocab_size",
            self.vocab_size,
            "it must hold the 256 bytes and the special tokens: 258 or more",
        )


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
    """Weight of each source: `text`, or a family of `data.tasks`."""
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
            require(value in options, f"{self.key}.{key}", value, nearest(value, options))
        require(
            self.spike_sigmas is None or self.spike_sigmas > 0,
            f"{self.key}.spike_sigmas",
            self.spike_sigmas,
            "it must be above 0, or null to skip only what is not finite",
        )
        require(self.max_skipped >= 0, f"{self.key}.max_skipped", self.max_skipped, "it must be 0 or more")
        _positive(
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
            f"it must be a multiple of {self.key}.sequence_length={self.sequence_length}",
        )
        require(
            self.steps >= self.milestones,
            f"{self.key}.milestones",
            self.milestones,
            f"a budget of {self.tokens} tokens has only {self.steps} steps of {self.batch_tokens}",
        )
        require(self.weight_decay >= 0, f"{self.key}.weight_decay", self.weight_decay, "it must be 0 or more")
        for name in ("adam_beta1", "adam_beta2"):
            require(
                0 <= getattr(self, name) < 1,
                f"{self.key}.{name}",
                getattr(self, name),
                "it must lie in [0, 1)",
            )
        for source, weight in self.mixture.items():
            require(
                math.isfinite(weight) and weight >= 0,
                f"{self.key}.mixture.{source}",
                weight,
                "a weight must be finite and 0 or more",
            )
        require(
            sum(self.mixture.values()) > 0,
            f"{self.key}.mixture",
            self.mixture,
            "at least one weight must be above 0",
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
            f"it must lie between 0 and the {self.steps} steps of the budget",
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
        require(self.decay in DECAYS, "midtrain.decay", self.decay, nearest(self.decay, DECAYS))
        require(
            self.objective in ("inherit", "ce"),
            "midtrain.objective",
            self.objective,
            nearest(self.objective, ("inherit", "ce")),
        )
        require(
            0 <= self.final_learning_rate <= self.learning_rate,
            "midtrain.final_learning_rate",
            self.final_learning_rate,
            f"the rate decays, so it must lie between 0 and midtrain.learning_rate={self.learning_rate}",
        )


DECAYS = ("cosine", "linear", "1-sqrt")
ATTENTION = ("row", "document")
PRECISIONS = ("float32", "bfloat16-mixed", "bfloat16")
STRATEGIES = ("auto", "ddp", "fsdp", "hsdp")
ACTIVATIONS = ("none", "selective", "full")


@dataclass
class ComputeConfig:
    """How pre-training and mid-training are computed. Nothing here changes a result by more than the order in which
    floating-point numbers are added up, so it is in no signature."""

    micro_batch_tokens: int | None = None
    """Tokens that a rank runs through the model at a time; the rest of its share of a batch is accumulated. null: its
    whole share."""
    strategy: str = "auto"
    """Of several ranks: `ddp` holds all on each, `fsdp` shards weights, gradients and optimizer over all, `hsdp` over
    `shard_ranks` of them, with copies; `auto` is `ddp`."""
    shard_ranks: int = 0
    """Ranks that share one copy of the model (`hsdp`); 0: those of one node."""
    activation_checkpointing: str = "none"
    """What the backward pass computes again: `full`: each layer; `selective`: all but its matrix products and
    attention."""
    compile: bool = False
    """Compile each layer with `torch.compile`."""
    keep_last: int = 1
    """Trainer states that are kept; the newest is gone on from."""

    def __post_init__(self) -> None:
        for key, options in (("strategy", STRATEGIES), ("activation_checkpointing", ACTIVATIONS)):
            value = getattr(self, key)
            require(value in options, f"compute.{key}", value, nearest(value, options))
        require(
            self.micro_batch_tokens is None or self.micro_batch_tokens > 0,
            "compute.micro_batch_tokens",
            self.micro_batch_tokens,
            "it must be above 0, or null for the whole share of a rank",
        )
        require(self.shard_ranks >= 0, "compute.shard_ranks", self.shard_ranks, "it must be 0 or more")
        _positive("compute", self, "keep_last")


def micro_batch(budget: TrainConfig, compute: ComputeConfig, ranks: int) -> tuple[int, int]:
    """Rows that a rank runs at a time, and how often in a step: rows x accumulation x ranks is the batch.

    Raises `UserError` where the batch cannot be shared out so, with what can.
    """
    rows = budget.batch_tokens // budget.sequence_length
    require(
        rows % ranks == 0,
        f"{budget.key}.batch_tokens",
        budget.batch_tokens,
        f"its {rows} rows of {budget.sequence_length} cannot be shared by {ranks} ranks; rank counts that fit: "
        f"{_listing(d for d in range(1, rows + 1) if rows % d == 0)}",
    )
    share = rows // ranks
    if compute.micro_batch_tokens is None:
        return share, 1
    micro = compute.micro_batch_tokens // budget.sequence_length
    require(
        compute.micro_batch_tokens % budget.sequence_length == 0 and micro > 0 and share % micro == 0,
        "compute.micro_batch_tokens",
        compute.micro_batch_tokens,
        f"a rank's share of {budget.key}.batch_tokens={budget.batch_tokens} is {share} rows of "
        f"{budget.sequence_length} (of {ranks} ranks); values that fit: "
        f"{_listing(d * budget.sequence_length for d in range(1, share + 1) if share % d == 0)}",
    )
    return micro, share // micro


def _listing(numbers: Iterable[int], most: int = 12) -> str:
    found = [str(number) for number in numbers]
    return ", ".join(found if len(found) <= most else [*found[: most // 2], "...", *found[-most // 2 :]])


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
    """What is asked, in equal shares: families of `data.tasks`, or JSON-lines files (`pipelines.problems`)."""
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
        _positive(
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
                getattr(self, key) in options, f"grpo.{key}", getattr(self, key), nearest(getattr(self, key), options)
            )
        _fraction("grpo", self, "pass_rate_low", "pass_rate_high", "collapse_entropy", "collapse_length")
        require(
            self.samples >= 2,
            "grpo.samples",
            self.samples,
            "a group needs at least 2 samples to have an advantage",
        )
        for key in ("resample_rounds", "warmup_steps", "held_out_every", "kl_weight", "weight_decay"):
            value = getattr(self, key)
            require(math.isfinite(value) and value >= 0, f"grpo.{key}", value, "it must be 0 or more")
        require(
            self.milestones <= self.steps,
            "grpo.milestones",
            self.milestones,
            f"there are only grpo.steps={self.steps} steps",
        )
        require(
            self.minibatches <= self.prompts,
            "grpo.minibatches",
            self.minibatches,
            f"there are only grpo.prompts={self.prompts} groups to share out",
        )
        require(len(self.tasks) > 0, "grpo.tasks", self.tasks, "name at least one family of data.tasks")
        require(0 < self.clip_low < 1, "grpo.clip_low", self.clip_low, "it must lie between 0 and 1")
        require(self.clip_high > 0, "grpo.clip_high", self.clip_high, "it must be above 0")
        require(0 < self.overlong_buffer <= 1, "grpo.overlong_buffer", self.overlong_buffer, "it must lie in (0, 1]")
        require(
            self.importance_cap is None or self.importance_cap > 0,
            "grpo.importance_cap",
            self.importance_cap,
            "it must be above 0, or null for no correction",
        )
        require(
            self.pass_rate_low < self.pass_rate_high,
            "grpo.pass_rate_low",
            self.pass_rate_low,
            f"it must be below grpo.pass_rate_high={self.pass_rate_high}",
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


HARNESS = ("harness", "harness_choice")

CHOICE_TASKS = ("module", "continuation")
"""Multiple-choice tasks; `pipelines.evaluation` builds their items."""

LOCAL_FILES = (".jsonl", ".parquet")
"""Endings of the names of data sets that are files here."""

CONTROLS = ("matched", "theory")


@dataclass
class BenchmarkConfig:
    """One row of the evaluation table."""

    kind: str = MISSING
    """`sampled` (answers are sampled and verified), `choice` (the likeliest continuation), `text`; `harness` and
    `harness_choice` are generation and log-likelihood tasks of lm-eval (the extra `evaluation`)."""
    group: str = MISSING
    """Column group of the paper's tables: knowledge, commonsense, logic, math, code, or text."""
    task: str = MISSING
    """What is asked: a family of tasks, a multiple-choice builder, a source of held-out text, or a task of lm-eval;
    of `sampled`, also a format of `pipelines.problems.FORMATS` for the questions of `dataset`."""
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    """Stages whose milestone checkpoints are measured on it."""
    items: int = MISSING
    """Most items: the first ones."""
    samples: int = 1
    """Samples an item (`sampled` and `harness`); 1 in `harness`: one greedy answer, scored by lm-eval itself."""
    dataset: str | None = None
    """Where the items come from: a name on the hub, or a local .jsonl or .parquet file, which may stand in for any."""
    shots: int | None = None
    """Worked examples before the question; null: as lm-eval's task has it."""
    metric: str | None = None
    """What the tables show: a metric of lm-eval, with its filter where it has one (`exact_match,strict-match`)."""
    verifier: str | None = None
    """What judges a sampled answer of `harness`: a name of `pipelines.verifiers`; null: lm-eval's own scoring."""
    max_new_tokens: int | None = None
    """Longest answer in tokens, where it is not `evaluation.max_new_tokens`."""

    def __post_init__(self) -> None:
        key = "evaluation.benchmarks.*"
        kinds = ("sampled", "choice", "text", *HARNESS)
        require(self.kind in kinds, f"{key}.kind", self.kind, nearest(self.kind, kinds))
        _positive(key, self, "items", "samples")
        for stage in self.stages:
            require(stage in STAGES, f"{key}.stages", stage, nearest(stage, STAGES))
        if self.local:
            require(Path(self.dataset or "").is_file(), f"{key}.dataset", self.dataset, "there is no such file")
        require(self.shots is None or self.shots >= 0, f"{key}.shots", self.shots, "it must be 0 or more")
        if self.verifier is not None:
            require(self.verifier in VERIFIERS, f"{key}.verifier", self.verifier, nearest(self.verifier, VERIFIERS))
        require(
            self.max_new_tokens is None or self.max_new_tokens > 0,
            f"{key}.max_new_tokens",
            self.max_new_tokens,
            "it must be above 0",
        )

    @property
    def local(self) -> bool:
        """Whether the items are in a file here."""
        return self.dataset is not None and self.dataset.endswith(LOCAL_FILES)


@dataclass
class EvaluationConfig:
    """What is measured at every milestone checkpoint."""

    name: str = MISSING
    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = MISSING
    stage_max_new_tokens: dict[str, int] = field(default_factory=dict)
    """Longest answer of the models of a stage, where it is another."""
    text_length: int = MISSING
    """Tokens of a row of held-out text, the same for every stage."""
    pass_k: list[int] = MISSING
    """The k of Pass@k that are reported; the samples are kept, and any other k is `shaping-sweeps measure` away."""
    benchmarks: dict[str, BenchmarkConfig] = MISSING
    controls: dict[str, list[str]] = field(default_factory=dict)
    """Control -> stages at whose end the ce checkpoint is measured once more for each other objective of the
    sweep: `matched`, at the temperature that gives it the shaped checkpoint's entropy; `theory`, with the distribution
    that the objective would make of its own."""

    def __post_init__(self) -> None:
        _positive("evaluation", self, "temperature", "max_new_tokens", "text_length")
        require(0 < self.top_p <= 1, "evaluation.top_p", self.top_p, "it must lie in (0, 1]")
        for stage, limit in self.stage_max_new_tokens.items():
            require(stage in STAGES, "evaluation.stage_max_new_tokens", stage, nearest(stage, STAGES))
            require(limit > 0, f"evaluation.stage_max_new_tokens.{stage}", limit, "it must be above 0")
        for k in self.pass_k:
            require(k >= 1, "evaluation.pass_k", k, "it must be 1 or more")
        for control, stages in self.controls.items():
            require(control in CONTROLS, "evaluation.controls", control, nearest(control, CONTROLS))
            for stage in stages:
                require(stage in STAGES, f"evaluation.controls.{control}", stage, nearest(stage, STAGES))
            require(
                not stages or any(b.kind == "text" for b in self.benchmarks.values()),
                f"evaluation.controls.{control}",
                stages,
                "a control is found on held-out text: name a benchmark of the kind text",
            )


@dataclass
class TrackingConfig:
    """Where metrics are mirrored; the ledger in the store is the source of truth whatever is chosen."""

    mode: str = "offline"
    project: str = "shaping"
    entity: str | None = None

    def __post_init__(self) -> None:
        modes = ("offline", "online", "off")
        require(self.mode in modes, "tracking.mode", self.mode, nearest(self.mode, modes))


@dataclass
class SweepConfig:
    """A named list of cells: points, a product grid, or both (every point at every place of the grid)."""

    name: str = ""
    points: list[dict[str, Any]] = field(default_factory=list)
    grid: dict[str, list[Any]] = field(default_factory=dict)


@dataclass
class Cell:
    """One model's way through the study: what it is, what it learns from and how it is measured.

    The parts have no defaults here (a part made from defaults alone would fail its own checks); the groups of `conf/`
    fill them.
    """

    model: ModelConfig = MISSING
    objective: ObjectiveConfig = MISSING
    data: DataConfig = MISSING
    pretrain: PretrainConfig = MISSING
    midtrain: MidtrainConfig = MISSING
    grpo: GRPOConfig = MISSING
    evaluation: EvaluationConfig = MISSING
    tracking: TrackingConfig = MISSING
    compute: ComputeConfig = MISSING
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = 1
    scale: str = "nano"
    until: str = "grpo"
    """The last stage: `pretrain`, `midtrain` or `grpo`."""
    store: str = "store"

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "it must be 0 or more")
        require(self.until in STAGES, "until", self.until, nearest(self.until, STAGES))
        require(
            self.objective.top_k <= self.data.vocab_size,
            "objective.top_k",
            self.objective.top_k,
            f"the head cannot be larger than the vocabulary, data.vocab_size={self.data.vocab_size}",
        )
        for stage in (self.pretrain, self.midtrain):
            if STAGES.index(stage.key) <= STAGES.index(self.until):
                micro_batch(stage, self.compute, 1)
            for source in stage.mixture:
                known = ["text", *self.data.tasks, *self.data.sources]
                require(source in known, f"{stage.key}.mixture", source, nearest(source, known))
        for name, benchmark in self.evaluation.benchmarks.items():
            if benchmark.kind in HARNESS:
                continue
            key = f"evaluation.benchmarks.{name}.task"
            if benchmark.kind == "sampled" and benchmark.dataset is not None:
                require(
                    benchmark.local,
                    f"evaluation.benchmarks.{name}.dataset",
                    benchmark.dataset,
                    "questions of our own formats come from a local .jsonl or .parquet file",
                )
                asked = list(FORMATS)
            else:
                asked = {
                    "text": ["text", *self.data.sources],
                    "choice": list(CHOICE_TASKS),
                    "sampled": self.data.tasks,
                }[benchmark.kind]
            require(benchmark.task in asked, key, benchmark.task, nearest(benchmark.task, asked))
        for task in self.grpo.tasks:
            if task.endswith(".jsonl"):
                require(Path(task).is_file(), "grpo.tasks", task, "there is no such file")
            else:
                require(task in self.data.tasks, "grpo.tasks", task, nearest(task, self.data.tasks))
        require(
            self.midtrain.sequence_length >= self.pretrain.sequence_length,
            "midtrain.sequence_length",
            self.midtrain.sequence_length,
            f"mid-training does not shorten pretrain.sequence_length={self.pretrain.sequence_length}",
        )

    @classmethod
    def from_config(cls, config: DictConfig) -> "Cell":
        """The typed cell of a composed configuration; raises `UserError` where a value is impossible."""
        cell = typed(config)
        assert isinstance(cell, cls)
        return cell


def unsupported(cell: Cell) -> str | None:
    """Why the pipelines cannot train a cell that can be planned, in one sentence; None where they can."""
    data = cell.data
    if data.shards is not None and not (Path(data.shards) / "index.json").is_file():
        return (
            f"data.shards={data.shards}: there are no token shards yet; make them with shaping-data prepare "
            f"data={data.name}"
        )
    if find_spec("lm_eval") is None:
        for name, benchmark in cell.evaluation.benchmarks.items():
            if benchmark.kind in HARNESS:
                return (
                    f"evaluation.benchmarks.{name}: it is a task of lm-eval, which is not installed: pip install "
                    "'shaping[evaluation]', or choose evaluation=nano"
                )
    return None


def typed(config: DictConfig, prefix: str = "") -> Any:
    """The object of a composed configuration, or of the part of one whose keys begin with `prefix`.

    Raises `UserError` for a key that there is not, and where a value is impossible.
    """
    for key, known in _added(config, prefix):
        raise UserError(f"{key}: there is no such key; {nearest(key, known)}")
    return OmegaConf.to_object(config)


def _added(config: DictConfig, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Keys that `+key=value` put into a typed part of the configuration, each with the keys that there are."""
    kind = OmegaConf.get_type(config)
    known = [prefix + f.name for f in fields(kind)] if is_dataclass(kind) else []
    for key in map(str, config):
        if known and prefix + key not in known:
            yield prefix + key, known
        elif not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            yield from _added(config[key], f"{prefix}{key}.")
