"""What the objective converges to: the distribution a tabular model reaches, and beta as a temperature.

Setting the expected gradient over targets x ~ q to zero gives, for every token j,

    p_j (A - (1 - q_j) lam_j) = q_j (1 - p_j)^beta,        A = sum_x q_x (c_x + w_x),

where A is the one number for which p sums to 1. For lambda = 0 that is p_j proportional to q_j (1 - p_j)^beta.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from shaping.objective import Objective
from shaping.statistics import head_mask

STEPS = 64
"""Bisections of an interval of length 100 or less: its final length is below float64's resolution."""

INNER_STEPS = 25
"""Bisections before Newton's steps, each of which doubles the number of correct digits."""


def stationary_distribution(q: Tensor, objective: Objective, tolerance: float = 1e-10) -> Tensor:
    """The distribution [..., V] (float64) to which a tabular model trained on data from q [..., V] converges.

    With lam_head >= lam_tail the head is that of q, since p has q's order. With lam_head < lam_tail a token that enters
    the head is pushed out of it again, so at the fixed point several tokens share one probability at the k-th place.
    Each is in the head for a share of the time; the shares add up to k. Gradient descent oscillates about that point.
    Where a wrong token may earn more than the true one (a lambda of 2^(1 - beta) or more), p can have another order;
    such a fixed point is not looked for.

    Raises `ValueError` for a q that is not a distribution, and `ArithmeticError` where no fixed point is found to
    `tolerance`: the largest expected gradient of a logit, relative to the largest reward q (1 - p)^beta if that is
    above 1.
    """
    q = q.double()
    if bool((q < 0).any()) or bool(((q.sum(-1) - 1).abs() > 1e-6).any()):
        raise ValueError("q: it must be 0 or more everywhere and sum to 1 over the last dimension")
    rows = (q / q.sum(-1, keepdim=True)).reshape(-1, q.shape[-1])
    p, lam = _solve(rows, objective)
    residual = _gradient(p, rows, lam, beta=objective.beta).abs().amax()
    largest = (rows * (1 - p).clamp(min=1e-300) ** objective.beta).amax()
    if not residual <= tolerance * largest.clamp(min=1):
        raise ArithmeticError(
            f"no fixed point was found for {objective!r}: the gradient there is {float(residual):.1e}"
        )
    return p.view_as(q)


def expected_gradient(p: Tensor, q: Tensor, objective: Objective) -> Tensor:
    """Expected gradient [N, V] with respect to the logits of a model at p [N, V], over targets from q [N, V]."""
    return _gradient(p, q, _lambdas(p, objective), beta=objective.beta)


def _gradient(p: Tensor, q: Tensor, lam: Tensor, *, beta: float) -> Tensor:
    # 1 - p of the likeliest token is a sum over the others: exact also where p is near 1.
    top = p.argmax(-1, keepdim=True)
    others_mass = p.scatter(-1, top, 0.0).sum(-1, keepdim=True)
    w = (1 - p).scatter(-1, top, others_mass) ** beta
    # For each token as the target: the lambdas of all other tokens, weighted by p.
    c = (p * lam).sum(-1, keepdim=True) - p * lam
    level = (q * (c + w)).sum(-1, keepdim=True)
    return p * (level - (1 - q) * lam) - q * w


def _lambdas(p: Tensor, objective: Objective) -> Tensor:
    """The lambda of each token, [N, V]."""
    return torch.full_like(p, objective.lam_tail).masked_fill_(head_mask(p, objective.top_k), objective.lam_head)


