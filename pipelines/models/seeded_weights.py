"""New weights from a seed, one tensor at a time: those of building the whole model at once, bit for bit.

A constructor and transformers' initialisation draw from one generator, module by module. Their operations were recorded
(`pipelines.models.meta_build`) and are replayed here in the same order on a generator of the same seed. Values that
are overwritten later are drawn too, since they advance the generator, and dropped at once.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.models.deferred import defer, layer_number, place
from pipelines.models.meta_build import Operation, built_on_meta


def seeded_model(build: Callable[[], PreTrainedModel], *, seed: int) -> PreTrainedModel:
    """What `build` returns after `torch.manual_seed(seed)`, as a deferred model.

    Raises `NotImplementedError` if its weights cannot be replayed.
    """
    model, recording = built_on_meta(build)
    shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in recording.tensors]
    return defer(model, SeededWeights(seed, recording.operations, shapes, recording.names(model)))


@dataclass(frozen=True)
class SeededWeights:
    """Weights as a record of operations; see `DeferredWeights`."""

    seed: int
    operations: Sequence[Operation]
    shapes: Sequence[tuple[tuple[int, ...], torch.dtype]]
    """Shape and type of each recorded tensor."""
    names: Mapping[int, Sequence[str]]
    """Names of each recorded tensor that is part of the model."""

    def fill(self, model: PreTrainedModel) -> Iterator[int]:
        """See `DeferredWeights.fill`."""
        generator = torch.Generator().manual_seed(self.seed)
        # Number of an operation -> the next one on the same tensor.
        following: dict[int, Operation] = {}
        newest: dict[int, int] = {}
        for index, operation in enumerate(self.operations):
            if operation.tensor in newest:
                following[newest[operation.tensor]] = operation
            newest[operation.tensor] = index
        # Draws after the last one that matters are left out: those of an output layer that is tied.
        end = 1 + max(newest[tensor] for tensor in self.names)
        unfinished = Counter(layer_number(names[0]) for names in self.names.values())
        held: dict[int, Tensor] = {}
        for index, operation in enumerate(self.operations[:end]):
            tensor = operation.tensor
            value = self._run(operation, held.pop(tensor, None), generator)
            if index in following:
                if not following[index].overwrites:
                    held[tensor] = value
            elif tensor in self.names:
                place(model, self.names[tensor], value)
                layer = layer_number(self.names[tensor][0])
                unfinished[layer] -= 1
                if layer is not None and not unfinished[layer]:
                    del value  # or it would outlive the layer's sharding
                    yield layer

    def _run(self, operation: Operation, value: Tensor | None, generator: torch.Generator) -> Tensor:
        """The tensor after an operation on its `value`, None if that does not matter."""
        if operation.view is None:
            return operation.function(*operation.arguments, **operation.options)
        if value is None:
            shape, dtype = self.shapes[operation.tensor]
            value = torch.empty(shape, dtype=dtype)
        options = dict(operation.options)
        if torch.Tag.nondeterministic_seeded in operation.function.tags:  # type: ignore[attr-defined]
            options["generator"] = generator
        operation.function(value.as_strided(*operation.view), *operation.arguments, **options)
        return value
