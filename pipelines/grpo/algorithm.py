"""GRPO's arithmetic: advantages, the clipped surrogate, the divergence from a reference, the weights of tokens.

Pure functions of tensors. A group is the n responses to one prompt. G is the number of groups, N of responses, and T of
response tokens in the batch, in order of the responses. Sources: GRPO (arXiv 2402.03300), DAPO (2503.14476), Dr. GRPO
(2503.20783), RLOO (2402.14740).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def advantages(rewards: Tensor, estimator: str) -> Tensor:
    """Advantages [G, n] of the rewards [G, n] over their group.

    `standardised`: (r - mean) / std with the unbiased std, 0 if all rewards are equal (GRPO, DAPO); `centred`: r - mean
    (Dr. GRPO); `leave_one_out`: r - mean of the other n - 1, which equals n / (n - 1) (r - mean) and is unbiased
    (RLOO).
    """
    n = rewards.shape[1]
    centred = rewards - rewards.mean(1, keepdim=True)
    if estimator == "centred":
        return centred
    if estimator == "leave_one_out":
        return centred * n / (n - 1)
    # Compared as numbers, since the mean of equal numbers is rounded and would leave a tiny advantage.
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return centred.div(rewards.std(1, keepdim=True)).masked_fill(equal, 0.0)


def overlong_penalty(lengths: Tensor, stopped: Tensor, *, limit: int, buffer: float) -> Tensor:
    """DAPO's soft punishment (Eq. 13) of responses [N].

    It falls from 0 to -1 over the last `buffer` (a share) of the limit, and is -1 for a response that the limit cut.
    """
    width = buffer * limit
    return torch.where(stopped, ((limit - width - lengths) / width).clamp(-1.0, 0.0), -1.0)


def token_weights(lengths: Sequence[int], kept: Sequence[bool], *, loss: str, limit: int) -> list[float]:
    """For each response, the weight of each of its tokens in the batch's loss; 0 for responses that are not kept.

    `token`: 1 / all kept tokens (DAPO); `sequence`: 1 / (kept responses x the response's length) (GRPO); `constant`:
    1 / (responses x limit), which does not depend on lengths (Dr. GRPO).
    """
    if loss == "constant":
        return [float(keep) / (len(lengths) * limit) for keep in kept]
    if loss == "sequence":
        count = max(1, sum(kept))
        return [float(keep) / (count * length) for length, keep in zip(lengths, kept, strict=True)]
    total = max(1, sum(length for length, keep in zip(lengths, kept, strict=True) if keep))
    return [float(keep) / total for keep in kept]


class Surrogate(NamedTuple):
    """The clipped surrogate of each token, [T] each."""

    loss: Tensor
    """Has a gradient."""
    ratio: Tensor
    """pi / pi_old; no gradient."""
    low: Tensor
    """Whether the lower bound clips the token, bool."""
    high: Tensor
    """Whether the upper bound clips the token, bool."""


def surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantage: Tensor, *, clip_low: float, clip_high: float
) -> Surrogate:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) of each token; all tensors are [T].

    With `old_log_probs = log_probs.detach()` (strictly on-policy) the ratio is 1, nothing is clipped, and the gradient
    is that of -A log pi: REINFORCE with the group as baseline.
    """
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    ratio = ratio.detach()
    return Surrogate(loss, ratio, (ratio < 1 - clip_low) & (advantage < 0), (ratio > 1 + clip_high) & (advantage > 0))


def divergence(log_probs: Tensor, reference: Tensor) -> Tensor:
    """One-sample estimates [T] of KL(pi || reference) at tokens drawn from pi: q/p - 1 - log q/p (Schulman's k3).

    Unbiased and never negative, with less variance than log p/q.
    """
    log_ratio = reference - log_probs
    return torch.expm1(log_ratio) - log_ratio


def importance_weights(old_log_probs: Tensor, sampler_log_probs: Tensor, cap: float) -> Tensor:
    """min(pi_old / pi_sampler, cap) of each token [T], for a sampler whose arithmetic differs from the learner's."""
    return (old_log_probs - sampler_log_probs).exp().clamp(max=cap)
