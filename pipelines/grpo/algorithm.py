"""GRPO's arithmetic: advantages, the clipped surrogate, the divergence to a reference, how tokens are weighed.

Pure functions of tensors. A group is the n responses to one prompt; T counts the response tokens of a whole batch,
response after response. Sources: GRPO (arXiv 2402.03300), DAPO (2503.14476), Dr. GRPO (2503.20783), RLOO (2402.14740).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def advantages(rewards: Tensor, kind: str) -> Tensor:
    """Rewards [G, n] relative to their group's, [G, n].

    `standardised`: (r - mean) / std, the unbiased std (GRPO, DAPO), 0 where all rewards are equal; `centred`:
    r - mean (Dr. GRPO); `leave_one_out`: r - mean of the other n - 1 (RLOO), that is n / (n - 1) (r - mean), the
    unbiased one.
    """
    n = rewards.shape[1]
    centred = rewards - rewards.mean(1, keepdim=True)
    if kind == "centred":
        return centred
    if kind == "leave_one_out":
        return centred * n / (n - 1)
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return centred.div(rewards.std(1, keepdim=True)).masked_fill(equal, 0.0)


def overlong_penalty(lengths: Tensor, stopped: Tensor, limit: int, buffer: float) -> Tensor:
    """DAPO's soft punishment (Eq. 13) of responses [N]: 0 until `buffer` (a share) before the limit, then down to -1.

    A response that was cut is at -1 whatever its length.
    """
    width = buffer * limit
    return torch.where(stopped, ((limit - width - lengths) / width).clamp(-1.0, 0.0), -1.0)


def token_weights(lengths: Sequence[int], kept: Sequence[bool], kind: str, limit: int) -> list[float]:
    """The weight of every token of each response in the batch's loss; 0 for responses that are not kept.

    `token`: 1 / all kept tokens (DAPO); `sequence`: 1 / (kept responses x own length) (GRPO); `constant`:
    1 / (responses x limit), which no length biases (Dr. GRPO).
    """
    if kind == "constant":
        return [float(keep) / (len(lengths) * limit) for keep in kept]
    if kind == "sequence":
        count = max(1, sum(kept))
        return [float(keep) / (count * length) for length, keep in zip(lengths, kept, strict=True)]
    total = max(1, sum(length for length, keep in zip(lengths, kept, strict=True) if keep))
    return [float(keep) / total for keep in kept]


class Surrogate(NamedTuple):
    """The loss of each token [T], the ratio pi / pi_old [T] and which tokens a bound holds back, [T] bool each."""

    loss: Tensor
    ratio: Tensor
    low: Tensor
    high: Tensor


def surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> Surrogate:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) of each token; all arguments [T].

    With `old_log_probs = log_probs.detach()` (strictly on-policy) the ratio is 1, nothing is clipped, and the
    gradient is that of -A log pi: REINFORCE with the group as its baseline.
    """
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    fixed = ratio.detach()
    return Surrogate(loss, fixed, (fixed < 1 - clip_low) & (advantage < 0), (fixed > 1 + clip_high) & (advantage > 0))


def divergence(log_probs: Tensor, reference: Tensor) -> Tensor:
    """One-sample estimates [T] of KL(pi || reference) at tokens drawn from pi: q/p - 1 - log q/p.

    Unbiased and never negative, with less variance than log p/q alone (Schulman's k3).
    """
    log_ratio = reference - log_probs
    return torch.expm1(log_ratio) - log_ratio


def importance_weights(old_log_probs: Tensor, sampler_log_probs: Tensor, cap: float) -> Tensor:
    """min(pi_old / pi_sampler, cap) of each token [T], for a sampler whose arithmetic is not the learner's."""
    return (old_log_probs - sampler_log_probs).exp().clamp(max=cap)
