"""The objective as the paper defines it: rewards of tokens, and the policy gradient by sampling.

The expectation of this form is the exact form in `shaping.loss`. Tests compare the two, and the variance shows what
sampling would cost; train with `shaping.loss`.
"""

import torch
from torch import Tensor

from shaping.loss import FLOOR
from shaping.objective import Objective
from shaping.statistics import head_mask


def token_rewards(log_probs: Tensor, targets: Tensor, objective: Objective, *, floor: float = FLOOR) -> Tensor:
    """The reward of each token as the action (Eq. 11-13), [N, V] without gradient, for log_probs [N, V], targets [N].

    The true token x earns `(1 - p_x)^beta / p_x`, with 1 - p_x at least `floor`; a token in the head K earns `lam_head`
    and one in the tail `lam_tail`.
    """
    log_probs = log_probs.detach()
    # Every token as a wrong token, then the true token's reward in its place.
    head = head_mask(log_probs, objective.top_k)
    rewards = torch.full_like(log_probs, objective.lam_tail).masked_fill_(head, objective.lam_head)
    log_p = log_probs.gather(-1, targets[:, None])
    positive = (-torch.expm1(log_p)).clamp(min=floor) ** objective.beta * torch.exp(-log_p)
    return rewards.scatter_(-1, targets[:, None], positive)


def sampled_policy_gradient_loss(
    logits: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    num_samples: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A loss [N] whose gradient estimates that of `shaped_cross_entropy` from `num_samples` tokens per row (Eq. 5).

    For logits [N, V], targets [N]: minus the mean over samples a of r(a) log pi(a). The estimate is unbiased. Its
    variance is `policy_gradient_variance`, large where the true token is unlikely, since that token then earns 1/p in
    the few samples that draw it. Only the gradient has a meaning, not the value.
    """
    log_probs = logits.log_softmax(-1)
    rewards = token_rewards(log_probs, targets, objective)
    samples = torch.multinomial(log_probs.detach().exp(), num_samples, replacement=True, generator=generator)
    return -(rewards.gather(-1, samples) * log_probs.gather(-1, samples)).mean(-1)


def policy_gradient_variance(logits: Tensor, targets: Tensor, objective: Objective, *, num_samples: int) -> Tensor:
    """Total variance [N] of the sampled gradient with respect to a row's logits (the trace of its covariance).

    One sample a gives the gradient r(a) (onehot(a) - pi), so E|g|^2 = sum_a pi_a r_a^2 (1 - 2 pi_a + |pi|^2). Samples
    are independent, so the variance of their mean is that of one sample divided by their number.
    """
    # In float64: the reward 1/p of a target with p below 1e-38 is not a float32 number.
    log_probs = logits.detach().double().log_softmax(-1)
    probs = log_probs.exp()
    rewards = token_rewards(log_probs, targets, objective)
    squared_norm = 1 - 2 * probs + (probs**2).sum(-1, keepdim=True)  # of onehot(a) - pi, for each a
    second_moment = (probs * rewards**2 * squared_norm).sum(-1)
    mean = probs * rewards - probs * (probs * rewards).sum(-1, keepdim=True)
    return ((second_moment - (mean**2).sum(-1)) / num_samples).to(logits.dtype)
