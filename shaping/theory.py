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

STEPS = 200
"""Halvings of an interval; float64 is used up after about 60 to 110."""


def stationary_distribution(q: Tensor, objective: Objective, tolerance: float = 1e-10) -> Tensor:
    """The distribution [..., V] (float64) at which a tabular model trained on data from q [..., V] stands still.

    With lambdas the head K is that of the solution itself: it is found by repeating until it no longer changes.
    Raises `ValueError` for a q that is not a distribution, and `ArithmeticError` where no fixed point is found to
    `tolerance` (largest expected gradient of a logit).
    """
    q = q.double()
    if bool((q < 0).any()) or bool(((q.sum(-1) - 1).abs() > 1e-6).any()):
        raise ValueError("q: it must be 0 or more everywhere and sum to 1 over the last dimension")
    rows = (q / q.sum(-1, keepdim=True)).reshape(-1, q.shape[-1])
    p = rows
    for _ in range(STEPS):
        lam = _lambdas(p, objective)
        p = _solve(rows, lam, objective.beta)
        if torch.equal(lam, _lambdas(p, objective)):
            break
    left_over = expected_gradient(p, rows, objective).abs().amax()
    if not left_over <= tolerance:
        raise ArithmeticError(
            f"no fixed point was found for {objective!r}: a gradient of {float(left_over):.1e} is left"
        )
    return p.view_as(q)


def expected_gradient(p: Tensor, q: Tensor, objective: Objective) -> Tensor:
    """Expected gradient [N, V] with respect to the logits of a model at p [N, V], over targets from q [N, V]."""
    lam = _lambdas(p, objective)
    top = p.argmax(-1, keepdim=True)
    rest = p.scatter(-1, top, 0.0).sum(-1, keepdim=True)  # 1 - p of the likeliest, exact also where p is near 1
    w = (1 - p).scatter(-1, top, rest) ** objective.beta
    c = (p * lam).sum(-1, keepdim=True) - p * lam
    level = (q * (c + w)).sum(-1, keepdim=True)
    return p * (level - (1 - q) * lam) - q * w


def _lambdas(p: Tensor, objective: Objective) -> Tensor:
    """The lambda of each token, [N, V]."""
    return torch.full_like(p, objective.lam_tail).masked_fill_(head_mask(p, objective.top_k), objective.lam_head)


def _solve(q: Tensor, lam: Tensor, beta: float) -> Tensor:
    """p [N, V] for fixed lambdas [N, V].

    For a given A every token but the likeliest lies below 1/2, where p (1 - p)^-beta rises with p, so that its
    equation has one root; the likeliest takes what the others leave. Then A is found by halving an interval.
    """
    top = q.argmax(-1, keepdim=True)
    others = torch.ones_like(q, dtype=torch.bool).scatter_(-1, top, False)
    low = torch.where(q > 0, (1 - q) * lam, -torch.inf).amax(-1, keepdim=True)
    span = torch.full_like(low, 50.0)
    # In u = log(A - low): the others' mass falls as u rises, and the likeliest token's equation changes sign once.
    left, right = -span, span.clone()
    for _ in range(STEPS):
        middle = (left + right) / 2
        p = _others(q, lam, beta, low + middle.exp()) * others
        rest = p.sum(-1, keepdim=True)
        p_top = (1 - rest).clamp(min=0)
        q_top, lam_top = q.gather(-1, top), lam.gather(-1, top)
        bracket = low + middle.exp() - (1 - q_top) * lam_top
        too_small = p_top * bracket < q_top * rest.clamp(min=1e-300) ** beta
        left, right = torch.where(too_small, middle, left), torch.where(too_small, right, middle)
    return p.scatter(-1, top, p_top)


def _others(q: Tensor, lam: Tensor, beta: float, level: Tensor) -> Tensor:
    """Roots p [N, V] in [0, 1/2] of p (level - (1 - q) lam) = q (1 - p)^beta; 1/2 where there is none."""
    bracket = (level - (1 - q) * lam).clamp(min=1e-300)
    left, right = torch.zeros_like(q), torch.full_like(q, 0.5)
    for _ in range(60):
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
