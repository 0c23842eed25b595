"""The loss as operators of PyTorch, with their gradients: of logits, and of hidden states with the output matrix.

The loops over rows are custom operators, so that `torch.compile` takes each of them as one call. PyTorch requires that
tensors are positional arguments of an operator. The formulas for a row are in `shaping.closed_form` and
`shaping.triton_kernels`; `shaping.loss` checks the arguments and reduces the losses.
"""

from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shaping import closed_form
from shaping.objective import Objective

SETTINGS_SCHEMA = (
    "float beta, float lam_head, float lam_tail, int top_k, float floor, int ignore_index, str backend, "
    "bool statistics, ScalarType product, int chunk_size"
)
"""The fields of `LossSettings` as an operator declares them: operators take plain values, not objects."""


class LossSettings(NamedTuple):
    """What the operators need besides tensors, passed to them as `**settings._asdict()`."""

    beta: float
    lam_head: float
    lam_tail: float
    top_k: int
    floor: float
    ignore_index: int
    backend: str
    """"torch" or "triton"."""
    statistics: bool
    product: torch.dtype
    """The type in which hidden states and weights are multiplied; without effect on logits."""
    chunk_size: int
    """How many rows of hidden states have logits at a time; without effect on logits."""

    @property
    def objective(self) -> Objective:
        """The knobs as an objective."""
        return Objective(self.beta, self.lam_head, self.lam_tail, self.top_k)

    @property
    def kernels(self) -> Any:
        """The module whose `state`, `forward` and `backward` work on rows of logits."""
        return closed_form if self.backend == "torch" else import_module("shaping.triton_kernels")


class LossOfLogits(torch.autograd.Function):
    """Losses [N] and statistics [N, 5] (empty unless the settings want them) of logits [N, V] at targets [N]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, settings: LossSettings) -> tuple[Tensor, Tensor]:
        """Losses and statistics."""
        losses, statistics, state, head = torch.ops.shaping.logits_forward(logits, targets, **settings._asdict())
        ctx.settings = settings
        ctx.save_for_backward(logits, targets, state, head)
        ctx.mark_non_differentiable(statistics)
        return losses, statistics

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        _refuse_second_derivative()
        logits, targets, state, head = ctx.saved_tensors
        settings = ctx.settings._asdict()
        gradient = torch.ops.shaping.logits_backward(logits, targets, upstream, state, head, **settings)
        return gradient, None, None


class LossOfHiddenStates(torch.autograd.Function):
    """Losses [N], or their sum, and statistics [N, 5], of hidden states [N, D] with weight [V, D] and bias [V].

    One number multiplies all gradients of a sum, so they are taken in the forward pass, while each chunk's logits
    exist. Losses that stay apart may each be multiplied by another number, so the backward pass computes the logits
    again. `differentiable` is whether gradients are enabled where the loss is called; within `forward` they never are.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: LossSettings,
        summed: bool,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor]:
        """Losses, or their sum, and statistics."""
        # Without gradients, or for losses that stay apart, this is the forward pass only.
        ctx.wanted = [differentiable and needed for needed in ctx.needs_input_grad[:3]]
        losses, statistics, *gradients = torch.ops.shaping.hidden_states_passes(
            hidden_states,
            weight,
            bias,
            targets,
            None,
            wanted=ctx.wanted if summed else [False] * 3,
            **settings._asdict(),
        )
        # The backward pass needs either the gradients or all inputs, and no statistics.
        ctx.summed, ctx.settings = summed, settings._replace(statistics=False)
        if summed:
            ctx.save_for_backward(*gradients)
        else:
            ctx.save_for_backward(hidden_states, weight, bias, targets)
        ctx.mark_non_differentiable(statistics)
        return losses.sum() if summed else losses, statistics

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of hidden states, weight and bias."""
        _refuse_second_derivative()
        if ctx.summed:
            gradients = [gradient * upstream for gradient in ctx.saved_tensors]
        else:
            hidden_states, weight, bias, targets = ctx.saved_tensors
            _, _, *gradients = torch.ops.shaping.hidden_states_passes(
                hidden_states,
                weight,
                bias,
                targets,
                upstream,
                wanted=ctx.wanted,
                **ctx.settings._asdict(),
            )
        # Gradients that are not wanted are empty tensors: operators cannot return None.
        of_inputs = (g if wanted else None for g, wanted in zip(gradients, ctx.wanted, strict=True))
        return *of_inputs, None, None, None, None


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "the shaped loss has no second derivative (its weights are constants to the gradient): "
            "call backward or grad without create_graph=True"
        )


@torch.library.custom_op(
    "shaping::logits_forward",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor targets, *, {SETTINGS_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def logits_forward(logits: Tensor, targets: Tensor, **settings: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [N], statistics [N, 5] or [0, 5], and the state and head that `logits_backward` needs."""
    options = LossSettings(**settings)
    losses, statistics, state, head = _forward_results(logits, options)
    # Ignored rows are computed with target 0, and their losses are then set to 0.
    kept = targets != options.ignore_index
    options.kernels.forward(
        logits,
        targets.where(kept, 0),
        options.objective,
        floor=options.floor,
        losses=losses,
        state=state,
        head=head,
        statistics=statistics,
    )
    return losses.masked_fill_(~kept, 0.0), statistics, state, head