def _solve(q: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """The fixed point p and its lambdas, [N, V] each.

    For a given A every token but the likeliest is below 1/2, where p (1 - p)^-beta increases with p, so its equation
    has one root; the likeliest gets the remaining probability. A is found by bisection.
    """
    fixed = _lambdas(q, objective)
    shared = objective.lam_head < objective.lam_tail and objective.top_k < q.shape[-1]
    top = q.argmax(-1, keepdim=True)
    is_other = torch.ones_like(q, dtype=torch.bool).scatter_(-1, top, False)
    # The lower bound of A, for which the left side of the equation is positive for every token.
    least = torch.full_like(q, objective.lam_head) if shared else fixed
    low = torch.where(q > 0, (1 - q) * least, -torch.inf).amax(-1, keepdim=True)
    # Bisection over u = log(A - low): the others' mass falls with u, and the likeliest's equation changes sign once.
    left, right = torch.full_like(low, -50.0), torch.full_like(low, 50.0)
    for _ in range(STEPS):
        middle = (left + right) / 2
        level = low + middle.exp()
        lam = _shared_lambdas(q, objective, level) if shared else fixed
        p = _roots_below_half(q, lam, level, beta=objective.beta) * is_other
        others_mass = p.sum(-1, keepdim=True)
        p_top = (1 - others_mass).clamp(min=0)
        bracket = level - (1 - q.gather(-1, top)) * lam.gather(-1, top)
        too_small = p_top * bracket < q.gather(-1, top) * others_mass.clamp(min=1e-300) ** objective.beta
        left, right = torch.where(too_small, middle, left), torch.where(too_small, right, middle)
    return p.scatter(-1, top, p_top), lam


def _shared_lambdas(q: Tensor, objective: Objective, level: Tensor) -> Tensor:
    """Lambdas [N, V] for lam_head < lam_tail at a given A [N, 1]: between the two for tokens that share the k-th place.

    Such tokens have one probability t. The lambda that solves a token's equation at t gives its share of time in the
    head. The shares fall as t rises; t is the probability at which they add up to k.
    """
    span = objective.lam_tail - objective.lam_head
    # Of log t. Tokens that share a place are at most 1/2; beyond it the share of one with beta < 0 rises again.
    left, right = torch.full_like(level, -100.0), torch.full_like(level, math.log(0.5))
    for _ in range(STEPS):
        middle = (left + right) / 2
        t = middle.exp()
        lam = (level - q * (1 - t).clamp(min=1e-300) ** objective.beta / t) / (1 - q).clamp(min=1e-300)
        share = ((objective.lam_tail - lam) / span).clamp(0, 1)
        too_many = share.sum(-1, keepdim=True) > objective.top_k
        left, right = torch.where(too_many, middle, left), torch.where(too_many, right, middle)
    return objective.lam_tail - span * share


def _roots_below_half(q: Tensor, lam: Tensor, level: Tensor, *, beta: float) -> Tensor:
    """Roots p [N, V] in [0, 1/2] of p (level - (1 - q) lam) = q (1 - p)^beta; 1/2 where there is none."""
    bracket = (level - (1 - q) * lam).clamp(min=1e-300)
    left, right = torch.zeros_like(q), torch.full_like(q, 0.5)
    for _ in range(INNER_STEPS):
        middle = (left + right) / 2
        too_small = middle * bracket < q * (1 - middle) ** beta
        left, right = torch.where(too_small, middle, left), torch.where(too_small, right, middle)
    p = (left + right) / 2
    for _ in range(3):  # Newton's steps bring small probabilities to full relative precision
        f = p * bracket - q * (1 - p) ** beta
        derivative = bracket + beta * q * (1 - p) ** (beta - 1)
        p = (p - f / derivative).clamp(0, 0.5)
    return p


class EffectiveTemperature(NamedTuple):
    """The temperature [...] at which the reference has the shaped distribution's entropy, and the KL divergence [...]
    in nats of the shaped distribution from the reference at that temperature."""

    temperature: Tensor
    divergence: Tensor


def effective_temperature(reference: Tensor, shaped: Tensor) -> EffectiveTemperature:
    """How much of the change from `reference` to `shaped` (distributions [..., V]) a sampling temperature explains.

    The reference is what cross-entropy converges to (the data distribution q, for a tabular model), the other what a
    shaped objective converges to. Entropy increases with temperature, so the temperature is found by bisection between
    1e-3 and 1e3. Raises `ValueError` if no temperature in that range gives the entropy.
    """
    log_q = reference.double().log()
    shaped = shaped.double()
    target_entropy = torch.special.entr(shaped).sum(-1, keepdim=True)

    def tempered(log_temperature: Tensor) -> Tensor:
        return (log_q / log_temperature.exp()).softmax(-1)

    def entropy(log_temperature: Tensor) -> Tensor:
        return torch.special.entr(tempered(log_temperature)).sum(-1, keepdim=True)

    # Bisection over the log of the temperature, which must be in this range.
    left, right = torch.full_like(target_entropy, -6.9), torch.full_like(target_entropy, 6.9)
    if bool((entropy(left) > target_entropy + 1e-9).any()) or bool((entropy(right) < target_entropy - 1e-9).any()):
        raise ValueError("shaped: no temperature between 1e-3 and 1e3 gives the reference its entropy")
    for _ in range(STEPS):
        middle = (left + right) / 2
        too_cold = entropy(middle) < target_entropy
        left, right = torch.where(too_cold, middle, left), torch.where(too_cold, right, middle)
    # What the temperature does not explain: KL(shaped || matched).
    matched = tempered((left + right) / 2)
    divergence = torch.special.xlogy(shaped, shaped) - torch.special.xlogy(shaped, matched)
    return EffectiveTemperature(((left + right) / 2).exp()[..., 0], divergence.sum(-1))
