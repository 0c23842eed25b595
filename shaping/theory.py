"""What the objective converges to: the distribution a tabular model reaches, and beta as a temperature.

Setting the expected gradient over targets x ~ q to zero gives, for every token j,

    p_j (A - (1 - q_j) lam_j) = q_j (1 - p_j)^beta,        A = sum_x q_x (c_x + w_x),

in which A is the one number that makes p sum to 1. For lambda = 0 that is p_j proportional to q_j (1 - p_j)^beta.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from shaping.objective import Objective
from shaping.statistics import head_mask

STEPS = 64
"""Halvings of an interval of length 100 or less: what is left of it is below float64's resolution."""

INNER_STEPS = 25
"""Halvings before Newton's steps, which then double the digits."""


def stationary_distribution(q: Tensor, objective: Objective, tolerance: float = 1e-10) -> Tensor:
    """The distribution [..., V] (float64) at which a tabular model trained on data from q [..., V] stands still.

    With lam_head >= lam_tail the head is that of q, since p keeps q's order. With lam_head < lam_tail a token that
    enters the head is pushed out of it again, so some tokens come to rest at one probability at the k-th place, each in
    the head for a share of the time; the shares add up to k. Gradient descent trembles about that point by its step.

    Raises `ValueError` for a q that is not a distribution, and `ArithmeticError` where no fixed point is found to
    `tolerance` (largest expected gradient of a logit).
    """
    q = q.double()
    if bool((q < 0).any()) or bool(((q.sum(-1) - 1).abs() > 1e-6).any()):
        raise ValueError("q: it must be 0 or more everywhere and sum to 1 over the last dimension")
    rows = (q / q.sum(-1, keepdim=True)).reshape(-1, q.shape[-1])
    p, lam = _solve(rows, objective)
    left_over = _gradient(p, rows, lam, objective.beta).abs().amax()
    if not left_over <= tolerance:
        raise ArithmeticError(
            f"no fixed point was found for {objective!r}: a gradient of {float(left_over):.1e} is left"
        )
    return p.view_as(q)


def expected_gradient(p: Tensor, q: Tensor, objective: Objective) -> Tensor:
    """Expected gradient [N, V] with respect to the logits of a model at p [N, V], over targets from q [N, V]."""
    return _gradient(p, q, _lambdas(p, objective), objective.beta)


def _gradient(p: Tensor, q: Tensor, lam: Tensor, beta: float) -> Tensor:
    top = p.argmax(-1, keepdim=True)
    rest = p.scatter(-1, top, 0.0).sum(-1, keepdim=True)  # 1 - p of the likeliest, exact also where p is near 1
    w = (1 - p).scatter(-1, top, rest) ** beta
    c = (p * lam).sum(-1, keepdim=True) - p * lam
    level = (q * (c + w)).sum(-1, keepdim=True)
    return p * (level - (1 - q) * lam) - q * w


def _lambdas(p: Tensor, objective: Objective) -> Tensor:
    """The lambda of each token, [N, V]."""
    return torch.full_like(p, objective.lam_tail).masked_fill_(head_mask(p, objective.top_k), objective.lam_head)


