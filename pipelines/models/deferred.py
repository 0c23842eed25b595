"""Models whose weights are made later, layer by layer, while each rank keeps its part of what has been made.

A deferred model has its parameters on the meta device and carries an object that can make them. Everything that only
asks for names and shapes treats it like any other model. No rank ever holds more of it than its own part, the tensors
outside of layers, and one layer.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from pipelines.errors import StageFailure

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class DeferredWeights(Protocol):
    """Weights that are made later."""

    def fill(self, model: PreTrainedModel) -> Iterator[int]:
        """Replace the tensors of `model` that are on the meta device, in place, by those with values, on the CPU.

        Yields the number of each decoder layer when it has its weights and no later one has; afterwards the others
        have theirs. Types, and whether a parameter is trained, are those of the tensors that are replaced. Can be
        called again for a copy of the model.
        """
        ...


def defer(model: PreTrainedModel, weights: DeferredWeights) -> PreTrainedModel:
    """Returns `model`, whose parameters are on the meta device, as one whose weights are made later."""
    model.deferred_weights = weights  # type: ignore[assignment]  # copies of the model keep it
    return model


def is_deferred(model: PreTrainedModel) -> bool:
    """Whether the weights of a model have yet to be made."""
    return hasattr(model, "deferred_weights")


def when_made(model: PreTrainedModel, layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Each of the `layers` of a model once it has its weights; afterwards the whole model has them.

    Those of a model that is not deferred have theirs already. Raises `StageFailure` if a weight is missing or has
    another shape.
    """
    if not is_deferred(model):
        yield from layers
        return
    weights: DeferredWeights = model.deferred_weights  # type: ignore[assignment]
    by_number = list(layers)
    for number in weights.fill(model):
        _check(by_number[number], f"layer {number}")
        yield by_number[number]
    _check(model, type(model).__name__)
    del model.deferred_weights


def _check(module: nn.Module, label: str) -> None:
    tensors = (*module.named_parameters(), *module.named_buffers())
    if missing := [name for name, tensor in tensors if tensor.is_meta]:
        raise StageFailure(f"{label} has no {missing[0]}, so its checkpoint is not complete; make it again")


def layer_number(name: str) -> int | None:
    """The number of the decoder layer that a tensor of this name belongs to, None for those outside of layers."""
    match = LAYER.search(name)
    return int(match[1]) if match else None


def place(model: PreTrainedModel, names: Sequence[str], value: Tensor) -> None:
    """Make `value` the tensor of all `names` in `model`, which is tied if there are several."""
    modules = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    before: Tensor = getattr(*modules[0])
    value = value.to(before.dtype)
    if isinstance(before, nn.Parameter):
        value = nn.Parameter(value, requires_grad=before.requires_grad)
    for module, name in modules:
        setattr(module, name, value)
