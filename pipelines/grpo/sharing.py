"""How the work of a step is divided among ranks: samples by number, rows of the update by their cost.

Every function is of numbers that all ranks know, so each rank computes the whole division without a message.
"""

import heapq
from collections.abc import Callable, Sequence

from pipelines.rollouts import length_batches


def consecutive(count: int, rank: int, ranks: int) -> range:
    """The part of 0, ..., count - 1 that a rank takes: consecutive, and as large as any other or one smaller."""
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def balanced(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Indices into `costs` for each rank, every index once, each rank's ascending.

    The largest cost goes first, each to the rank with the least so far (Graham's LPT rule). So the largest sum exceeds
    the mean by at most one cost, and the best possible by at most a third.
    """
    parts: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0.0, rank) for rank in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        load, rank = loads[0]
        parts[rank].append(index)
        heapq.heapreplace(loads, (load + costs[index], rank))
    return [sorted(part) for part in parts]


def micro_batches(
    lengths: Sequence[int], cost: Callable[[int], float], *, ranks: int, tokens: int
) -> list[list[list[int]]]:
    """For each rank its micro-batches, as indices into `lengths`; all ranks have the same number of them.

    Rows are shared out by `cost` of their length, and those of a rank packed by length into micro-batches of at most
    `tokens` tokens (a longer row is alone). A rank with fewer micro-batches gets empty ones, because every rank must
    take part in every forward and backward pass.
    """
    result = []
    for part in balanced([cost(length) for length in lengths], ranks):
        batches = length_batches([lengths[index] for index in part], tokens)
        result.append([[part[i] for i in batch] for batch in batches])
    most = max(map(len, result))
    return [batches + [[]] * (most - len(batches)) for batches in result]