@logits_forward.register_fake
def _logits_forward_shapes(logits: Tensor, targets: Tensor, **settings: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _forward_results(logits, LossSettings(**settings))


def _forward_results(logits: Tensor, settings: LossSettings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unfilled losses, statistics, state and head."""
    state, head = settings.kernels.state(logits, settings.objective)
    return *_losses_and_statistics(logits, settings), state, head


def _losses_and_statistics(inputs: Tensor, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Unfilled losses [N] and statistics [N, 5], or [0, 5] where the settings want none, in float32 or better."""
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    rows = len(inputs)
    return inputs.new_empty(rows, dtype=dtype), inputs.new_empty(rows if settings.statistics else 0, 5, dtype=dtype)


@torch.library.custom_op(
    "shaping::logits_backward",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor targets, Tensor scale, Tensor state, Tensor head, *, {SETTINGS_SCHEMA}) -> Tensor",
)
def logits_backward(
    logits: Tensor, targets: Tensor, scale: Tensor, state: Tensor, head: Tensor, **settings: Any
) -> Tensor:
    """The gradient [N, V] of the sum of losses multiplied by `scale` [N]; `state` and `head` from `logits_forward`."""
    options = LossSettings(**settings)
    # A factor of 0 makes the gradient of ignored rows 0.
    kept = targets != options.ignore_index
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    options.kernels.backward(
        logits,
        targets.where(kept, 0),
        options.objective,
        state=state,
        head=head,
        scale=scale.masked_fill(~kept, 0.0),
        out=gradient,
    )
    return gradient


@logits_backward.register_fake
def _logits_backward_shape(logits: Tensor, *_: Tensor, **__: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "shaping::hidden_states_passes",
    mutates_args=(),
    schema="(Tensor hidden_states, Tensor weight, Tensor? bias, Tensor targets, Tensor? scale, *, bool[] wanted, "
    f"{SETTINGS_SCHEMA}) -> Tensor[]",
)
def hidden_states_passes(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: Tensor | None,
    *,
    wanted: list[bool],
    **settings: Any,
) -> list[Tensor]:
    """The loop over chunks of rows: losses [N], statistics, and the gradients of the three inputs.

    Gradients are those of the sum of losses multiplied by `scale` [N], or by 1; one that is not `wanted` is empty.
    """
    options = LossSettings(**settings)
    objective, kernels = options.objective, options.kernels
    losses, statistics = _losses_and_statistics(hidden_states, options)
    hidden_gradient, weight_gradient, bias_gradient = _gradient_sums(hidden_states, weight, bias, wanted=wanted)

    # Ignored rows have target 0 and a factor of 0.
    kept = targets != options.ignore_index
    targets = targets.where(kept, 0)
    scale = kept.to(losses.dtype) if scale is None else scale.masked_fill(~kept, 0.0)

    # All chunks share one buffer of logits [chunk_size, V], and the state and head that their gradients need.
    matrix = weight.to(options.product)
    buffer = matrix.new_empty(min(options.chunk_size, len(hidden_states)), len(matrix))
    state, head = kernels.state(buffer, objective)
    for start in range(0, len(hidden_states), options.chunk_size):
        chunk = slice(start, start + options.chunk_size)
        hidden = hidden_states[chunk].to(options.product)
        count = len(hidden)
        logits = _logits(hidden, matrix, bias, out=buffer[:count])
        # Losses and statistics of the chunk's rows; then the gradients of its logits, which replace them in the buffer.
        saved = {"state": state[:count], "head": head[:count]}
        results = {"losses": losses[chunk], "statistics": statistics[chunk], **saved}
        kernels.forward(logits, targets[chunk], objective, floor=options.floor, **results)
        if any(wanted):
            kernels.backward(logits, targets[chunk], objective, scale=scale[chunk], out=logits, **saved)
        # From the gradient of the logits [n, V] to those of the inputs.
        if wanted[0]:
            add_product(hidden_gradient[chunk], logits, matrix)
        if wanted[1]:
            add_product(weight_gradient, logits.t(), hidden)
        if wanted[2]:
            bias_gradient += logits.sum(0, dtype=bias_gradient.dtype)
    losses.masked_fill_(~kept, 0.0)
    gradients = _rounded(hidden_gradient, weight_gradient, bias_gradient, bias=bias, product=options.product)
    return [losses, statistics, *gradients]


@hidden_states_passes.register_fake
def _hidden_states_passes_shapes(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None, *_: Tensor | None, wanted: list[bool], **settings: Any
) -> list[Tensor]:
    options = LossSettings(**settings)
    sums = _gradient_sums(hidden_states, weight, bias, wanted=wanted)
    return [
        *_losses_and_statistics(hidden_states, options),
        *_rounded(*sums, bias=bias, product=options.product),
    ]


def _gradient_sums(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None, *, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros for the wanted gradients. Those of weight and bias are sums over chunks, in float32 or better."""
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)

    def zeros(tensor: Tensor | None, index: int, dtype: torch.dtype) -> Tensor:
        if tensor is None or not wanted[index]:
            return hidden_states.new_empty(0, dtype=dtype)
        return torch.zeros_like(tensor, dtype=dtype)

    return zeros(hidden_states, 0, hidden_states.dtype), zeros(weight, 1, dtype), zeros(bias, 2, dtype)


def _rounded(
    hidden_gradient: Tensor,
    weight_gradient: Tensor,
    bias_gradient: Tensor,
    *,
    bias: Tensor | None,
    product: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in the types of their inputs; the weight's in the type it was multiplied in, as autocast does.

    Sums that float16 may not hold stay float32: autograd converts them, after the division of a mean by its count.
    """
    if bias is not None and bias.dtype != torch.float16:
        bias_gradient = bias_gradient.to(bias.dtype)
    if product != torch.float16:
        weight_gradient = weight_gradient.to(product)
    return hidden_gradient, weight_gradient, bias_gradient


def _logits(hidden: Tensor, matrix: Tensor, bias: Tensor | None, *, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(hidden, matrix.t(), out=out)
    return torch.addmm(bias.to(matrix.dtype), hidden, matrix.t(), out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, with no copy of the product where the types agree."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
        return
    product = a @ b
    if a.dtype == torch.float16 and not bool(product.isfinite().all()):  # beyond 65,504
        product = a.to(total.dtype) @ b.to(total.dtype)
    total += product
