"""What a next-token distribution looks like: entropy, head and tail mass, probability and rank of the target.

The head K of a row is its k likeliest tokens. Equal logits at the k-th place are decided by the lower token id, so
that K has exactly k members whatever the device or the batch, and a token is in K where its rank is at most k.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 8
"""Tokens whose largest logit stands for them in the first look for a row's k largest."""


class TokenStatistics(NamedTuple):
    """One number a token, in the targets' shape: entropy in nats, mass of the head and of the tail, and the target's
    probability and rank (1 is the likeliest). Rows whose target is ignored have probability NaN and rank 0."""

    entropy: Tensor
    head_mass: Tensor
    tail_mass: Tensor
    target_probability: Tensor
    target_rank: Tensor


def working(logits: Tensor) -> Tensor:
    """`logits` in the type that sums are taken in: float64 stays, all else becomes float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) [..., V] in nats, [...] float32 (float64 for float64); carries gradient."""
    log_probs = working(logits).log_softmax(-1)
    return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)


def head_tail_mass(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Probability of the `top_k` likeliest tokens of logits [..., V] and of all others, [...] each; they sum to 1.

    Carries gradient; which tokens form the head does not. Raises `ValueError` for a `top_k` outside 1..V.
    """
    if not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k={top_k}: it must lie between 1 and the vocabulary, {logits.shape[-1]}")
    head = working(logits).softmax(-1).gather(-1, head_ids(logits, top_k)).sum(-1)
    return head, 1 - head


def target_rank(logits: Tensor, targets: Tensor) -> Tensor:
    """Rank of each target [...] among logits [..., V], int64: 1 is the likeliest, ties go to the lower id."""
    own = logits.gather(-1, targets.long()[..., None])
    rank = (logits > own).sum(-1) + 1
    tied = (logits >= own).sum(-1) > rank  # somebody else has the same logit: look at the ids there alone
    if bool(tied.any()):
        ids = torch.arange(logits.shape[-1], device=logits.device)
        rank[tied] += ((logits[tied] == own[tied]) & (ids < targets[tied][..., None])).sum(-1)
    return rank


def head_mask(logits: Tensor, top_k: int) -> Tensor:
    """Whether each token is in the head, [..., V] bool with exactly min(top_k, V) True a row."""
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, head_ids(logits, top_k), True)


@torch.no_grad()
def head_ids(logits: Tensor, top_k: int) -> Tensor:
    """The tokens in the head of logits [..., V], [..., min(top_k, V)] int64 in no order."""
    vocabulary = logits.shape[-1]
    if top_k >= vocabulary:
        return torch.arange(vocabulary, device=logits.device).expand(logits.shape)
    rows = logits.reshape(-1, vocabulary)
    values, ids = _largest(rows, top_k + 1)  # one more than asked for tells whether the k-th place is contested
    last = values.argmin(-1, keepdim=True)
    ids = ids.scatter(-1, last, ids[:, -1:])[:, :-1]
    values, out = values.scatter(-1, last, values[:, -1:])[:, :-1], values.gather(-1, last)
    threshold = values.amin(-1, keepdim=True)
    contested = (threshold == out)[:, 0]
    if bool(contested.any()):
        ids[contested] = _by_id(rows[contested], values[contested], ids[contested], threshold[contested])
    return ids.reshape(*logits.shape[:-1], top_k)


def _largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and ids [N, k] of the k largest of rows [N, V], in no order.

    A long row is cut into V / 8 blocks. The k blocks with the largest maxima hold k values at least as large as
    anything in the other blocks, so only those are looked through: exact, and the selection reads part of the row.
    """
    count, vocabulary = rows.shape
    blocks = vocabulary // BLOCK
    if blocks < 2 * k:
        return rows.topk(k, -1, sorted=False)
    maxima = rows[:, : BLOCK * blocks].view(count, BLOCK, blocks).amax(1)
    best = _largest(maxima, k)[1]
    starts = torch.arange(0, BLOCK * blocks, blocks, device=rows.device)
    candidates = (best[:, None, :] + starts[None, :, None]).reshape(count, -1)
    if BLOCK * blocks < vocabulary:
        rest = torch.arange(BLOCK * blocks, vocabulary, device=rows.device).expand(count, -1)
        candidates = torch.cat([candidates, rest], -1)
    values, places = rows.gather(-1, candidates).topk(k, -1, sorted=False)
    return values, candidates.gather(-1, places)


def _by_id(rows: Tensor, values: Tensor, ids: Tensor, threshold: Tensor) -> Tensor:
    """`ids` [N, k] with those that only tie for the last places replaced by the lowest ids that tie."""
    row, tied = (rows == threshold).nonzero(as_tuple=True)  # in the order of rows, then of ids
    many = torch.bincount(row, minlength=len(rows))
    place = torch.arange(len(row), device=rows.device) - (many.cumsum(0) - many)[row]
    unsure = values == threshold
    chosen = place < unsure.sum(-1)[row]
    ids[unsure] = tied[chosen]
    return ids
