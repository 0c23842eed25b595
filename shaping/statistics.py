"""What a next-token distribution looks like: entropy, head and tail mass, and the rank of the target.

The head K of a row is its k likeliest tokens. Equal logits at the k-th place are decided by the lower token id, so
that K has exactly k members whatever the device or the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class TokenStatistics(NamedTuple):
    """One number a token, [N] each: entropy in nats, mass of the head and of the tail, and the target's
    probability and rank (1 is the likeliest). Rows whose target is ignored have probability NaN and rank 0."""

    entropy: Tensor
    head_mass: Tensor
    tail_mass: Tensor
    target_probability: Tensor
    target_rank: Tensor


def working(logits: Tensor) -> Tensor:
    """`logits` in the type that sums are taken in: float64 stays, all else becomes float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def head_mask(logits: Tensor, top_k: int) -> Tensor:
    """Whether each token is in the head, [..., V] bool with exactly `top_k` True a row."""
    if top_k >= logits.shape[-1]:
        return torch.ones_like(logits, dtype=torch.bool)
    threshold = logits.topk(top_k, dim=-1).values[..., -1:]
    mask = logits >= threshold
    if bool((mask.sum(-1) > top_k).any()):
        tied = logits == threshold
        room = top_k - (logits > threshold).sum(-1, keepdim=True)
        mask &= ~tied | (tied.cumsum(-1) <= room)
    return mask


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) [..., V] in nats, [...] float32 (float64 for float64); carries gradient."""
    log_probs = working(logits).log_softmax(-1)
    return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)


def head_tail_mass(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Probability of the `top_k` likeliest tokens and of all others, [...] each; they sum to 1.

    Raises `ValueError` for a `top_k` outside 1..V.
    """
    if not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k={top_k}: it must lie between 1 and the vocabulary, {logits.shape[-1]}")
    probabilities = working(logits).softmax(-1)
    head = (probabilities * head_mask(logits, top_k)).sum(-1)
    return head, 1 - head


def target_rank(logits: Tensor, targets: Tensor) -> Tensor:
    """Rank of each target [...] among logits [..., V], int64: 1 is the likeliest, ties go to the lower id."""
    own = logits.gather(-1, targets.long()[..., None])
    ids = torch.arange(logits.shape[-1], device=logits.device)
    before = (logits == own) & (ids < targets[..., None])
    return 1 + ((logits > own) | before).sum(-1)
