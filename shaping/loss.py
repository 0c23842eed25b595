"""The objective in its exact form, for logits and for hidden states with the output matrix.

The expectation of Eq. 5 runs over the vocabulary, so it is a sum and needs no sampling; `shaping.closed_form` has the
formulas. `shaped_cross_entropy` replaces `F.cross_entropy`. `linear_shaped_cross_entropy` replaces the output layer
too: logits exist for one chunk of rows at a time, and the chunk's gradients are taken while its logits exist, so that
nothing is computed twice and no tensor of size [N, V] is held. `shaping.loss_operators` has the passes over the rows.
"""

import os
from importlib.util import find_spec
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from shaping.loss_operators import LossOfHiddenStates, LossOfLogits, LossSettings
from shaping.objective import Objective, check_objective
from shaping.statistics import TokenStatistics

FLOOR = 1e-6
"""Least value of 1 - p in (1 - p)^beta: with beta < 0 the weight would grow without bound as p -> 1. The paper states
none; this value is ours. At beta = -0.25 it caps the weight at 31.6."""

CHUNK_BYTES = 2**25
"""The default memory for the logits of one chunk, 32 MiB, at 4 bytes per logit."""

LEAST_ROWS = 64
"""The smallest default chunk: every chunk reads the whole weight and adds to its whole gradient."""


def default_chunk(vocabulary: int, width: int) -> int:
    """Rows of hidden states [N, width] that have logits at a time: those of 32 MiB, or half as many as the width.

    Each chunk reads and writes the float32 gradient of the weight, 4 V D bytes, so N rows in chunks of R move
    8 V D N / R bytes. With R = D / 2 the chunk's logits take at most half the memory of that gradient, which exists
    anyway, and the traffic is 16 V N bytes, whatever the width.
    """
    return max(LEAST_ROWS, CHUNK_BYTES // (4 * vocabulary), width // 2)


Reduction = Literal["mean", "sum", "none"]
Backend = Literal["auto", "torch", "triton"]


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
    backend: Backend = ...,
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
    backend: Backend = ...,
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
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, TokenStatistics]:
    """The objective's loss for logits [N, V] or [B, T, V] (any float type) and integer targets [N] or [B, T].

    Targets equal to `ignore_index` are ignored. `weight` [N] or [B, T] multiplies each token's loss, and the mean is
    then the weighted mean. `reduction="none"` returns the losses in the targets' shape. The loss has the logits' type,
    or float32 under autocast; sums are taken in float32 or better. At beta = lambda = 0 it equals `F.cross_entropy`
    bit for bit. `return_stats` also returns `TokenStatistics` in the targets' shape, without gradient. `floor` is the
    least 1 - p in (1 - p)^beta. `backend="auto"` uses Triton on CUDA and PyTorch elsewhere.

    Raises `ValueError` for shapes, types, targets or a `top_k` that do not fit, and `RuntimeError` when a second
    derivative is requested.
    """
    _check(logits, targets, objective, name="logits", ignore_index=ignore_index)
    _check_reduction(reduction)
    vocabulary = logits.shape[-1]
    if weight is not None and weight.shape != targets.shape:
        raise ValueError(f"weight {list(weight.shape)}: its shape must be that of targets, {list(targets.shape)}")
    shape = targets.shape
    logits, targets = logits.reshape(-1, vocabulary), targets.reshape(-1).long()
    # Plain cross-entropy without weight is PyTorch's own call, so that statistics change no bit of its gradient.
    is_plain = objective.is_cross_entropy and weight is None
    if is_plain:
        loss = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction=reduction)
        if not return_stats:
            return loss.reshape(shape) if reduction == "none" else loss

    # Losses [N], 0 where ignored, and statistics [N, 5].
    settings = _settings(
        objective, logits, floor=floor, ignore_index=ignore_index, backend=backend, statistics=return_stats
    )
    losses, statistics = LossOfLogits.apply(logits.detach() if is_plain else logits, targets, settings)
    kept = targets != ignore_index

    if weight is not None:
        weight = weight.reshape(-1).masked_fill(~kept, 0.0)
        loss = losses * weight
        if reduction != "none":
            loss = loss.sum()
        if reduction == "mean":
            loss = mean_of_sum(loss, weight.sum())
    elif not is_plain:  # nll_loss over one column reduces in exactly the order of F.cross_entropy
        loss = F.nll_loss(-losses[:, None], torch.where(kept, 0, -100), reduction=reduction)
    # Back to the targets' shape, and to the type that F.cross_entropy returns.
    loss = loss.reshape(shape) if reduction == "none" else loss
    loss = loss if torch.is_autocast_enabled(logits.device.type) else loss.to(logits.dtype)
    return (loss, _token_statistics(statistics, kept, shape)) if return_stats else loss


