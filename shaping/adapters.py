"""The objective in other trainers. Each adapter is one call; code that computes its own loss needs only `shaping.loss`.

* Hugging Face: `Trainer(..., compute_loss_func=trainer_loss(objective))`, or `use_shaped_loss(model, objective)`, after
  which `model(..., labels=...)` computes the fused loss; so `Trainer` and TRL's `SFTTrainer` need nothing else.
* Lightning: `class Module(ShapedLossMixin, LightningModule)`, and `self.shaped_loss(logits, targets, objective)` in
  `training_step`.

The libraries themselves are not imported.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaping.loss import Reduction, linear_shaped_cross_entropy, shaped_cross_entropy
from shaping.objective import Objective
from shaping.statistics import TokenStatistics

IGNORE = -100


def trainer_loss(objective: Objective) -> Callable[..., Tensor]:
    """A `compute_loss_func` for Hugging Face's `Trainer` and a causal LM.

    With `num_items_in_batch` (the number of predicted tokens in all micro-batches of an optimizer step) the loss is the
    sum over tokens divided by that number, so gradient accumulation equals one large batch; without it, the mean. The
    model computes all its logits here; `use_shaped_loss` is the form that saves memory.
    """

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        return _loss_of_logits(logits, _next(labels), objective, items=num_items_in_batch)

    return loss


def use_shaped_loss(model: nn.Module, objective: Objective) -> None:
    """Make a causal LM of `transformers` compute the shaped loss whenever it computes a loss.

    In training, `model(..., labels=labels)` then runs `linear_shaped_cross_entropy` instead of its output layer:
    `outputs.loss` is the shaped loss and `outputs.logits` is None. In evaluation, the model returns its logits and the
    shaped loss on them. Generation, saving and loading are unchanged. It supports `num_items_in_batch`, labels that are
    already shifted (`shift_labels`), tied embeddings, a mixture's auxiliary loss, FSDP, and TRL's `SFTTrainer`, whether
    that is made before or after this call.

    Raises `ValueError` if the model has no linear output layer and, when first called, if it changes its logits after
    that layer (soft-capping, scaling): use `trainer_loss` for such a model.
    """
    _output_layer(model)
    original = type(model)
    current: list[_FusedOutputLayer] = []  # that of the running call, if any

    def loss_function(logits: Tensor, labels: Tensor, *_: Any, **options: Any) -> Tensor:
        if not current:
            targets = options.get("shift_labels")
            targets = _next(labels) if targets is None else targets
            return _loss_of_logits(logits, targets, objective, items=options.get("num_items_in_batch"))
        # The "logits" of a fused call are the loss itself, unless the model has computed something from them.
        if logits is not current[0].loss:
            raise ValueError(
                f"model: {original.__name__} changes its logits after the output layer, which the fused loss cannot "
                "know; train it with trainer_loss"
            )
        return logits

    # Replacing the layer's forward cannot be traced by a compiler; the functions called here can.
    @torch.compiler.disable(recursive=False)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Only calls that compute a training loss are fused; all others run the original model.
        per_token = kwargs.pop("fused_lm_head", False)  # TRL's SFTTrainer needs one loss per token
        targets = kwargs.get("shift_labels")
        if targets is None and kwargs.get("labels") is not None:
            targets = _next(kwargs["labels"])
        if targets is None or not (self.training or per_token):
            return original.__call__(self, *args, **kwargs)

        # The output layer returns the loss as "logits", and loss_function returns these as the loss.
        fused = _FusedOutputLayer(
            _output_layer(self), targets, objective, items=kwargs.get("num_items_in_batch"), per_token=per_token
        )
        current.append(fused)
        try:
            with _forward_replaced(fused.head, fused.forward):
                output = original.__call__(self, *args, **kwargs)
        finally:
            current.clear()
        return fused.without_logits(output)

    attributes = {"__call__": call, "__module__": original.__module__, "__doc__": original.__doc__}
    # A subclass with the original's name: __call__ is looked up on the class, and saving writes the original's name.
    model.__class__ = type(original.__name__, (original,), attributes)
    model.loss_function = loss_function  # type: ignore[assignment]


class _FusedOutputLayer:
    """The output layer and the loss of one call of a model. `loss` is set once `forward` has run."""

    loss: Tensor | None = None

    def __init__(
        self,
        head: nn.Linear,
        targets: Tensor,
        objective: Objective,
        *,
        items: Tensor | int | None,
        per_token: bool,
    ) -> None:
        self.head, self.targets, self.objective = head, targets, objective
        self.items, self.per_token = items, per_token
        self.statistics: TokenStatistics | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The loss of hidden states [B, T, D]: one number, or [B, T] with `per_token`."""
        weight, bias = self.head.weight, self.head.bias
        targets = self.targets.to(hidden_states.device)
        if self.per_token:
            self.loss, self.statistics = linear_shaped_cross_entropy(
                hidden_states, weight, targets, self.objective, bias=bias, reduction="none", return_stats=True
            )
            return self.loss
        reduction: Reduction = "mean" if self.items is None else "sum"
        loss = linear_shaped_cross_entropy(
            hidden_states, weight, targets, self.objective, bias=bias, reduction=reduction
        )
        self.loss = loss if self.items is None else loss / self.items
        return self.loss

    def without_logits(self, output: Any) -> Any:
        """The model's output without the logits, which hold the loss; with what SFTTrainer reads if `per_token`."""
        if isinstance(output, tuple):
            return output[:1] + output[2:]
        output = type(output)(**{name: value for name, value in output.items() if name != "logits"})
        if self.statistics is not None:
            kept = self.targets != IGNORE
            output.log_probs, output.label_mask = -output.loss, kept
            output.entropy = self.statistics.entropy * kept
            output.is_top1 = self.statistics.target_rank == 1
        return output


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context the module runs `forward`. Its hooks still run, such as those that gather FSDP's shards."""
    replaced = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if replaced is not None:
            module.forward = replaced


