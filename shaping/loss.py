"""The objective in its exact form, for logits and for hidden states with the output matrix.

The expectation of Eq. 5 runs over the vocabulary, so it is a sum and needs no sampling; `shaping.closed_form` has the
formulas. `shaped_cross_entropy` stands in for `F.cross_entropy`. `linear_shaped_cross_entropy` stands in for the output
layer too: logits exist for one chunk of rows at a time, and the chunk's gradients are taken while it is there, so that
nothing is computed twice and nothing of size [N, V] is ever held.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from shaping import closed_form
from shaping.objective import Objective
from shaping.statistics import TokenStatistics

FLOOR = 1e-6
"""Least value of 1 - p under a power: with beta < 0 the weight would grow without bound as p -> 1. The source does
not state one; this is ours. At beta = -0.25 it caps the weight at 31.6."""

CHUNK_BYTES = 2**25
"""What the logits of one chunk may take, 32 MiB, at 4 bytes a logit."""

LEAST_ROWS = 64
"""A chunk has at least that many rows: each one reads the weights and adds to their gradient as a whole."""

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

    Targets equal to `ignore_index` count for nothing. `weight` [N] or [B, T] multiplies each token's loss, and the
    mean is then the weighted one. `reduction="none"` gives the losses in the targets' shape. The loss has the logits'
    type, or float32 under autocast; sums are taken in float32 or better. At beta = lambda = 0 it is that of
    `F.cross_entropy`, bit for bit. `return_stats` adds `TokenStatistics` in the targets' shape, with no gradient.
    `floor` is the least 1 - p under the power beta. `backend="auto"` takes Triton on CUDA and PyTorch elsewhere.

    Raises `ValueError` for shapes, types, targets or a `top_k` that do not fit. Second derivatives are refused.
    """
    _check(logits, targets, objective, reduction, ignore_index, logits.shape[-1], "logits")
    if weight is not None and weight.shape != targets.shape:
        raise ValueError(f"weight {list(weight.shape)}: its shape must be that of targets, {list(targets.shape)}")
    shape = targets.shape
    logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).long()
    if objective.is_cross_entropy and weight is None and not return_stats:
        loss = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction=reduction)
        return loss.reshape(shape) if reduction == "none" else loss
    settings = _settings(objective, floor, ignore_index, backend, return_stats, logits)
    losses, rows = _ShapedLoss.apply(logits, None, None, targets, settings)
    kept = targets != ignore_index
    if weight is None:  # the very reduction of F.cross_entropy, over the one number that each row has
        loss = F.nll_loss(-losses[:, None], torch.where(kept, 0, -100), reduction=reduction)
    else:
        weight = weight.reshape(-1)
        loss = losses * weight
        if reduction != "none":
            loss = loss.sum()
        if reduction == "mean":
            loss = loss / (weight * kept).sum()
    loss = loss.reshape(shape) if reduction == "none" else loss
    loss = loss if torch.is_autocast_enabled(logits.device.type) else loss.to(logits.dtype)
    return (loss, _statistics(rows, targets, ignore_index, shape)) if return_stats else loss


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
    type of `hidden_states` (autocast's, where it is on), everything else in float32 or better: so are the loss and the
    sums over chunks that make the gradients of weight and bias. `chunk_size` is how many rows have logits at a time; by
    default as many as fit 32 MiB, and at least 64.

    For "mean" and "sum" the gradients are computed in the forward pass, at the cost of the plain form's three products;
    for "none" the backward pass computes each chunk's logits again. The rest is as in `shaped_cross_entropy`. Raises
    `ValueError` as there, and for a weight that FSDP has sharded: call this in `forward` of the module that owns it.
    """
    _check(hidden_states, targets, objective, reduction, ignore_index, lm_head_weight.shape[0], "hidden_states")
    vocabulary, width = lm_head_weight.shape[0], hidden_states.shape[-1]
    if lm_head_weight.ndim != 2 or lm_head_weight.shape[1] != width:
        raise ValueError(f"lm_head_weight {list(lm_head_weight.shape)}: its shape must be [V, {width}]")
    if bias is not None and bias.shape != (vocabulary,):
        raise ValueError(f"bias {list(bias.shape)}: its shape must be [{vocabulary}]")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: it must be 1 or more")
    if hasattr(lm_head_weight, "full_tensor"):
        raise ValueError(
            "lm_head_weight is sharded (a DTensor): call the loss within the forward of the module that "
            "fully_shard() was given, or pass lm_head_weight.full_tensor()"
        )
    shape = targets.shape
    hidden_states, targets = hidden_states.reshape(-1, width), targets.reshape(-1).long()
    settings = _settings(objective, floor, ignore_index, backend, return_stats, hidden_states)
    rows_at_once = chunk_size or max(LEAST_ROWS, CHUNK_BYTES // (4 * vocabulary))
    losses, rows = _ShapedLoss.apply(
        hidden_states,
        lm_head_weight,
        bias,
        targets,
        settings._replace(chunk_size=rows_at_once, summed=reduction != "none"),
    )
    loss = losses.reshape(shape) if reduction == "none" else losses
    if reduction == "mean":
        loss = loss / (targets != ignore_index).sum()
    return (loss, _statistics(rows, targets, ignore_index, shape)) if return_stats else loss


def token_statistics(logits: Tensor, targets: Tensor, top_k: int, ignore_index: int = -100) -> TokenStatistics:
    """Statistics of logits [N, V] at targets [N], with no gradient; a `top_k` above V counts as V."""
    with torch.no_grad():
        settings = _settings(Objective(top_k=top_k), FLOOR, ignore_index, "auto", True, logits)
        rows = _ShapedLoss.apply(logits, None, None, targets.long(), settings)[1]
    return _statistics(rows, targets, ignore_index, targets.shape)


class _Settings(NamedTuple):
    """What the passes need to know beside tensors: plain values, as an operator of PyTorch takes them."""

    beta: float
    lam_head: float
    lam_tail: float
    top_k: int
    floor: float
    ignore_index: int
    backend: str
    statistics: bool
    product: torch.dtype
    """The type that hidden states and weights are multiplied in."""
    chunk_size: int = 0
    summed: bool = False
    """Whether the losses are added up, so that one number multiplies all gradients and they can be taken at once."""
    differentiable: bool = True


class _ShapedLoss(torch.autograd.Function):
    """Losses [N], or their sum, and rows of statistics: of logits [N, V], or of hidden states [N, D] with a matrix."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, targets: Tensor, settings: _Settings
    ) -> tuple[Tensor, Tensor]:
        wanted = [settings.differentiable and needed for needed in ctx.needs_input_grad[:3]]
        at_once = settings.summed and any(wanted)
        losses, statistics, *rest = torch.ops.shaping.passes(
            inputs, weight, bias, targets, None, [], wanted if at_once else [False] * 3, *settings[:-2]
        )
        ctx.settings, ctx.wanted, ctx.at_once = settings, wanted, at_once
        if at_once:
            ctx.save_for_backward(*rest[2:])
        elif any(wanted):
            ctx.save_for_backward(inputs, weight, bias, targets, *rest[:2])
        ctx.mark_non_differentiable(statistics)
        return losses.sum() if settings.summed else losses, statistics

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "the shaped loss has no second derivative (its weights are constants to the gradient): "
                "call backward or grad without create_graph=True"
            )
        if ctx.at_once:
            gradients = [gradient * upstream for gradient in ctx.saved_tensors]
        else:
            inputs, weight, bias, targets, *saved = ctx.saved_tensors
            gradients = torch.ops.shaping.passes(
                inputs, weight, bias, targets, upstream, saved if weight is None else [], ctx.wanted, *ctx.settings[:-2]
            )[4:]
        return *(g if wanted else None for g, wanted in zip(gradients, ctx.wanted, strict=True)), None, None


