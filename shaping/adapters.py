"""The objective in other people's trainers. Each adapter is one call, and none is needed to use `shaping.loss`.

* Hugging Face: `Trainer(..., compute_loss_func=trainer_loss(objective))`, or `use_shaped_loss(model, objective)`, after
  which `model(..., labels=...)` computes the fused loss; so `Trainer` and TRL's `SFTTrainer` need nothing else.
* Lightning: `class Module(ShapedLossMixin, LightningModule)`, and `self.shaped_loss(logits, targets, objective)` in
  `training_step`.

The libraries are not imported: what they hand over is all that is used.
"""

from collections.abc import Callable, Mapping
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

    With `num_items_in_batch` (the predicted tokens of a whole optimizer step, over all its micro-batches) the loss is
    the sum over tokens divided by that number, so that gradient accumulation gives what one large batch would; without
    it, the mean. The model's logits exist in full here: `use_shaped_loss` is the form that saves memory.
    """

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        return _of_logits(logits, _next(labels), objective, num_items_in_batch)

    return loss


def use_shaped_loss(model: nn.Module, objective: Objective) -> None:
    """Make a causal LM of `transformers` compute the shaped loss wherever it computes a loss.

    In training, `model(..., labels=labels)` then runs `linear_shaped_cross_entropy` in the place of its output layer:
    `outputs.loss` is the shaped loss and `outputs.logits` None. In evaluation, logits are there as ever, and the loss
    is the shaped one of them. Generation, saving and loading are as before. `num_items_in_batch`, labels that were
    shifted already (`shift_labels`), tied embeddings, a mixture's auxiliary loss and FSDP work, and so does TRL's
    `SFTTrainer`, whether it is made before or after.

    Raises `ValueError` where the model has no linear output layer and, when first called, where it changes its logits
    after that layer (soft-capping, scaling): use `trainer_loss` there.
    """
    _output_layer(model)
    kind = type(model)
    fused: list[Tensor] = []  # what the output layer gave in the call that is under way

    def loss_function(logits: Tensor, labels: Tensor, *_: Any, **options: Any) -> Tensor:
        if not fused:
            targets = options.get("shift_labels")
            targets = _next(labels) if targets is None else targets
            return _of_logits(logits, targets, objective, options.get("num_items_in_batch"))
        if logits is not fused[0]:
            raise ValueError(
                f"model: {kind.__name__} changes its logits after the output layer, which the fused loss cannot know; "
                "train it with trainer_loss"
            )
        return logits

    @torch.compiler.disable(
        recursive=False
    )  # swaps the layer's forward, which a compiler cannot trace; the rest it can
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        per_token = kwargs.pop("fused_lm_head", False)  # SFTTrainer of TRL asks for one number a token
        targets = kwargs.get("shift_labels")
        if targets is None and kwargs.get("labels") is not None:
            targets = _next(kwargs["labels"])
        if targets is None or not (self.training or per_token):
            return kind.__call__(self, *args, **kwargs)
        head: Any = _output_layer(self)
        statistics: list[TokenStatistics] = []

        def output_layer(hidden_states: Tensor) -> Tensor:
            # in the place of head.forward, so that hooks, such as those that gather FSDP's shards, run as ever
            own = targets.to(hidden_states.device)
            if per_token:
                losses, more = linear_shaped_cross_entropy(
                    hidden_states, head.weight, own, objective, bias=head.bias, reduction="none", return_stats=True
                )
                statistics.append(more)
                fused.append(losses)
            else:
                items = kwargs.get("num_items_in_batch")
                reduction: Reduction = "mean" if items is None else "sum"
                loss = linear_shaped_cross_entropy(
                    hidden_states, head.weight, own, objective, bias=head.bias, reduction=reduction
                )
                fused.append(loss if items is None else loss / items)
            return fused[0]

        before = head.__dict__.get("forward")
        head.forward = output_layer
        try:
            output = kind.__call__(self, *args, **kwargs)
        finally:
            fused.clear()
            del head.forward
            if before is not None:
                head.forward = before
        if isinstance(output, tuple):
            return output[:1] + output[2:]
        output = type(output)(**{name: value for name, value in output.items() if name != "logits"})
        if per_token:
            kept = targets != IGNORE
            output.log_probs, output.label_mask = -output.loss, kept
            output.entropy, output.is_top1 = statistics[0].entropy * kept, statistics[0].target_rank == 1
        return output

    shaped = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__})
    model.__class__ = shaped
    model.loss_function = loss_function  # type: ignore[assignment]


class ShapedLossMixin:
    """For a `LightningModule`: the shaped loss, and its statistics logged beside it."""

    def shaped_loss(self, logits: Tensor, targets: Tensor, objective: Objective, stage: str = "train") -> Tensor:
        """The mean loss of logits [B, T, V] at targets [B, T], for `training_step` or `validation_step` to return.

        Logs `{stage}/loss`, `/cross_entropy`, `/entropy` and `/head_mass`, means over tokens that are not ignored.
        """
        loss, statistics = shaped_cross_entropy(logits, targets, objective, return_stats=True)
        kept = targets != IGNORE
        self.log_dict(  # type: ignore[attr-defined]
            {
                f"{stage}/loss": loss.detach(),
                f"{stage}/cross_entropy": -statistics.target_probability[kept].log().mean(),
                f"{stage}/entropy": statistics.entropy[kept].mean(),
                f"{stage}/head_mass": statistics.head_mass[kept].mean(),
            }
        )
        return loss


def _of_logits(logits: Tensor, targets: Tensor, objective: Objective, items: Tensor | int | None) -> Tensor:
    logits = logits.float()  # as transformers does before its own loss
    targets = targets.to(logits.device)
    if items is None:
        return shaped_cross_entropy(logits, targets, objective)
    return shaped_cross_entropy(logits, targets, objective, reduction="sum") / items


def _next(labels: Tensor) -> Tensor:
    """The token after each position, and nothing to predict at the last."""
    return F.pad(labels, (0, 1), value=IGNORE)[..., 1:]


def _output_layer(model: Any) -> nn.Linear:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"model: the output layer of {type(model).__name__} is {type(head).__name__}, and must be a linear layer; "
            "train it with trainer_loss"
        )
    return head
