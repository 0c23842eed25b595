"""What `use_shaped_loss` makes of a causal LM of `transformers`: its class, and one call of it.

The model's class becomes a subclass with `ShapedModel` in front, as `fully_shard` of PyTorch does it. In training the
output layer then returns the loss of its input in place of logits, and the model's `loss_function` returns it again.
Where the output layer is more than a matrix (LoRA, quantised weights), it runs itself, and the loss is that of its
logits.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial, wraps
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaping.loss import linear_shaped_cross_entropy, mean_of_sum, shaped_cross_entropy
from shaping.objective import Objective

IGNORE = -100
"""The label of a token that is not predicted, in `transformers` as in PyTorch."""


class ShapedModel:
    """The part of a model's class that computes the shaped loss of the model's `shaped_objective`.

    `_shaped_call` is the call that is running, or None. Both are attributes, whose values a compiler checks.
    """

    # Replacing the output layer's forward cannot be traced by a compiler; the functions called here can.
    @torch.compiler.disable(recursive=False)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's output. Raises `ValueError` where the objective would have no effect on a loss."""
        return _shaped_output(self, super().__call__, args, kwargs)  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        """TRL, accelerate and others replace a model's `forward`."""
        super().__setattr__(name, _bound_forward(self, value) if name == "forward" else value)

    @property
    def loss_function(self: Any) -> Callable[..., Tensor]:
        """The shaped loss, with the arguments of `ForCausalLMLoss` of `transformers`."""
        call = self._shaped_call
        return (LossOfCall(self, {}) if call is None else call).loss_function

    @loss_function.setter
    def loss_function(self, _: Any) -> None:
        raise ValueError("loss_function: use_shaped_loss has set it; load the model anew to train it with another loss")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """For pickle and copy: a class that was made at run time cannot be found by its name."""
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        return _new_model, (type(self).__bases__[1],), *reduced[2:]


@cache
def shaped_class(original: type) -> type:
    """The class `original` with `ShapedModel` in front, and with the original's name, which is saved with a model."""
    attributes = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "forward": _shaped_forward(original.forward),  # type: ignore[attr-defined]
    }
    return type(original.__name__, (ShapedModel, original), attributes)


def _new_model(original: type) -> Any:
    """An unfilled model, whose attributes pickle then sets."""
    return object.__new__(shaped_class(original))


def _shaped_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The function `forward(model, ...)` with the shaped loss, also where it does not run within `__call__`: PEFT
    before 0.21 calls `forward` itself."""

    @wraps(forward)
    def shaped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._shaped_call is not None:
            return forward(self, *args, **kwargs)
        return _shaped_output(self, partial(forward, self), args, kwargs)

    return shaped


def _bound_forward(model: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A `forward` of one model, which does not take the model as an argument, with the shaped loss."""
    if isinstance(forward, MethodType):
        return MethodType(_shaped_forward(forward.__func__), forward.__self__)
    return wraps(forward)(partial(_shaped_forward(lambda _, *args, **kwargs: forward(*args, **kwargs)), model))


