"""Consecutive ranks that share one engine, each of which computes a part of every layer (tensor parallelism).

The ranks of a group run the same requests in lockstep: a token needs all of them. So they have to ask for the same
samples and stop at the same token. Each asks for its own part of the whole group's samples, and gets that part back, so
what calls the engine need not know of groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.errors import UserError
from pipelines.rollouts.engine import Finished


@dataclass(frozen=True)
class EngineGroup:
    """The ranks that share this rank's engine; by default only this one."""

    size: int = 1
    process_group: Any = None
    """The group's own messages, between main memories; None for a group of one."""

    def whole(self, share: range) -> range:
        """The samples of the whole group, of which `share` are this rank's: consecutive, in the order of the ranks.

        Raises `ValueError` if the shares of the group leave a gap or overlap.
        """
        if self.size == 1:
            return share
        bounds = torch.tensor([share.start, share.stop])
        gathered = [torch.empty_like(bounds) for _ in range(self.size)]
        dist.all_gather(gathered, bounds, group=self.process_group)
        shares = [range(*pair.tolist()) for pair in gathered]
        filled = [part for part in shares if part]
        if any(left.stop != right.start for left, right in pairwise(filled)):
            raise ValueError(f"the ranks of a group share one engine, but not consecutive samples: {shares}")
        return range(filled[0].start, filled[-1].stop) if filled else share

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank of the group."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.process_group)
        return bool(flags.item())


SINGLE = EngineGroup()
"""A rank whose engine is its own."""


def engine_group(size: int) -> EngineGroup:
    """This rank's group of `size` consecutive ranks; all ranks call it together, after `check_groups`."""
    if size == 1:
        return SINGLE
    rank, group = dist.get_rank(), SINGLE
    # Every rank takes part in making every group.
    for first in range(0, dist.get_world_size(), size):
        made = dist.new_group(list(range(first, first + size)), backend="gloo")
        if first <= rank < first + size:
            group = EngineGroup(size, made)
    return group


def check_groups(size: int, model: PreTrainedModel, *, ranks: int) -> None:
    """Raise `UserError` if `ranks` or the model's attention cannot be divided by `size`, the ranks of a group."""
    config: Any = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    key = f"compute.tensor_parallel={size}"
    if ranks % size:
        fits = ", ".join(str(number) for number in range(1, ranks + 1) if ranks % number == 0)
        raise UserError(f"{key}: {ranks} ranks cannot be divided into groups of {size}; values that fit: {fits}")
    # With fewer heads of keys and values than ranks, several ranks have a copy of the same one.
    if not _divides(size, heads, kv_heads):
        fits = ", ".join(str(number) for number in range(1, heads + 1) if _divides(number, heads, kv_heads))
        raise UserError(
            f"{key}: the model's {heads} heads, {kv_heads} of keys and values, cannot be divided by {size} ranks; "
            f"values that fit: {fits}"
        )


def _divides(size: int, heads: int, kv_heads: int) -> bool:
    return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)


class Lockstep:
    """Reports the ended responses of one rank of a group, and stops all of its ranks at the same token."""

    def __init__(
        self,
        group: EngineGroup,
        local: range,
        *,
        interrupted: Callable[[], bool],
        finished: Finished | None,
    ) -> None:
        """`local` are this rank's rows among those that the group samples."""
        self._group, self._local = group, local
        self._interrupted, self._finished = interrupted, finished
        self._failure: Exception | None = None

    def asked(self) -> bool:
        """Whether any rank of the group was asked to stop, or has failed; all of its ranks call it together."""
        return self._group.any(self._failure is not None or self._interrupted())

    def report(self, rows: Sequence[int], responses: Sequence[list[int]], stopped: Tensor) -> None:
        """Pass on those of the ended rows that are this rank's.

        If that fails, the others still wait for this rank's part of the next token, so the error is kept.
        """
        ended = [i for i, row in enumerate(rows) if row in self._local]
        if self._finished is None or not ended or self._failure is not None:
            return
        try:
            self._finished(
                [rows[i] - self._local.start for i in ended],
                [responses[i] for i in ended],
                [bool(stopped[rows[i]]) for i in ended],
            )
        except Exception as error:
            self._failure = error

    def raise_failure(self) -> None:
        """Raise what `report` has kept."""
        if self._failure is not None:
            raise self._failure
