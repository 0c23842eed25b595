"""The objective on rows of logits in plain PyTorch: the losses, what their gradient needs, and the gradient.

This is the `torch` backend; `shaping.triton_kernels` is the other. Both have the functions `state`, `forward` and
`backward` with the same arguments, and both keep nothing of size [N, V]. With p the probability of the true token x, H
and T the mass of the other head and tail tokens, and sg the stop-gradient,

    loss = -[ sg((1 - p)^beta) log p + lam_head H + lam_tail T ]

and, with w = (1 - p)^beta, c = lam_head H + lam_tail T, and lam_j the lambda of token j,

    d loss / d z_j = pi_j (c + w - lam_j)    for j != x,        d loss / d z_x = p (c + w) - w.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from shaping.objective import Objective
from shaping.statistics import head_ids, to_working_type

BLOCK_BYTES = 2**20
"""On a CPU, rows are processed in blocks of this size, so that every step finds them in the cache; on a GPU at once."""


def state(logits: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Unfilled tensors for what the gradient needs of the forward pass over logits [N, V].

    The state [N, 3] is for log p, w and c + w, in float32 or better. The head [N, k] is int32 for the head's ids, with
    k = 0 where head and tail have the same lambda or every token is in the head.
    """
    count, vocabulary = logits.shape
    width = objective.top_k if objective.uses_head and objective.top_k < vocabulary else 0
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty(count, 3, dtype=dtype), logits.new_empty(count, width, dtype=torch.int32)


def forward(
    logits: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    floor: float,
    losses: Tensor,
    state: Tensor,
    head: Tensor,
    statistics: Tensor,
) -> None:
    """Fill `losses` [N], `state`, `head` and, unless it is empty, `statistics` [N, 5]: entropy, head and tail
    mass, and the target's log-probability and rank.

    For logits [N, V] and targets [N] int64 in 0..V-1.
    """
    for rows in _blocks(logits):
        scores = to_working_type(logits[rows])
        target_ids = targets[rows, None]

        # The weight of the true token, [n, 1].
        log_probs = scores.log_softmax(-1)
        log_p = log_probs.gather(-1, target_ids)
        wrong_mass = -torch.expm1(log_p)  # 1 - p, exact also where p is near 1
        w = wrong_mass.clamp(min=floor) ** objective.beta

        # The reward of the wrong tokens, [n, 1].
        if head.shape[-1] or len(statistics):
            ids = head_ids(scores, objective.top_k)
            head_probs = log_probs.gather(-1, ids).exp_()
        if head.shape[-1]:
            wrong_head_mass = head_probs.masked_fill(ids == target_ids, 0.0).sum(-1, keepdim=True)
            wrong_tail_mass = (wrong_mass - wrong_head_mass).clamp(min=0)
            c = objective.lam_head * wrong_head_mass + objective.lam_tail * wrong_tail_mass
            head[rows] = ids
        else:
            c = objective.lam_head * wrong_mass

        losses[rows] = -(w * log_p + c)[:, 0]
        state[rows] = torch.cat([log_p, w, c + w], -1)
        # Last, because it overwrites the log-probabilities.
        if len(statistics):
            head_mass = head_probs.sum(-1, keepdim=True).clamp(max=1)
            entropy, rank = _entropy_and_rank(scores, log_probs, target_ids)
            statistics[rows] = torch.cat([entropy, head_mass, 1 - head_mass, log_p, rank], -1)


def backward(
    logits: Tensor, targets: Tensor, objective: Objective, *, state: Tensor, head: Tensor, scale: Tensor, out: Tensor
) -> None:
    """Write the gradient of sum(scale * losses) to `out` [N, V], for scale [N]; `out` may be `logits` itself."""
    # Every token first gets the gradient of a wrong token outside `head`; an empty head means one lambda for all.
    lam_outside = objective.lam_tail if head.shape[-1] else objective.lam_head
    for rows in _blocks(logits):
        log_p, w, level = state[rows].split(1, -1)
        factor = scale[rows, None]
        gradient = out[rows]
        probs = logits[rows].softmax(-1, dtype=state.dtype)
        torch.mul(probs, (level - lam_outside) * factor, out=gradient)
        # Then those of the head and of the true token are overwritten.
        if head.shape[-1]:
            ids = head[rows].long()
            gradient.scatter_(-1, ids, (probs.gather(-1, ids) * ((level - objective.lam_head) * factor)).to(out.dtype))
        gradient.scatter_(-1, targets[rows, None], ((log_p.exp() * level - w) * factor).to(out.dtype))


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of rows to process together."""
    count, vocabulary = logits.shape
    step = max(1, BLOCK_BYTES // (4 * vocabulary)) if logits.device.type == "cpu" else max(1, count)
    for start in range(0, count, step):
        yield slice(start, start + step)


def _entropy_and_rank(scores: Tensor, log_probs: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy and the target's rank, [N, 1] each; overwrites `log_probs`.

    The same as in `shaping.statistics`, but comparisons write floats to one buffer: boolean masks are slow to sum.
    """
    # The sum of p log p, where log_probs becomes the product and the buffer is free again afterwards.
    buffer = log_probs.exp()
    entropy = -log_probs.mul_(buffer).sum(-1, keepdim=True)
    if bool(entropy.isnan().any()):  # a token with logit -inf gives 0 * -inf
        entropy = -log_probs.masked_fill_(buffer == 0, 0.0).sum(-1, keepdim=True)
    target_scores = scores.gather(-1, target_ids)
    rank = torch.gt(scores, target_scores, out=buffer).sum(-1, keepdim=True) + 1
    # Where other tokens have the target's score, those with lower ids come first.
    tied = (torch.ge(scores, target_scores, out=buffer).sum(-1, keepdim=True) > rank)[:, 0]
    if bool(tied.any()):
        ids = torch.arange(scores.shape[-1], device=scores.device)
        rank[tied] += ((scores[tied] == target_scores[tied]) & (ids < target_ids[tied])).sum(-1, keepdim=True)
    return entropy, rank
