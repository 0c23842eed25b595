"""Statistics of a next-token distribution: entropy, head and tail mass, probability and rank of the target.

The head K of a row is its k likeliest tokens. Ties at the k-th place go to the lower token id, so that K has exactly k
members on every device and in every batch, and a token is in K if and only if its rank is at most k.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 8
"""How many tokens form a block in the search for a row's k largest logits."""


class TokenStatistics(NamedTuple):
    """One number per token, in the targets' shape: entropy in nats, mass of the head and of the tail, and the target's
    probability, rank (1 is the likeliest) and log-probability in nats.

    Where the target is ignored, its probability and log-probability are NaN and its rank 0. Below 1e-45 a probability
    is 0 in float32: take cross-entropy from the log-probability.
    """

    entropy: Tensor
    head_mass: Tensor
    tail_mass: Tensor
    target_probability: Tensor
    target_rank: Tensor
    target_log_probability: Tensor


def to_working_type(logits: Tensor) -> Tensor:
    """`logits` in the type for sums: float64 stays float64, all other types become float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) [..., V] in nats, [...] float32 (float64 for float64); differentiable."""
    log_probs = to_working_type(logits).log_softmax(-1)
    return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)


def head_tail_mass(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Probability of the `top_k` likeliest tokens of logits [..., V] and of all others, [...] each; they sum to 1.

    Differentiable, with the choice of the head as a constant. Raises `ValueError` for a `top_k` outside 1..V.
    """
    if not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k={top_k}: it must be between 1 and the vocabulary, {logits.shape[-1]}")
    head = to_working_type(logits).softmax(-1).gather(-1, head_ids(logits, top_k)).sum(-1)
    return head, 1 - head


def target_rank(logits: Tensor, targets: Tensor) -> Tensor:
    """Rank of each target [...] among logits [..., V], int64: 1 is the likeliest, ties go to the lower id."""
    target_logits = logits.gather(-1, targets.long()[..., None])
    rank = (logits > target_logits).sum(-1) + 1
    # Ids are compared only where another token has the same logit.
    tied = (logits >= target_logits).sum(-1) > rank
    if bool(tied.any()):
        ids = torch.arange(logits.shape[-1], device=logits.device)
        rank[tied] += ((logits[tied] == target_logits[tied]) & (ids < targets[tied][..., None])).sum(-1)
    return rank


def head_mask(logits: Tensor, top_k: int) -> Tensor:
    """Whether each token is in the head, [..., V] bool with exactly min(top_k, V) True per row."""
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, head_ids(logits, top_k), True)


@torch.no_grad()
def head_ids(logits: Tensor, top_k: int) -> Tensor:
    """The ids of the head of logits [..., V], [..., min(top_k, V)] int64 in no particular order."""
    vocabulary = logits.shape[-1]
    if top_k >= vocabulary:
        return torch.arange(vocabulary, device=logits.device).expand(logits.shape)
    rows = logits.reshape(-1, vocabulary)
    # The k + 1 largest, of which the smallest is taken out again: it tells whether the k-th place is tied.
    values, ids = _largest(rows, top_k + 1)
    smallest = values.argmin(-1, keepdim=True)
    next_value = values.gather(-1, smallest)
    ids = ids.scatter(-1, smallest, ids[:, -1:])[:, :-1]
    values = values.scatter(-1, smallest, values[:, -1:])[:, :-1]
    threshold = values.amin(-1, keepdim=True)
    tied = (threshold == next_value)[:, 0]
    if bool(tied.any()):
        ids[tied] = _with_lowest_tied_ids(rows[tied], values[tied], ids[tied], threshold=threshold[tied])
    return ids.reshape(*logits.shape[:-1], top_k)


def _largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and ids [N, k] of the k largest of rows [N, V], in no particular order.

    A long row is divided into V / 8 blocks. The k blocks with the largest maxima contain k values at least as large as
    any value of the other blocks, so only those are searched: the result is exact, and `topk` sees part of the row.
    """
    count, vocabulary = rows.shape
    blocks = vocabulary // BLOCK
    if blocks < 2 * k:
        return rows.topk(k, -1, sorted=False)
    # Block b is the ids b, b + blocks, b + 2 * blocks, ...: maxima over contiguous slices are fast.
    maxima = rows[:, : BLOCK * blocks].view(count, BLOCK, blocks).amax(1)
    best_blocks = _largest(maxima, k)[1]
    offsets = torch.arange(0, BLOCK * blocks, blocks, device=rows.device)
    candidates = (best_blocks[:, None, :] + offsets[None, :, None]).reshape(count, -1)
    if BLOCK * blocks < vocabulary:
        remainder = torch.arange(BLOCK * blocks, vocabulary, device=rows.device).expand(count, -1)
        candidates = torch.cat([candidates, remainder], -1)
    values, indices = rows.gather(-1, candidates).topk(k, -1, sorted=False)
    return values, candidates.gather(-1, indices)


def _with_lowest_tied_ids(rows: Tensor, values: Tensor, ids: Tensor, *, threshold: Tensor) -> Tensor:
    """`ids` [N, k] with those whose value equals the threshold [N, 1] replaced by the lowest ids with that value."""
    row_indices, tied_ids = (rows == threshold).nonzero(as_tuple=True)  # sorted by row, then by id
    # The position of each tied id among those of its row.
    ties_per_row = torch.bincount(row_indices, minlength=len(rows))
    first = ties_per_row.cumsum(0) - ties_per_row
    position = torch.arange(len(row_indices), device=rows.device) - first[row_indices]
    # As many of the lowest ids as the row has places at the threshold.
    replaced = values == threshold
    ids[replaced] = tied_ids[position < replaced.sum(-1)[row_indices]]
    return ids