@torch.library.custom_op("shaping::passes", mutates_args=())
def _passes(
    inputs: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    targets: Tensor,
    scale: Tensor | None,
    saved: list[Tensor],
    wanted: list[bool],
    beta: float,
    lam_head: float,
    lam_tail: float,
    top_k: int,
    floor: float,
    ignore_index: int,
    backend: str,
    statistics: bool,
    product: torch.dtype,
    chunk_size: int,
) -> list[Tensor]:
    """The one loop over chunks of rows. Gives losses, statistics, state and head (of logits alone), and the `wanted`
    gradients of inputs, weight and bias, for losses multiplied by `scale` [N], or by 1.

    Logits are one chunk, and their backward pass gets state and head back as `saved`. An operator of its own, so that
    `torch.compile` takes the loop as a whole.
    """
    objective, rows = Objective(beta, lam_head, lam_tail, top_k), _backend_named(backend)
    results = _results(inputs, weight, bias, saved, wanted, objective, rows, statistics)
    losses, rows_of_statistics, state, head, inputs_gradient, weight_gradient, bias_gradient = results
    kept = targets != ignore_index
    targets = targets.where(kept, 0)
    scale = kept.to(losses.dtype) if scale is None else scale * kept
    if weight is None:
        if saved:
            state, head = saved
        else:
            rows.forward(inputs, targets, objective, floor, losses, state, head, rows_of_statistics)
        if wanted[0]:
            rows.backward(inputs, targets, objective, state, head, scale, inputs_gradient)
    else:
        weight = weight.to(product)
        buffer = weight.new_empty(min(chunk_size, len(inputs)), len(weight))
        state, head = rows.state(buffer, objective)
        for start in range(0, len(inputs), chunk_size):
            part = slice(start, start + chunk_size)
            hidden = inputs[part].to(product)
            count = len(hidden)
            if bias is None:
                logits = torch.mm(hidden, weight.t(), out=buffer[:count])
            else:
                logits = torch.addmm(bias.to(product), hidden, weight.t(), out=buffer[:count])
            own = (logits, targets[part], objective)
            rows.forward(*own, floor, losses[part], state[:count], head[:count], rows_of_statistics[part])
            if any(wanted):
                rows.backward(*own, state[:count], head[:count], scale[part], out=logits)
            if wanted[0]:
                _add_product(inputs_gradient[part], logits, weight)
            if wanted[1]:
                _add_product(weight_gradient, logits.t(), hidden)
            if wanted[2]:
                bias_gradient += logits.sum(0, dtype=bias_gradient.dtype)
    if not saved:
        losses.masked_fill_(~kept, 0.0)
    return [
        *results[:4],
        inputs_gradient.to(inputs.dtype),
        weight_gradient if weight is None else weight_gradient.to(weight.dtype),
        bias_gradient if bias is None else bias_gradient.to(bias.dtype),
    ]


