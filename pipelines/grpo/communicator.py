"""What the ranks of an RL run tell each other; with one rank every function returns what it was given.

Only rewards, lengths and ends of responses are gathered everywhere. A response itself is sent to the one rank that
learns from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.errors import Interrupted, StageFailure
from pipelines.grpo.sharing import consecutive

T = TypeVar("T")


class Response(Protocol):
    """A response that may be on another rank."""

    prompt: list[int]
    length: int
    owner: int
    """The rank that has the tokens."""
    response: list[int]
    """Token ids; empty on other ranks."""
    sampler_log_probs: Tensor
    """[length] float32; empty on other ranks."""
    experts: Tensor | None
    """[P + length - 1, layers, active] int16 with routing replay; empty on other ranks."""


@dataclass(frozen=True)
class Communicator:
    """The messages of one rank of `ranks`. All ranks call the same functions in the same order."""

    rank: int = 0
    ranks: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the process group's tensors are."""

    def share(self, count: int) -> range:
        """This rank's consecutive part of 0, ..., count - 1."""
        return consecutive(count, self.rank, self.ranks)

    def together(self, work: Callable[[], T]) -> T:
        """Do this rank's part of some work; a failure on any rank ends it on all.

        Raises this rank's own error, or else `StageFailure` with the reason of the first rank that failed, or
        `Interrupted` if ranks were only asked to stop.
        """
        if self.ranks == 1:
            return work()
        result: list[T] = []
        error: Exception | None = None
        try:
            result = [work()]
        except Exception as raised:
            error = raised
        reasons: list[tuple[bool, str] | None] = [None] * self.ranks
        own = error and (isinstance(error, Interrupted), str(error) or type(error).__name__)
        dist.all_gather_object(reasons, own)
        failures = [f"rank {rank}: {r[1]}" for rank, r in enumerate(reasons) if r and not r[0]]
        if error is not None and not (failures and isinstance(error, Interrupted)):
            raise error
        if failures:
            raise StageFailure(failures[0])
        if any(reasons):
            raise Interrupted("another rank was asked to stop")
        return result[0]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        return flag if self.ranks == 1 else bool(self._sum(torch.tensor([float(flag)])).item())

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """The sums over all ranks, in float64."""
        return numbers if self.ranks == 1 else tuple(self._sum(torch.tensor(numbers, dtype=torch.float64)).tolist())

    def _sum(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def concatenated(self, values: Tensor) -> Tensor:
        """The values [n, ...] of all ranks, in the order of the ranks, on every rank; n may differ."""
        if self.ranks == 1:
            return values
        counts = [0] * self.ranks
        dist.all_gather_object(counts, len(values))
        padded = values.new_zeros(max(counts), *values.shape[1:]).to(self.device)
        padded[: len(values)] = values.to(self.device)
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count].cpu() for part, count in zip(parts, counts, strict=True)])

    def objects(self, value: Any) -> list[Any]:
        """The value of every rank, for few and small ones."""
        if self.ranks == 1:
            return [value]
        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, value)
        return values

    def deliver(
        self, rows: Sequence[Response], destinations: Sequence[int], *, experts: tuple[int, int] = (0, 0)
    ) -> None:
        """Fill in tokens, log-probabilities and experts of the rows whose destination is this rank, in place.

        All ranks pass the same rows, each with those tokens that it has. `experts` are (layers, active) of the experts
        that were recorded of each token, if they were.
        """
        if self.ranks == 1:
            return
        moved = [(row, to) for row, to in zip(rows, destinations, strict=True) if row.owner != to]
        sent = [[row for row, to in moved if row.owner == self.rank and to == other] for other in range(self.ranks)]
        wanted = [[row for row, to in moved if row.owner == other and to == self.rank] for other in range(self.ranks)]
        # One message: for each row its tokens, the bits of its log-probabilities, and its experts.
        parts = [_packed(row) for row in chain(*sent)]
        message = torch.cat([torch.empty(0, dtype=torch.int32), *parts]).to(self.device)
        size = partial(_packed_size, experts=experts)
        sizes, sent_sizes = ([sum(map(size, part)) for part in side] for side in (wanted, sent))
        received = torch.empty(sum(sizes), dtype=torch.int32, device=self.device)
        dist.all_to_all_single(received, message, sizes, sent_sizes)
        arrived = list(chain(*wanted))
        for row, part in zip(arrived, received.cpu().split(list(map(size, arrived))), strict=True):
            row.response = part[: row.length].tolist()
            row.sampler_log_probs = part[row.length : 2 * row.length].clone().view(torch.float32)
            if experts != (0, 0):
                row.experts = part[2 * row.length :].view(-1, *experts).to(torch.int16)


SINGLE_PROCESS = Communicator()
"""The communicator of a single process."""


def _packed_size(row: Response, experts: tuple[int, int]) -> int:
    """Numbers of a row in a message."""
    layers, active = experts
    return 2 * row.length + (len(row.prompt) + row.length - 1) * layers * active


def _packed(row: Response) -> Tensor:
    tokens = torch.tensor(row.response, dtype=torch.int32)
    experts = [] if row.experts is None else [row.experts.flatten().int()]
    return torch.cat([tokens, row.sampler_log_probs.float().contiguous().view(torch.int32), *experts])
