"""The objective in other trainers. Each adapter is one call; code that computes its own loss needs only `shaping.loss`.

* Hugging Face: `Trainer(..., compute_loss_func=trainer_loss(objective))`, or `use_shaped_loss(model, objective)`, after
  which `model(..., labels=...)` computes the fused loss; so `Trainer` and TRL's `SFTTrainer` need nothing else.
* Lightning: `class Module(ShapedLossMixin, LightningModule)`, and `self.shaped_loss(logits, targets, objective)` in
  `training_step`.

The libraries themselves are not imported.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from shaping.loss import shaped_cross_entropy
from shaping.objective import Objective, check_objective
from shaping.shaped_model import (
    IGNORE,
    ShapedModel,
    calling_trainer,
    check_label_smoothing,
    loss_of_logits,
    next_tokens,
    shaped_class,
)


def trainer_loss(objective: Objective) -> Callable[..., Tensor]:
    """A `compute_loss_func` for Hugging Face's `Trainer` and a causal LM.

    With `num_items_in_batch` (the number of predicted tokens in all micro-batches of an optimizer step) the loss is the
    sum over tokens divided by that number, so gradient accumulation equals one large batch; without it, the mean. The
    model computes all its logits here; `use_shaped_loss` is the form that saves memory.

    Raises `ValueError` for anything but an `Objective`; when called, without labels, for a trainer that smooths labels
    and for outputs of models that do not predict the next token (encoder-decoders and masked LMs).
    """
    check_objective(objective)
    return partial(_loss_of_outputs, objective)  # not a closure, so that it can be pickled


def _loss_of_outputs(
    objective: Objective, outputs: Any, labels: Tensor | None, *, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """The loss of a model's outputs with logits [B, T, V] at labels [B, T]."""
    check_label_smoothing(calling_trainer())
    if labels is None:
        raise ValueError("labels=None: the loss needs the column labels in the trainer's data")
    kind = type(outputs).__name__
    if kind.startswith(("Seq2Seq", "MaskedLM")):
        raise ValueError(f"outputs: {kind} is not of a causal LM, and trainer_loss predicts each next token")
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return loss_of_logits(logits, next_tokens(labels), objective, items=num_items_in_batch)


def use_shaped_loss(model: nn.Module, objective: Objective) -> None:
    """Make a causal LM of `transformers` compute the shaped loss whenever it computes a loss.

    In training, `model(..., labels=labels)` then runs `linear_shaped_cross_entropy` instead of its output layer:
    `outputs.loss` is the shaped loss and `outputs.logits` is None. In evaluation, the model returns its logits and the
    shaped loss on them. Generation, saving, loading, copying and pickling are unchanged. It supports
    `num_items_in_batch`, labels that are already shifted (`shift_labels`), tied embeddings, a mixture's auxiliary loss,
    FSDP, and TRL's `SFTTrainer`, whether that is made before or after this call. A second call changes the objective.

    The model may be within PEFT's, `torch.compile`'s, `DistributedDataParallel` or `DataParallel`, now or later. An
    output layer that is more than a matrix (with LoRA, trained in full as a copy, quantised) runs itself: the loss is
    then that of its logits, which exist at once.

    Raises `ValueError` for anything but an `Objective`, and for a model that is not a causal LM of `transformers`. When
    called, the model raises it if it changes its logits after the output layer (soft-capping, scaling) or computes its
    loss in its own way: use `trainer_loss` for such a model; and if its `Trainer` smooths labels or has a
    `compute_loss_func`.
    """
    check_objective(objective)
    inner: Any = _causal_lm(model)
    inner.shaped_objective, inner._shaped_call = objective, None
    if not isinstance(inner, ShapedModel):
        inner.__class__ = shaped_class(type(inner))  # type: ignore[arg-type]
        if "forward" in vars(inner):
            inner.forward = vars(inner)["forward"]  # set by TRL or accelerate, now with the shaped loss


def _causal_lm(model: Any) -> Any:
    """The model of `transformers` within wrappers."""
    inner: Any = model
    while isinstance(inner, nn.Module) and not hasattr(type(inner), "loss_function"):
        # torch.compile's; PEFT's models; those of DistributedDataParallel, DataParallel and FSDP; PEFT's tuners.
        within: Any = inner
        if "_orig_mod" in within._modules:
            inner = within._orig_mod
        elif hasattr(within, "get_base_model"):
            inner = within.get_base_model()
        else:
            inner = getattr(within, "module", None) or getattr(within, "model", None)
    if not isinstance(inner, nn.Module):
        given = type(model).__name__ if isinstance(model, nn.Module) else f"{model!r:.80}"
        raise ValueError(f"model: {given} is not a causal LM of transformers, nor a wrapper of one")
    causal_lm: Any = inner
    name = type(inner).__name__
    if causal_lm.get_output_embeddings() is None:
        raise ValueError(f"model: {name} has no output layer; load the model with its language-model head")
    if not isinstance(causal_lm, ShapedModel):
        loss_name = getattr(causal_lm.loss_function, "__name__", type(causal_lm.loss_function).__name__)
        if not loss_name.endswith("ForCausalLMLoss"):
            raise ValueError(f"model: {name} computes its loss with {loss_name}, which is not that of next tokens")
    return causal_lm


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
