"""How a token stage is computed, on one device or many; nothing here changes a result beyond the order of summation."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.configuration.budgets import TrainConfig
from pipelines.errors import nearest, require, require_positive

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
            require(value in options, f"compute.{key}", value, fix=nearest(value, options))
        require(
            self.micro_batch_tokens is None or self.micro_batch_tokens > 0,
            "compute.micro_batch_tokens",
            self.micro_batch_tokens,
            fix="it must be above 0, or null for the whole share of a rank",
        )
        require(self.shard_ranks >= 0, "compute.shard_ranks", self.shard_ranks, fix="it must be 0 or more")
        require_positive("compute", self, "keep_last")


def micro_batch(budget: TrainConfig, compute: ComputeConfig, ranks: int) -> tuple[int, int]:
    """Rows that a rank runs at a time, and how often in a step: rows x accumulation x ranks is the batch.

    Raises `UserError` where the batch cannot be shared out so, with what can.
    """
    rows = budget.batch_tokens // budget.sequence_length
    require(
        rows % ranks == 0,
        f"{budget.key}.batch_tokens",
        budget.batch_tokens,
        fix=f"its {rows} rows of {budget.sequence_length} cannot be shared by {ranks} ranks; rank counts that fit: "
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
        fix=f"a rank's share of {budget.key}.batch_tokens={budget.batch_tokens} is {share} rows of "
        f"{budget.sequence_length} (of {ranks} ranks); values that fit: "
        f"{_listing(d * budget.sequence_length for d in range(1, share + 1) if share % d == 0)}",
    )
    return micro, share // micro


def _listing(numbers: Iterable[int], most: int = 12) -> str:
    found = [str(number) for number in numbers]
    return ", ".join(found if len(found) <= most else [*found[: most // 2], "...", *found[-most // 2 :]])