@_passes.register_fake
def _passes_shapes(
    inputs: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    targets: Tensor,
    scale: Tensor | None,
    saved: list[Tensor],
    wanted: list[bool],
    beta: float,
    lam_head: float,
    lam_tail: float,
    top_k: int,
    floor: float,
    ignore_index: int,
    backend: str,
    statistics: bool,
    product: torch.dtype,
    chunk_size: int,
) -> list[Tensor]:
    *first, x, w, b = _results(
        inputs,
        weight,
        bias,
        saved,
        wanted,
        Objective(beta, lam_head, lam_tail, top_k),
        _backend_named(backend),
        statistics,
    )
    return [
        *first,
        x,
        w if weight is None else w.to(weight.dtype),
        b if bias is None else b.to(bias.dtype),
    ]


def _results(
    inputs: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: list[Tensor],
    wanted: list[bool],
    objective: Objective,
    rows: Any,
    statistics: bool,
) -> list[Tensor]:
    """Room for what the passes give; sums over chunks in float32 or better. What is not asked for is empty."""
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    count = len(inputs)
    state, head = rows.state(inputs if weight is None and not saved else inputs[:0], objective)
    return [
        inputs.new_empty(0 if saved else count, dtype=dtype),
        inputs.new_empty(count if statistics and not saved else 0, 5, dtype=dtype),
        state,
        head,
        torch.zeros_like(inputs) if wanted[0] else inputs.new_empty(0),
        torch.zeros_like(weight, dtype=dtype) if weight is not None and wanted[1] else inputs.new_empty(0),
        torch.zeros_like(bias, dtype=dtype) if bias is not None and wanted[2] else inputs.new_empty(0),
    ]


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, with no copy of the product where the types agree."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _backend_named(name: str) -> Any:
    return closed_form if name == "torch" else import_module("shaping.triton_kernels")


def _settings(
    objective: Objective, floor: float, ignore_index: int, backend: str, statistics: bool, inputs: Tensor
) -> _Settings:
    device = inputs.device.type
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"backend={backend!r}: it is one of auto, torch, triton")
    if backend == "auto":
        fits = device == "cuda" and inputs.dtype != torch.float64 and find_spec("triton")
        backend = "triton" if fits else "torch"
    elif backend == "triton":
        if not find_spec("triton"):
            raise ValueError("backend='triton': it is not installed; pip install triton, or take backend='torch'")
        if inputs.dtype == torch.float64:
            raise ValueError("backend='triton': it computes in float32; for float64 take backend='torch'")
        if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError("backend='triton': it needs a GPU; on the CPU take backend='torch'")
    product = inputs.dtype
    if torch.is_autocast_enabled(device) and product != torch.float64:
        product = torch.get_autocast_dtype(device)
    return _Settings(
        beta=float(objective.beta),
        lam_head=float(objective.lam_head),
        lam_tail=float(objective.lam_tail),
        top_k=objective.top_k,
        floor=float(floor),
        ignore_index=ignore_index,
        backend=backend,
        statistics=statistics,
        product=product,
        differentiable=torch.is_grad_enabled(),
    )


def _statistics(rows: Tensor, targets: Tensor, ignore_index: int, shape: torch.Size) -> TokenStatistics:
    entropy, head_mass, tail_mass, probability, rank = rows.unbind(-1)
    kept = targets.reshape(-1) != ignore_index
    columns = (entropy, head_mass, tail_mass, probability.masked_fill(~kept, torch.nan), (rank * kept).long())
    return TokenStatistics(*(column.reshape(shape) for column in columns))


def _check(
    inputs: Tensor, targets: Tensor, objective: Objective, reduction: str, ignore_index: int, vocabulary: int, name: str
) -> None:
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
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r}: it is one of mean, sum, none")
    if objective.uses_head and objective.top_k > vocabulary:
        raise ValueError(f"top_k={objective.top_k}: it must be at most the vocabulary, {vocabulary}")
    # a look at the values would wait for a device, and would break a graph of torch.compile
    if targets.device.type == "cpu" and targets.numel() and not torch.compiler.is_compiling():
        outside = (targets != ignore_index) & ((targets < 0) | (targets >= vocabulary))
        if bool(outside.any()):
            raise ValueError(
                f"targets hold {int(targets[outside][0])}: they must lie in 0..{vocabulary - 1}, "
                f"or be ignore_index={ignore_index}"
            )
