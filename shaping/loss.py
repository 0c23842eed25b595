"""The objective in its exact form, as a drop-in for `F.cross_entropy`.

The expectation of Eq. 5 runs over the vocabulary, so it is a sum and needs no sampling. With p the probability of
the true token x, H and T the mass of the other head and tail tokens, and sg the stop-gradient,

    loss = -[ sg((1 - p)^beta) log p + lam_head H + lam_tail T ]

and, with w = (1 - p)^beta, c = lam_head H + lam_tail T, and lam_j the lambda of token j,

    d loss / d z_j = -pi_j (lam_j - c - w)    for j != x,        d loss / d z_x = -(w - p (c + w)).

The head K (the k likeliest tokens) is chosen without gradient; H and T carry gradient.
"""

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shaping.objective import Objective
from shaping.statistics import TokenStatistics, head_mask, target_rank, working

FLOOR = 1e-6
"""Least value of 1 - p under a power: with beta < 0 the weight would grow without bound as p -> 1. The source does
not state one; this is ours. At beta = -0.25 it caps the weight at 31.6."""

Reduction = Literal["mean", "sum", "none"]


@overload
def shaped_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    weight: Tensor | None = ...,
    return_stats: Literal[False] = ...,
    floor: float = ...,
) -> Tensor: ...
@overload
def shaped_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    weight: Tensor | None = ...,
    return_stats: Literal[True],
    floor: float = ...,
) -> tuple[Tensor, TokenStatistics]: ...
def shaped_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    weight: Tensor | None = None,
    return_stats: bool = False,
    floor: float = FLOOR,
) -> Tensor | tuple[Tensor, TokenStatistics]:
    """The objective's loss for logits [N, V] or [B, T, V] (any float type) and integer targets [N] or [B, T].

    Targets equal to `ignore_index` count for nothing. `weight` [N] or [B, T] multiplies each token's loss, and the
    mean is then the weighted one. `reduction="none"` gives the losses in the targets' shape. At beta = lambda = 0
    the result is that of `F.cross_entropy`, bit for bit. `return_stats` adds `TokenStatistics` of [N] (no gradient).
    `floor` is the least 1 - p under the power beta.

    Raises `ValueError` for shapes, types, targets or a `top_k` that do not fit. Second derivatives are refused.
    """
    _check(logits, targets, objective, weight, reduction, ignore_index)
    shape, vocabulary = targets.shape, logits.shape[-1]
    logits, targets = logits.reshape(-1, vocabulary), targets.reshape(-1).long()
    if objective.is_cross_entropy:
        if weight is None and not return_stats:
            loss = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction=reduction)
            return loss.reshape(shape) if reduction == "none" else loss
        losses = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")
    else:
        losses = _ShapedCrossEntropy.apply(logits, targets, objective, ignore_index, floor)
    loss = _reduce(losses, targets != ignore_index, weight, reduction, shape)
    if not return_stats:
        return loss
    return loss, token_statistics(logits, targets, objective.top_k, ignore_index)


def token_statistics(logits: Tensor, targets: Tensor, top_k: int, ignore_index: int = -100) -> TokenStatistics:
    """Statistics of logits [N, V] at targets [N], with no gradient."""
    with torch.no_grad():
        logits = working(logits)
        kept = targets != ignore_index
        safe = targets.where(kept, torch.zeros_like(targets))
        log_probs = logits.log_softmax(-1)
        probabilities = log_probs.exp()
        head = (probabilities * head_mask(logits, min(top_k, logits.shape[-1]))).sum(-1)
        return TokenStatistics(
            entropy=-torch.special.xlogy(probabilities, probabilities).sum(-1),
            head_mass=head,
            tail_mass=1 - head,
            target_probability=probabilities.gather(-1, safe[:, None])[:, 0].masked_fill(~kept, torch.nan),
            target_rank=target_rank(logits, safe) * kept,
        )


def _reduce(losses: Tensor, kept: Tensor, weight: Tensor | None, reduction: Reduction, shape: torch.Size) -> Tensor:
    if weight is not None:
        weight = weight.reshape(-1)
        losses = losses * weight
    if reduction == "none":
        return losses.reshape(shape)
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (kept.sum() if weight is None else (weight * kept).sum())


class _ShapedCrossEntropy(torch.autograd.Function):
    """Losses [N] of logits [N, V]; the backward pass is the closed form, from what is small of the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, objective: Objective, ignore_index: int, floor: float
    ) -> Tensor:
        scores = working(logits)
        kept = targets != ignore_index
        safe = targets.where(kept, torch.zeros_like(targets))[:, None]
        normaliser = scores.logsumexp(-1, keepdim=True)
        log_p = (scores.gather(-1, safe) - normaliser)[:, 0]
        missing = -torch.expm1(log_p)  # 1 - p, exact also where p is near 1
        w = missing.clamp(min=floor) ** objective.beta
        head = None
        if objective.uses_head:
            head = head_mask(scores, objective.top_k)
            inside = (scores - normaliser).exp_().mul_(head).sum(-1)
            own = log_p.exp() * head.gather(-1, safe)[:, 0]
            head_mass = (inside - own).clamp(min=0)
            c = objective.lam_head * head_mass + objective.lam_tail * (missing - head_mass).clamp(min=0)
        else:
            c = objective.lam_head * missing
        ctx.save_for_backward(logits, safe, kept, normaliser, w, c, head)
        ctx.objective = objective
        return -(w * log_p + c).where(kept, 0.0).to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, safe, kept, normaliser, w, c, head = ctx.saved_tensors
        objective: Objective = ctx.objective
        gradient = (working(logits) - normaliser).exp_()
        level = (c + w)[:, None]
        scale = (upstream.to(w.dtype) * kept)[:, None]
        at_target = gradient.gather(-1, safe) * level - w[:, None]
        if head is None:
            gradient *= (level - objective.lam_head) * scale
        else:
            # d loss / d z_j = pi_j (level - lam_j), lam_j being one of two numbers
            gradient *= torch.where(head, level - objective.lam_head, level - objective.lam_tail).mul_(scale)
        gradient.scatter_(-1, safe, at_target * scale)
        return gradient.to(logits.dtype), None, None, None, None


def _check(
    logits: Tensor,
    targets: Tensor,
    objective: Objective,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
) -> None:
    if not logits.is_floating_point():
        raise ValueError(f"logits have type {logits.dtype}: they must be of a floating type")
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(f"targets have type {targets.dtype}: they must be integers")
    if logits.ndim not in (2, 3) or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {list(logits.shape)} and targets {list(targets.shape)}: the shapes must be [N, V] and [N], "
            "or [B, T, V] and [B, T]"
        )
    if weight is not None and weight.shape != targets.shape:
        raise ValueError(f"weight {list(weight.shape)}: its shape must be that of targets, {list(targets.shape)}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r}: it is one of mean, sum, none")
    vocabulary = logits.shape[-1]
    if objective.uses_head and objective.top_k > vocabulary:
        raise ValueError(f"top_k={objective.top_k}: it must be at most the vocabulary, {vocabulary}")
    if targets.device.type == "cpu" and targets.numel():  # elsewhere the check would wait for the device
        outside = (targets != ignore_index) & ((targets < 0) | (targets >= vocabulary))
        if bool(outside.any()):
            raise ValueError(
                f"targets hold {int(targets[outside][0])}: they must lie in 0..{vocabulary - 1}, "
                f"or be ignore_index={ignore_index}"
            )