def _solve(q: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """p and the lambdas that hold there, [N, V] each.

    For a given A every token but the likeliest lies below 1/2, where p (1 - p)^-beta rises with p, so that its
    equation has one root; the likeliest takes what the others leave. Then A is found by halving an interval.
    """
    fixed = _lambdas(q, objective)
    shared = objective.lam_head < objective.lam_tail and objective.top_k < q.shape[-1]
    top = q.argmax(-1, keepdim=True)
    others = torch.ones_like(q, dtype=torch.bool).scatter_(-1, top, False)
    least = torch.full_like(q, objective.lam_head) if shared else fixed
    low = torch.where(q > 0, (1 - q) * least, -torch.inf).amax(-1, keepdim=True)
    # In u = log(A - low): the others' mass falls as u rises, and the likeliest token's equation changes sign once.
    left, right = torch.full_like(low, -50.0), torch.full_like(low, 50.0)
    for _ in range(STEPS):
        middle = (left + right) / 2
        level = low + middle.exp()
        lam = _shared_lambdas(q, objective, level) if shared else fixed
        p = _others(q, lam, objective.beta, level) * others
        rest = p.sum(-1, keepdim=True)
        p_top = (1 - rest).clamp(min=0)
        bracket = level - (1 - q.gather(-1, top)) * lam.gather(-1, top)
        too_small = p_top * bracket < q.gather(-1, top) * rest.clamp(min=1e-300) ** objective.beta
        left, right = torch.where(too_small, middle, left), torch.where(too_small, right, middle)
    return p.scatter(-1, top, p_top), lam


def _shared_lambdas(q: Tensor, objective: Objective, level: Tensor) -> Tensor:
    """Lambdas [N, V] for lam_head < lam_tail at a given A [N, 1]: between the two for tokens that share the k-th place.

    A token at probability t there has the lambda that its equation asks for, and so a share in the head; the shares
    fall as t rises, and t is where they add up to k.
    """
    span = objective.lam_tail - objective.lam_head
    left, right = torch.full_like(level, -100.0), torch.zeros_like(level)  # of log t
    for _ in range(STEPS):
        middle = (left + right) / 2
        t = middle.exp()
        asked = (level - q * (1 - t).clamp(min=1e-300) ** objective.beta / t) / (1 - q).clamp(min=1e-300)
        share = ((objective.lam_tail - asked) / span).clamp(0, 1)
        crowded = share.sum(-1, keepdim=True) > objective.top_k
        left, right = torch.where(crowded, middle, left), torch.where(crowded, right, middle)
    return objective.lam_tail - span * share


def _others(q: Tensor, lam: Tensor, beta: float, level: Tensor) -> Tensor:
    """Roots p [N, V] in [0, 1/2] of p (level - (1 - q) lam) = q (1 - p)^beta; 1/2 where there is none."""
    bracket = (level - (1 - q) * lam).clamp(min=1e-300)
    left, right = torch.zeros_like(q), torch.full_like(q, 0.5)
    for _ in range(INNER_STEPS):
        middle = (left + right) / 2
        below = middle * bracket < q * (1 - middle) ** beta
        left, right = torch.where(below, middle, left), torch.where(below, right, middle)
    p = (left + right) / 2
    for _ in range(3):  # Newton's steps bring small probabilities to full relative precision
        f = p * bracket - q * (1 - p) ** beta
        slope = bracket + beta * q * (1 - p) ** (beta - 1)
        p = (p - f / slope).clamp(0, 0.5)
    return p


class EffectiveTemperature(NamedTuple):
    """The temperature [...] at which the reference has the other's entropy, and the divergence [...] (KL, nats) from
    the tempered reference to the other that no temperature takes away."""

    temperature: Tensor
    divergence: Tensor


def effective_temperature(reference: Tensor, shaped: Tensor) -> EffectiveTemperature:
    """How much of the way from `reference` to `shaped` (distributions [..., V]) a sampling temperature goes.

    The reference is what cross-entropy reaches (the data distribution q, for a tabular model), the other what a shaped
    objective reaches. Entropy rises with temperature, so the temperature is found by halving an interval from 1e-3 to
    1e3. Raises `ValueError` where the entropy asked for lies outside what these give.
    """
    log_q = reference.double().log()
    shaped = shaped.double()
    wanted = torch.special.entr(shaped).sum(-1, keepdim=True)

    def tempered(log_temperature: Tensor) -> Tensor:
        return (log_q / log_temperature.exp()).softmax(-1)

    def entropy(log_temperature: Tensor) -> Tensor:
        return torch.special.entr(tempered(log_temperature)).sum(-1, keepdim=True)

    left, right = torch.full_like(wanted, -6.9), torch.full_like(wanted, 6.9)
    if bool((entropy(left) > wanted + 1e-9).any()) or bool((entropy(right) < wanted - 1e-9).any()):
        raise ValueError("shaped: no temperature between 1e-3 and 1e3 gives the reference its entropy")
    for _ in range(STEPS):
        middle = (left + right) / 2
        below = entropy(middle) < wanted
        left, right = torch.where(below, middle, left), torch.where(below, right, middle)
    matched = tempered((left + right) / 2)
    ratio = torch.special.xlogy(shaped, shaped) - torch.special.xlogy(shaped, matched)
    return EffectiveTemperature(((left + right) / 2).exp()[..., 0], ratio.sum(-1))
