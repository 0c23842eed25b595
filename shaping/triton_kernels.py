"""The objective on rows of logits as two Triton kernels: the `triton` backend, for CUDA.

It offers what `shaping.closed_form` offers, with the same formulas; one program works on one row. The k-th largest
logit is found without sorting: as an unsigned number whose order is that of the floats, its digits are settled four
bits at a time, from the top, by counting how many logits reach each of the sixteen candidates. With TRITON_INTERPRET=1
in the environment before Triton is first imported, both run on the CPU.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from shaping.objective import Objective

BLOCK = 4096
WARPS = 16
DIGIT = 4
"""Bits of the k-th largest logit that one walk through the row settles."""

SIGNIFICANT = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}
"""How many of the upper bits of a logit's float32 form tell it apart, in whole digits."""


def state(logits: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Room for what the gradient needs of the forward pass over logits [N, V]: [N, 3] for the log-sum-exp, w and c + w,
    and [N, 2] for the k-th largest logit and how many of those that equal it are in the head; float32."""
    count = len(logits)
    return logits.new_empty(count, 3, dtype=torch.float32), logits.new_empty(count, 2, dtype=torch.float32)


def forward(
    logits: Tensor,
    targets: Tensor,
    objective: Objective,
    floor: float,
    losses: Tensor,
    state: Tensor,
    head: Tensor,
    statistics: Tensor,
) -> None:
    """Fill `losses` [N], `state` and `head`, and `statistics` [N, 5] (the fields of TokenStatistics) unless that is
    empty, for logits [N, V] and targets [N] int64 in 0..V-1."""
    logits = logits.contiguous()
    vocabulary = logits.shape[1]
    block = min(BLOCK, triton.next_power_of_2(vocabulary))
    with torch.cuda.device_of(logits):
        _forward[(len(logits),)](
            logits,
            targets,
            losses,
            state,
            head,
            statistics,
            vocabulary,
            min(objective.top_k, vocabulary),
            objective.beta,
            objective.lam_head,
            objective.lam_tail,
            floor,
            HEAD=_tells_head(objective, vocabulary),
            STATISTICS=len(statistics) > 0,
            SIGNIFICANT=SIGNIFICANT[logits.dtype],
            DIGIT=DIGIT,
            BLOCK=block,
            COUNTED=max(1, block // 4),
            num_warps=WARPS,
        )


def backward(
    logits: Tensor, targets: Tensor, objective: Objective, state: Tensor, head: Tensor, scale: Tensor, out: Tensor
) -> None:
    """Write the gradient of sum(scale * losses) to `out` [N, V], for scale [N]; `out` may be `logits` itself."""
    logits = logits.contiguous()
    vocabulary = logits.shape[1]
    with torch.cuda.device_of(logits):
        _backward[(len(logits),)](
            logits,
            targets,
            state,
            head,
            scale,
            out,
            vocabulary,
            objective.lam_head,
            objective.lam_tail,
            HEAD=_tells_head(objective, vocabulary),
            BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)),
            num_warps=WARPS,
        )


def _tells_head(objective: Objective, vocabulary: int) -> bool:
    return objective.uses_head and objective.top_k < vocabulary


@triton.jit
def _forward(
    logits,
    targets,
    losses,
    state,
    head,
    statistics,
    vocabulary,
    top_k,
    beta,
    lam_head,
    lam_tail,
    floor,
    HEAD: tl.constexpr,
    STATISTICS: tl.constexpr,
    SIGNIFICANT: tl.constexpr,
    DIGIT: tl.constexpr,
    BLOCK: tl.constexpr,
    COUNTED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    target = tl.load(targets + row)
    own = tl.load(logits + target).to(tl.float32)
    lanes = tl.arange(0, BLOCK)

    # Sums over the other tokens of exp(x - largest), and of that times x - largest, rescaled as `largest` grows.
    # Leaving the target out gives 1 - p without a difference.
    largest = own * 0 - 3.0e38
    others = own * 0
    weighted = own * 0
    before = target * 0
    for start in range(0, vocabulary, BLOCK):
        ids = start + lanes
        x = tl.load(logits + ids, mask=ids < vocabulary, other=-float("inf")).to(tl.float32)
        grown = tl.maximum(largest, tl.max(x, 0))
        factor = tl.exp(largest - grown)
        e = tl.where(ids == target, 0.0, tl.exp(x - grown))
        if STATISTICS:
            weighted = (weighted + others * (largest - grown)) * factor + tl.sum(
                tl.where(e > 0, e * (x - grown), 0.0), 0
            )
            before += tl.sum(((x > own) | ((x == own) & (ids < target))).to(tl.int64), 0)
        others = others * factor + tl.sum(e, 0)
        largest = grown
    at_target = tl.exp(own - largest)
    total = others + at_target
    normaliser = largest + tl.log(total)
    log_p = own - normaliser
    missing = others / total
    w = tl.exp(beta * tl.log(tl.maximum(missing, floor)))

    c = lam_head * missing
    if HEAD or STATISTICS:
        # the k-th largest, digit by digit
        kth = tl.full((), 0, tl.uint32)
        digits = tl.arange(0, 1 << DIGIT).to(tl.uint32)
        few = tl.arange(0, COUNTED)
        for step in tl.static_range(SIGNIFICANT // DIGIT):
            shift = 32 - DIGIT * (step + 1)
            candidates = kth + (digits << shift)
            reached = tl.zeros((1 << DIGIT,), tl.int32)
            for start in range(0, vocabulary, COUNTED):
                ids = start + few
                x = tl.load(logits + ids, mask=ids < vocabulary, other=-float("inf")).to(tl.float32)
                bits = tl.where(x == 0, 0.0, x).to(tl.uint32, bitcast=True)  # -0 equals 0
                key = tl.where(bits >> 31 == 1, ~bits, bits | 0x80000000)
                reached += tl.sum((key[:, None] >= candidates[None, :]).to(tl.int32), 0)
            digit = tl.sum((reached >= top_k).to(tl.int32), 0) - 1
            kth += digit.to(tl.uint32) << shift
        bits = tl.where(kth >> 31 == 1, kth & 0x7FFFFFFF, ~kth) & ((0xFFFFFFFF << (32 - SIGNIFICANT)) & 0xFFFFFFFF)
        threshold = bits.to(tl.float32, bitcast=True)

        above = own * 0
        mass = own * 0
        tied_before = own * 0
        for start in range(0, vocabulary, BLOCK):
            ids = start + lanes
            x = tl.load(logits + ids, mask=ids < vocabulary, other=-float("inf")).to(tl.float32)
            over = x > threshold
            above += tl.sum(over.to(tl.float32), 0)
            mass += tl.sum(tl.where(over & (ids != target), tl.exp(x - normaliser), 0.0), 0)
            tied_before += tl.sum(((x == threshold) & (ids < target)).to(tl.float32), 0)
        room = top_k - above
        own_tied = (own == threshold) & (tied_before < room)
        mass += (room - tl.where(own_tied, 1.0, 0.0)) * tl.exp(threshold - normaliser)
        tl.store(head + 2 * row, threshold)
        tl.store(head + 2 * row + 1, room)
        if HEAD:
            c = lam_head * mass + lam_tail * tl.maximum(missing - mass, 0.0)
        if STATISTICS:
            p = at_target / total
            head_mass = tl.minimum(mass + tl.where((own > threshold) | own_tied, p, 0.0), 1.0)
            weighted += at_target * (own - largest)
            tl.store(statistics + 5 * row, tl.log(total) - weighted / total)
            tl.store(statistics + 5 * row + 1, head_mass)
            tl.store(statistics + 5 * row + 2, 1.0 - head_mass)
            tl.store(statistics + 5 * row + 3, p)
            tl.store(statistics + 5 * row + 4, (before + 1).to(tl.float32))
    tl.store(losses + row, -(w * log_p + c))
    tl.store(state + 3 * row, normaliser)
    tl.store(state + 3 * row + 1, w)
    tl.store(state + 3 * row + 2, c + w)


@triton.jit
def _backward(
    logits,
    targets,
    state,
    head,
    scale,
    out,
    vocabulary,
    lam_head,
    lam_tail,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    out += row * vocabulary
    target = tl.load(targets + row)
    factor = tl.load(scale + row)
    normaliser = tl.load(state + 3 * row)
    w = tl.load(state + 3 * row + 1)
    level = tl.load(state + 3 * row + 2)
    seen = factor * 0
    if HEAD:
        threshold = tl.load(head + 2 * row)
        room = tl.load(head + 2 * row + 1)
    for start in range(0, vocabulary, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        inside = ids < vocabulary
        x = tl.load(logits + ids, mask=inside, other=-float("inf")).to(tl.float32)
        probs = tl.exp(x - normaliser)
        if HEAD:
            tied = ((x == threshold) & inside).to(tl.float32)
            members = (x > threshold) | ((tied > 0) & (seen + tl.cumsum(tied, 0) <= room))  # ties: lower ids first
            seen += tl.sum(tied, 0)
            lam = tl.where(members, lam_head, lam_tail)
        else:
            lam = lam_head
        gradient = tl.where(ids == target, probs * level - w, probs * (level - lam))
        tl.store(out + ids, (gradient * factor).to(out.dtype.element_ty), mask=inside)