@torch.compiler.disable(recursive=False)
def _shaped_output(model: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The output of `run(*args, **kwargs)`, which is the model's `__call__` or `forward`, with the shaped loss."""
    trainer = calling_trainer()
    _check_caller(model, trainer, labels=kwargs.get("labels"))
    per_token = bool(kwargs.get("fused_lm_head"))
    for_log_probabilities = per_token and not _is_sft_trainer(trainer)
    if per_token and not for_log_probabilities:
        _check_loss_type(trainer)
        del kwargs["fused_lm_head"]
        if kwargs.get("labels") is None:  # models compute a loss only if there are labels
            kwargs["labels"] = kwargs.get("shift_labels")

    call = LossOfCall(model, kwargs, per_token=per_token)
    model._shaped_call = call
    try:
        if for_log_probabilities:  # trainers of TRL that have their own loss
            return _without(run(*args, **kwargs), "loss")
        with call.output_layer_replaced():
            output = run(*args, **kwargs)
    except Exception as error:
        if call.loss is not None and not call.is_used:
            raise ValueError(_changes_logits(model)) from error
        raise
    finally:
        model._shaped_call = None
    if not call.is_used and (kwargs.get("labels") is not None or getattr(output, "loss", None) is not None):
        raise ValueError(
            f"model: {type(model).__name__} does not compute its loss with its loss_function, so the objective "
            "would have no effect; train it with trainer_loss"
        )
    return call.completed(output)


class LossOfCall:
    """The loss of one call of a model, of its output layer's input where that is possible, else of its logits."""

    loss: Tensor | None = None
    """What the output layer returned in place of logits, once it has run."""
    is_used = False
    """Whether the model has computed its loss."""

    def __init__(self, model: Any, arguments: dict[str, Any], *, per_token: bool = False) -> None:
        self.model, self.objective, self.per_token = model, model.shaped_objective, per_token
        items = arguments.get("num_items_in_batch")
        # As a tensor: a compiled model would be compiled anew for each number.
        self.items = None if items is None else torch.as_tensor(items)
        self.ignore_index = arguments.get("ignore_index", IGNORE)
        self.outputs: dict[str, Tensor] = {}  # for SFTTrainer
        self.targets = self.layer = None
        if arguments.get("labels") is not None and (model.training or per_token):
            self.targets = _targets(arguments["labels"], arguments.get("shift_labels"), self.ignore_index)
            layer = model.get_output_embeddings()
            self.layer = layer if _is_one_matrix(layer) else None

    def output_layer_replaced(self) -> AbstractContextManager[None]:
        """Within the context the output layer returns the loss, if that can be computed from its weight."""
        return nullcontext() if self.layer is None else _forward_replaced(self.layer, self.of_hidden_states)

    def of_hidden_states(self, hidden_states: Tensor) -> Tensor:
        """The loss, one number, of hidden states [B, T, D]."""
        weight, bias = self.layer.weight, self.layer.bias  # type: ignore[union-attr]
        fused = partial(linear_shaped_cross_entropy, hidden_states, weight, bias=bias)
        self.loss = self._reduced(fused, self.targets.to(hidden_states.device))  # type: ignore[union-attr]
        return self.loss

    def loss_function(self, logits: Tensor, labels: Tensor, *_: Any, **options: Any) -> Tensor:
        """The loss of logits [B, T, V], or the loss itself if the output layer has returned it."""
        self.is_used = True
        if self.items is None:
            self.items = options.get("num_items_in_batch")
        if self.layer is None:
            targets = _targets(labels, options.get("shift_labels"), self.ignore_index).to(logits.device)
            return self._reduced(partial(shaped_cross_entropy, logits.float()), targets)
        if logits is not self.loss:
            raise ValueError(_changes_logits(self.model))
        return logits

    def _reduced(self, loss_of: Callable[..., Any], targets: Tensor) -> Tensor:
        loss_of = partial(loss_of, targets, self.objective, ignore_index=self.ignore_index)
        if not self.per_token:
            return mean_loss(loss_of, items=self.items)
        losses, statistics = loss_of(reduction="none", return_stats=True)
        kept = targets != self.ignore_index
        # The trainer takes minus the log-probability for the loss of a token.
        self.outputs = {
            "log_probs": -losses,
            "label_mask": kept,
            "entropy": statistics.entropy * kept,
            "is_top1": statistics.target_rank == 1,
        }
        return mean_of_sum(losses.sum(), kept.sum() if self.items is None else self.items.to(losses.device))

    def completed(self, output: Any) -> Any:
        """The model's output without what is not logits, and with what SFTTrainer reads."""
        if self.loss is not None:
            output = output[:1] + output[2:] if isinstance(output, tuple) else _without(output, "logits")
        for name, value in self.outputs.items():
            setattr(output, name, value)
        return output


def loss_of_logits(
    logits: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    items: Tensor | int | None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """The mean loss of logits [B, T, V] at targets [B, T], in float32, or the sum divided by `items`."""
    logits = logits.float()  # as transformers does before its own loss
    targets = targets.to(logits.device)
    return mean_loss(partial(shaped_cross_entropy, logits, targets, objective, ignore_index=ignore_index), items=items)


def mean_loss(loss_of: Callable[..., Tensor], *, items: Tensor | int | None) -> Tensor:
    """`loss_of(reduction="mean")`, or the sum divided by `items`, the number of tokens of an optimizer's step."""
    if items is None:
        return loss_of(reduction="mean")
    total = loss_of(reduction="sum")
    return mean_of_sum(total, torch.as_tensor(items, device=total.device))


def next_tokens(labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """The token after each position; ignored at the last position."""
    return F.pad(labels, (0, 1), value=ignore_index)[..., 1:]


def _targets(labels: Tensor, shift_labels: Tensor | None, ignore_index: int) -> Tensor:
    return next_tokens(labels, ignore_index) if shift_labels is None else shift_labels


def _is_one_matrix(layer: nn.Module) -> bool:
    """Whether the layer's output is `F.linear` of its weight and bias, and nothing else."""
    runs_as_linear = type(layer).forward is nn.Linear.forward and "forward" not in vars(layer)
    if not isinstance(layer, nn.Linear) or not runs_as_linear:
        return False
    # A sharded weight (DTensor) is gathered before the layer runs; other kinds of tensor are quantised weights.
    weight = layer.weight
    return weight.is_floating_point() and (type(weight) in (Tensor, nn.Parameter) or hasattr(weight, "full_tensor"))


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context the module runs `forward`. Its hooks still run, such as those that gather FSDP's shards."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _without(output: Any, name: str) -> Any:
    """The model's output without one of its fields."""
    return type(output)(**{key: value for key, value in output.items() if key != name})


def _changes_logits(model: Any) -> str:
    return (
        f"model: {type(model).__name__} changes its logits after the output layer, which the fused loss cannot know; "
        "train it with trainer_loss"
    )


def calling_trainer() -> Any:
    """The `Trainer` of `transformers` in whose `compute_loss` this code runs, or None.

    A trainer that computes its own loss does not tell the model so, hence the look at the calling functions.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "compute_loss" and hasattr(frame.f_locals.get("self"), "label_smoother"):
            return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]
    return None


def check_label_smoothing(trainer: Any) -> None:
    """Raises `ValueError` if the trainer smooths labels, which the objective has no form for."""
    if trainer is not None and trainer.label_smoother is not None:
        raise ValueError(
            f"label_smoothing_factor={trainer.label_smoother.epsilon:g}: the shaped loss has no label smoothing; set "
            "it to 0"
        )


def _check_caller(model: Any, trainer: Any, *, labels: Any) -> None:
    """Raises `ValueError` for a call without labels from a trainer that computes a loss of its own."""
    if labels is not None:
        return
    check_label_smoothing(trainer)
    if trainer is not None and trainer.compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func: Trainer computes the loss with it, and not with the objective that use_shaped_loss was "
            "given; use one of the two"
        )
    if getattr(model, "_is_replica", False) and model.training:  # runs in a thread that no trainer is seen from
        raise ValueError(
            "DataParallel: in training, a model with use_shaped_loss must be called with labels; use "
            "DistributedDataParallel, or trainer_loss without use_shaped_loss"
        )


def _is_sft_trainer(trainer: Any) -> bool:
    return any(base.__name__ == "SFTTrainer" for base in type(trainer).__mro__)


def _check_loss_type(trainer: Any) -> None:
    loss_type = getattr(trainer.args, "loss_type", "nll")
    if loss_type != "nll":
        raise ValueError(
            f"loss_type={loss_type!r}: SFTTrainer weights the tokens of the shaped loss as if it were cross-entropy; "
            "set loss_type='nll'"
        )