@overload
def linear_shaped_cross_entropy(
    hidden_states: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    bias: Tensor | None = ...,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    chunk_size: int | None = ...,
    return_stats: Literal[False] = ...,
    floor: float = ...,
    backend: Backend = ...,
) -> Tensor: ...
@overload
def linear_shaped_cross_entropy(
    hidden_states: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    bias: Tensor | None = ...,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    chunk_size: int | None = ...,
    return_stats: Literal[True],
    floor: float = ...,
    backend: Backend = ...,
) -> tuple[Tensor, TokenStatistics]: ...
def linear_shaped_cross_entropy(
    hidden_states: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
    return_stats: bool = False,
    floor: float = FLOOR,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, TokenStatistics]:
    """`shaped_cross_entropy(F.linear(hidden_states, lm_head_weight, bias), targets, ...)` that never holds the logits.

    hidden_states [N, D] or [B, T, D], lm_head_weight [V, D], bias [V], targets [N] or [B, T]. Products are taken in the
    type of `hidden_states` (or autocast's, where it is enabled), everything else in float32 or better, including the
    loss and the sums over chunks in the gradients of weight and bias. `chunk_size` is the number of rows that have
    logits at a time; by default as many as fit in 32 MiB, and at least half of D and 64.

    For "mean" and "sum" the gradients are computed in the forward pass, at the cost of the plain form's three products;
    for "none" the backward pass computes each chunk's logits again. All else is as in `shaped_cross_entropy`. Raises
    `ValueError` as there, and for a weight that FSDP has sharded: call this in `forward` of the module that owns it.
    """
    _check(hidden_states, targets, objective, name="hidden_states", ignore_index=ignore_index, weight=lm_head_weight)
    _check_reduction(reduction)
    vocabulary, width = lm_head_weight.shape
    if bias is not None and bias.shape != (vocabulary,):
        raise ValueError(f"bias {list(bias.shape)}: its shape must be [{vocabulary}]")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: it must be 1 or more")

    shape = targets.shape
    hidden_states, targets = hidden_states.reshape(-1, width), targets.reshape(-1).long()
    settings = _settings(
        objective, hidden_states, floor=floor, ignore_index=ignore_index, backend=backend, statistics=return_stats
    )
    settings = settings._replace(chunk_size=chunk_size or default_chunk(vocabulary, width))
    # Losses [N] for "none", else their sum, so that the gradients can be taken in the forward pass.
    losses, statistics = LossOfHiddenStates.apply(
        hidden_states, lm_head_weight, bias, targets, settings, reduction != "none", torch.is_grad_enabled()
    )
    kept = targets != ignore_index
    loss = losses.reshape(shape) if reduction == "none" else losses
    if reduction == "mean":
        loss = mean_of_sum(loss, kept.sum())
    return (loss, _token_statistics(statistics, kept, shape)) if return_stats else loss


def mean_of_sum(total: Tensor, count: Tensor) -> Tensor:
    """`total / count`; where the count is 0, NaN with a gradient of 0, as `F.cross_entropy` has it."""
    is_empty = count == 0
    return (total / count.masked_fill(is_empty, 1)).masked_fill(is_empty, torch.nan)


def token_statistics(logits: Tensor, targets: Tensor, top_k: int, *, ignore_index: int = -100) -> TokenStatistics:
    """Statistics of logits [N, V] at targets [N], without gradient; a `top_k` above V counts as V."""
    settings = _settings(
        Objective(top_k=top_k), logits, floor=FLOOR, ignore_index=ignore_index, backend="auto", statistics=True
    )
    with torch.no_grad():
        statistics = LossOfLogits.apply(logits, targets.long(), settings)[1]
    return _token_statistics(statistics, targets != ignore_index, targets.shape)


def _settings(
    objective: Objective, inputs: Tensor, *, floor: float, ignore_index: int, backend: str, statistics: bool
) -> LossSettings:
    """Plain values for the operators; chooses the backend and the type of products for `inputs`.

    Raises `RuntimeError` within `torch.func.grad`, `vmap`, `jvp` and the like.
    """
    # As torch.autograd.Function asks, whose own error is about how it is implemented.
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "the shaped loss does not work within the transforms of torch.func (grad, vmap, jvp, ...): call "
            "backward or torch.autograd.grad outside of them"
        )
    device = inputs.device.type
    # Autocast does not convert the arguments of custom operators, so its type is passed to them.
    product = inputs.dtype
    if torch.is_autocast_enabled(device) and product != torch.float64:
        product = torch.get_autocast_dtype(device)
    return LossSettings(
        beta=float(objective.beta),
        lam_head=float(objective.lam_head),
        lam_tail=float(objective.lam_tail),
        top_k=objective.top_k,
        floor=float(floor),
        ignore_index=ignore_index,
        backend=_chosen_backend(backend, inputs),
        statistics=statistics,
        product=product,
        chunk_size=1,
    )


