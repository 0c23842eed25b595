"""The objective on rows of logits as two Triton kernels: the `triton` backend, for CUDA.

It has the functions of `shaping.closed_form`, with the same formulas; one program processes one row. The k-th largest
logit is found without sorting: logits become unsigned numbers in the same order, and its bits are determined four at a
time, from the highest, by counting how many logits reach each of the sixteen candidates. With TRITON_INTERPRET=1 in the
environment before Triton is first imported, both kernels run on the CPU.
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
"""Bits of the k-th largest logit that one pass over the row determines."""

SIGNIFICANT = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}
"""How many of the upper bits of a logit's float32 form can differ from zero, rounded up to whole digits."""


def state(logits: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Unfilled float32 tensors for what the gradient needs of the forward pass over logits [N, V].

    The state [N, 3] is for the log-sum-exp, w and c + w; the head [N, 2] for the k-th largest logit and the number of
    logits equal to it that are in the head.
    """
    count = len(logits)
    return logits.new_empty(count, 3, dtype=torch.float32), logits.new_empty(count, 2, dtype=torch.float32)


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
            HEAD=_separates_head(objective, vocabulary),
            STATISTICS=len(statistics) > 0,
            SIGNIFICANT=SIGNIFICANT[logits.dtype],
            DIGIT=DIGIT,
            BLOCK=block,
            COUNTED=max(1, block // 4),
            num_warps=WARPS,
        )


def backward(
    logits: Tensor, targets: Tensor, objective: Objective, *, state: Tensor, head: Tensor, scale: Tensor, out: Tensor
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
            HEAD=_separates_head(objective, vocabulary),
            BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)),
            num_warps=WARPS,
        )


def _separates_head(objective: Objective, vocabulary: int) -> bool:
    """Whether head and tail tokens have different lambdas and neither group is empty."""
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
    # A target outside the vocabulary has a logit of NaN, and so a loss of NaN: nothing beyond the row is read.
    target_logit = tl.load(logits + target, (target >= 0) & (target < vocabulary), float("nan")).to(tl.float32)

    # The true token's log-probability and weight. 1 - p is a sum over the other tokens, exact also where p is near 1.
    largest, others, weighted, before_target = _sums_over_others(
        logits, target, target_logit, vocabulary, STATISTICS, BLOCK
    )
    at_target = tl.exp(target_logit - largest)
    total = others + at_target
    normaliser = largest + tl.log(total)
    log_p = target_logit - normaliser
    wrong_mass = others / total
    w = tl.exp(beta * tl.log(tl.maximum(wrong_mass, floor)))

    # The wrong tokens: their reward, and the mass of the head.
    c = lam_head * wrong_mass
    if HEAD or STATISTICS:
        threshold = _kth_largest(logits, vocabulary, top_k, SIGNIFICANT, DIGIT, COUNTED)
        wrong_head_mass, places, target_in_head = _head_mass(
            logits, target, target_logit, vocabulary, top_k, threshold, normaliser, BLOCK
        )
        tl.store(head + 2 * row, threshold)
        tl.store(head + 2 * row + 1, places)
        if HEAD:
            c = lam_head * wrong_head_mass + lam_tail * tl.maximum(wrong_mass - wrong_head_mass, 0.0)
        if STATISTICS:
            head_mass = tl.minimum(wrong_head_mass + tl.where(target_in_head, at_target / total, 0.0), 1.0)
            weighted += at_target * (target_logit - largest)
            tl.store(statistics + 5 * row, tl.log(total) - weighted / total)
            tl.store(statistics + 5 * row + 1, head_mass)
            tl.store(statistics + 5 * row + 2, 1.0 - head_mass)
            tl.store(statistics + 5 * row + 3, log_p)
            tl.store(statistics + 5 * row + 4, (before_target + 1).to(tl.float32))
    tl.store(losses + row, -(w * log_p + c))
    tl.store(state + 3 * row, normaliser)
    tl.store(state + 3 * row + 1, w)
    tl.store(state + 3 * row + 2, c + w)


@triton.jit
def _sums_over_others(logits, target, target_logit, vocabulary, STATISTICS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest logit, and sums over all tokens but the target of exp(x - largest) and of that times x - largest.

    The sums are rescaled whenever `largest` grows. Also the number of tokens ranked before the target. The last two are
    0 without STATISTICS.
    """
    lanes = tl.arange(0, BLOCK)
    largest = target_logit * 0 - 3.0e38
    others = target_logit * 0
    weighted = target_logit * 0
    before_target = target * 0
    for start in range(0, vocabulary, BLOCK):
        ids = start + lanes
        x = tl.load(logits + ids, mask=ids < vocabulary, other=-float("inf")).to(tl.float32)
        # Rescale the earlier sums to the new maximum, then add this block without the target.
        grown = tl.maximum(largest, tl.max(x, 0))
        factor = tl.exp(largest - grown)
        e = tl.where(ids == target, 0.0, tl.exp(x - grown))
        if STATISTICS:
            weighted = (weighted + others * (largest - grown)) * factor + tl.sum(
                tl.where(e > 0, e * (x - grown), 0.0), 0
            )
            is_before = (x > target_logit) | ((x == target_logit) & (ids < target))
            before_target += tl.sum(is_before.to(tl.int64), 0)
        others = others * factor + tl.sum(e, 0)
        largest = grown
    return largest, others, weighted, before_target


@triton.jit
def _kth_largest(logits, vocabulary, top_k, SIGNIFICANT: tl.constexpr, DIGIT: tl.constexpr, COUNTED: tl.constexpr):
    """The `top_k`-th largest logit of a row, digit by digit."""
    kth = tl.full((), 0, tl.uint32)
    digits = tl.arange(0, 1 << DIGIT).to(tl.uint32)
    lanes = tl.arange(0, COUNTED)
    for step in tl.static_range(SIGNIFICANT // DIGIT):
        shift = 32 - DIGIT * (step + 1)
        candidates = kth + (digits << shift)
        reached = tl.zeros((1 << DIGIT,), tl.int32)
        for start in range(0, vocabulary, COUNTED):
            ids = start + lanes
            x = tl.load(logits + ids, mask=ids < vocabulary, other=-float("inf")).to(tl.float32)
            # An unsigned number in the order of the floats: negative ones inverted, others above them.
            bits = tl.where(x == 0, 0.0, x).to(tl.uint32, bitcast=True)  # -0 equals 0
            # `^ 0xFFFFFFFF` inverts; the interpreter of Triton 3.7 cannot apply ~ to unsigned numbers.
            key = tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)
            reached += tl.sum((key[:, None] >= candidates[None, :]).to(tl.int32), 0)
        # The largest candidate that at least top_k logits reach.
        digit = tl.sum((reached >= top_k).to(tl.int32), 0) - 1
        kth += digit.to(tl.uint32) << shift
    bits = tl.where(kth >> 31 == 1, kth & 0x7FFFFFFF, kth ^ 0xFFFFFFFF)
    bits &= (0xFFFFFFFF << (32 - SIGNIFICANT)) & 0xFFFFFFFF  # the digits that were not counted
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _head_mass(logits, target, target_logit, vocabulary, top_k, threshold, normaliser, BLOCK: tl.constexpr):
    """The probability of the head without the target, the head's places for logits equal to the threshold, and whether
    the target is in the head. Ties are in the order of ids."""
    lanes = tl.arange(0, BLOCK)
    above = target_logit * 0
    mass = target_logit * 0
    tied_before = target_logit * 0
    for start in range(0, vocabulary, BLOCK):
        ids = start + lanes
        x = tl.load(logits + ids, mask=ids < vocabulary, other=-float("inf")).to(tl.float32)
        over = x > threshold
        above += tl.sum(over.to(tl.float32), 0)
        mass += tl.sum(tl.where(over & (ids != target), tl.exp(x - normaliser), 0.0), 0)
        tied_before += tl.sum(((x == threshold) & (ids < target)).to(tl.float32), 0)
    places = top_k - above
    target_tied = (target_logit == threshold) & (tied_before < places)
    mass += (places - tl.where(target_tied, 1.0, 0.0)) * tl.exp(threshold - normaliser)
    return mass, places, (target_logit > threshold) | target_tied


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
    tied_before = factor * 0
    if HEAD:
        threshold = tl.load(head + 2 * row)
        places = tl.load(head + 2 * row + 1)
    for start in range(0, vocabulary, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        inside = ids < vocabulary
        x = tl.load(logits + ids, mask=inside, other=-float("inf")).to(tl.float32)
        probs = tl.exp(x - normaliser)
        if HEAD:
            tied = ((x == threshold) & inside).to(tl.float32)
            # Logits equal to the threshold take the head's last places in the order of ids.
            in_head = (x > threshold) | ((tied > 0) & (tied_before + tl.cumsum(tied, 0) <= places))
            tied_before += tl.sum(tied, 0)
            lam = tl.where(in_head, lam_head, lam_tail)
        else:
            lam = lam_head
        gradient = tl.where(ids == target, probs * level - w, probs * (level - lam))
        tl.store(out + ids, (gradient * factor).to(out.dtype.element_ty), mask=inside)
