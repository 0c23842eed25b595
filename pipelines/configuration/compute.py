"""How models are trained, on one device or many."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.configuration.budgets import TrainConfig
from pipelines.errors import require, require_not_negative, require_option, require_positive

STRATEGIES = ("auto", "ddp", "fsdp", "hsdp")
ACTIVATIONS = ("none", "selective", "full")


@dataclass
class ComputeConfig:
    """How the training stages are computed. No key changes a result beyond the order in which floating-point numbers
    are summed, so none is part of a signature. All defaults are ours."""

    micro_batch_tokens: int | None = None
    """Tokens that a rank runs through the model at a time; gradients are accumulated over the rank's share of a batch.
    null: the whole share at once, in RL `grpo.micro_batch_tokens`."""
    strategy: str = "auto"
    """How several ranks share the model: `ddp`: a copy on each; `fsdp`: weights, gradients and optimizer sharded over
    all; `hsdp`: sharded over groups of `shard_ranks`, one copy per group; `auto`: `ddp`."""
    shard_ranks: int = 0
    """Ranks that share one copy of the model under `hsdp`; 0: all ranks of a node."""
    activation_checkpointing: str = "none"
    """What the backward pass recomputes: `none`; `full`: each layer; `selective`: all operators of a layer except its
    matrix products and attention."""
    compile: bool = False
    """Compile each layer with `torch.compile`."""
    keep_last: int = 1
    """Number of trainer states to keep; a stage resumes from the newest."""
    verifier_workers: int = 0
    """Answers that a rank verifies at a time, each in a process; 0: as many as it has cores, which the ranks of a
    machine share."""
    tensor_parallel: int = 1
    """Consecutive ranks of RL that share one engine, each with a part of every layer; only `vllm` does so."""

    def __post_init__(self) -> None:
        require_option("compute.strategy", self.strategy, STRATEGIES)
        require_option("compute.activation_checkpointing", self.activation_checkpointing, ACTIVATIONS)
        require(
            self.micro_batch_tokens is None or self.micro_batch_tokens > 0,
            "compute.micro_batch_tokens",
            self.micro_batch_tokens,
            fix="it must be above 0, or null for the whole share of a rank",
        )
        require(self.shard_ranks >= 0, "compute.shard_ranks", self.shard_ranks, fix="it must be 0 or more")
        require_not_negative("compute", self, "verifier_workers")
        require_positive("compute", self, "keep_last", "tensor_parallel")


def micro_batch(budget: TrainConfig, compute: ComputeConfig, ranks: int) -> tuple[int, int]:
    """Returns the rows that a rank runs at a time and the number of accumulation steps.

    Rows x accumulation steps x ranks is the batch. Raises `UserError` with the values that fit if the batch cannot be
    divided like that.
    """
    rows = budget.batch_tokens // budget.sequence_length
    require(
        rows % ranks == 0,
        f"{budget.key}.batch_tokens",
        budget.batch_tokens,
        fix=f"its {rows} rows of {budget.sequence_length} cannot be shared by {ranks} ranks; rank counts that fit: "
        f"{_listing(_divisors(rows))}",
    )
    share = rows // ranks  # rows of each rank in one batch
    if compute.micro_batch_tokens is None:
        return share, 1
    micro = compute.micro_batch_tokens // budget.sequence_length
    require(
        compute.micro_batch_tokens % budget.sequence_length == 0 and micro > 0 and share % micro == 0,
        "compute.micro_batch_tokens",
        compute.micro_batch_tokens,
        fix=f"a rank's share of {budget.key}.batch_tokens={budget.batch_tokens} is {share} rows of "
        f"{budget.sequence_length} (of {ranks} ranks); values that fit: "
        f"{_listing(divisor * budget.sequence_length for divisor in _divisors(share))}",
    )
    return micro, share // micro


def _divisors(number: int) -> Iterable[int]:
    return (divisor for divisor in range(1, number + 1) if number % divisor == 0)


def _listing(numbers: Iterable[int], most: int = 12) -> str:
    """At most `most` of the numbers in words, with the middle ones left out."""
    words = [str(number) for number in numbers]
    return ", ".join(words if len(words) <= most else [*words[: most // 2], "...", *words[-most // 2 :]])