def _chosen_backend(backend: str, inputs: Tensor) -> str:
    """ "torch" or "triton"; raises `ValueError` where Triton is requested and cannot run."""
    device = inputs.device.type
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"backend={backend!r}: it must be auto, torch or triton")
    if backend == "auto":
        usable = device == "cuda" and inputs.dtype != torch.float64 and find_spec("triton")
        return "triton" if usable else "torch"
    if backend == "triton":
        if not find_spec("triton"):
            raise ValueError("backend='triton': it is not installed; pip install triton, or use backend='torch'")
        if inputs.dtype == torch.float64:
            raise ValueError("backend='triton': it computes in float32; for float64 use backend='torch'")
        if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError("backend='triton': it needs a GPU; on the CPU use backend='torch'")
    return backend


def _token_statistics(rows: Tensor, kept: Tensor, shape: torch.Size) -> TokenStatistics:
    """The columns of rows [N, 5] in the targets' shape, with NaN and 0 where `kept` [N] is False."""
    entropy, head_mass, tail_mass, log_probability, rank = rows.unbind(-1)
    log_probability = log_probability.masked_fill(~kept, torch.nan)
    columns = (entropy, head_mass, tail_mass, log_probability.exp(), (rank * kept).long(), log_probability)
    return TokenStatistics(*(column.reshape(shape) for column in columns))


def _check(
    inputs: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    name: str,
    ignore_index: int,
    weight: Tensor | None = None,
) -> None:
    """Raises `ValueError` for types, shapes, a `top_k` or targets that do not fit `inputs`, which is called `name`:
    logits, or hidden states that `weight` makes logits."""
    check_objective(objective)
    for value, called in ((inputs, name), (targets, "targets")):
        if not isinstance(value, Tensor):
            raise ValueError(f"{called} is of type {type(value).__name__}: it must be a tensor")
    if not inputs.is_floating_point():
        raise ValueError(f"{name} has type {inputs.dtype}: it must be of a floating type")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(f"targets has type {targets.dtype}: it must be of an integer type")
    if inputs.ndim not in (2, 3) or inputs.shape[:-1] != targets.shape:
        last = "V" if name == "logits" else "D"
        raise ValueError(
            f"{name} {list(inputs.shape)} and targets {list(targets.shape)}: the shapes must be [N, {last}] and [N], "
            f"or [B, T, {last}] and [B, T]"
        )
    if weight is not None:
        _check_weight(weight, width=inputs.shape[-1])
    vocabulary = inputs.shape[-1] if weight is None else len(weight)
    if objective.uses_head and objective.top_k > vocabulary:
        raise ValueError(f"top_k={objective.top_k}: it must be at most the vocabulary, {vocabulary}")
    # Reading values would wait for a device and break the graph of torch.compile, so only eager CPU tensors are read.
    is_plain = not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    if is_plain and targets.device.type == "cpu" and targets.numel():
        outside = (targets != ignore_index) & ((targets < 0) | (targets >= vocabulary))
        if bool(outside.any()):
            raise ValueError(
                f"targets contain {int(targets[outside][0])}: they must be in 0..{vocabulary - 1}, "
                f"or equal ignore_index={ignore_index}"
            )


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r}: it must be mean, sum or none")


def _check_weight(weight: Tensor, *, width: int) -> None:
    if not isinstance(weight, Tensor):
        raise ValueError(f"lm_head_weight is of type {type(weight).__name__}: pass the layer's weight [V, {width}]")
    if weight.ndim != 2 or weight.shape[1] != width:
        hint = ", its transpose: pass lm_head_weight.t()" if weight.ndim == 2 and len(weight) == width else ""
        raise ValueError(f"lm_head_weight {list(weight.shape)}: its shape must be [V, {width}]{hint}")
    if hasattr(weight, "full_tensor"):
        raise ValueError(
            "lm_head_weight is sharded (a DTensor): call the loss within the forward of the module that "
            "fully_shard() was given, or pass lm_head_weight.full_tensor()"
        )