class ShapedLossMixin:
    """For a `LightningModule`: the shaped loss, with its statistics logged."""

    def shaped_loss(self, logits: Tensor, targets: Tensor, objective: Objective, *, stage: str = "train") -> Tensor:
        """The mean loss of logits [B, T, V] at targets [B, T], to return from `training_step` or `validation_step`.

        Logs `{stage}/loss`, `/cross_entropy`, `/entropy` and `/head_mass`, means over tokens that are not ignored.
        """
        loss, statistics = shaped_cross_entropy(logits, targets, objective, return_stats=True)
        kept = targets != IGNORE
        self.log_dict(  # type: ignore[attr-defined]
            {
                f"{stage}/loss": loss.detach(),
                f"{stage}/cross_entropy": -statistics.target_log_probability[kept].mean(),
                f"{stage}/entropy": statistics.entropy[kept].mean(),
                f"{stage}/head_mass": statistics.head_mass[kept].mean(),
            }
        )
        return loss


def _loss_of_logits(logits: Tensor, targets: Tensor, objective: Objective, *, items: Tensor | int | None) -> Tensor:
    """The mean loss, or the sum divided by `items`."""
    logits = logits.float()  # as transformers does before its own loss
    targets = targets.to(logits.device)
    if items is None:
        return shaped_cross_entropy(logits, targets, objective)
    return shaped_cross_entropy(logits, targets, objective, reduction="sum") / items


def _next(labels: Tensor) -> Tensor:
    """The token after each position; ignored at the last position."""
    return F.pad(labels, (0, 1), value=IGNORE)[..., 1:]


def _output_layer(model: Any) -> nn.Linear:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"model: the output layer of {type(model).__name__} is {type(head).__name__}, and must be a linear layer; "
            "train it with trainer_loss"
        )
    return head
