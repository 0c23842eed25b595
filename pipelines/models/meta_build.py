"""Builds a model without memory for its parameters, and records how their values would have come about.

Tensors that a constructor makes are on the meta device, which has shapes and no numbers; what is computed from other
numbers, such as rotary frequencies, is real. transformers skips its initialisation under `torch.device("meta")`, so
the device is changed in each call that makes a tensor instead, which it does not notice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

aten = torch.ops.aten

CREATING = (aten.empty.memory_format, aten.zeros.default, aten.ones.default, aten.full.default)
"""How modules make their parameters and buffers."""
OVERWRITING = (aten.normal_.default, aten.uniform_.default, aten.fill_.Scalar, aten.zero_.default)
"""Operations after which nothing is left of the values before."""


@dataclass(frozen=True)
class Operation:
    """One operation that made or changed the values of a tensor."""

    tensor: int
    """Number of the tensor, in the order in which they were made."""
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    """Without the tensor that is changed."""
    options: Mapping[str, Any]
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None = None
    """Size, stride and offset of the part that is changed; None if the tensor is made."""
    overwrites: bool = True
    """Whether the values before do not matter."""


class Recording(TorchDispatchMode):
    """While it is active, new tensors are on the meta device, and `operations` grows.

    Raises `NotImplementedError` for random numbers, or values of other tensors, that replaying would not reproduce.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.tensors: list[Tensor] = []
        """By number. They keep their storages alive, whose addresses identify them."""
        self.numbers: dict[int, int] = {}
        """Storage -> number of the tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `TorchDispatchMode`."""
        options = dict(kwargs or {})
        if func in CREATING:
            made = func(*args, **{**options, "device": "meta"})
            self.numbers[_storage(made)] = len(self.tensors)
            self.operations.append(Operation(len(self.tensors), func, args, {**options, "device": "cpu"}))
            self.tensors.append(made)
            return made
        target = args[0] if args else None
        if isinstance(target, Tensor) and target.is_meta and func._schema.is_mutable:
            if any(isinstance(value, Tensor) and value.is_meta for value in (*args[1:], *options.values())):
                raise NotImplementedError(f"{func} takes values of a tensor that is made later")
            number = self.numbers[_storage(target)]
            view = (tuple(target.shape), target.stride(), int(target.storage_offset()))
            whole = func in OVERWRITING and target.numel() == self.tensors[number].numel()
            self.operations.append(Operation(number, func, args[1:], options, view, whole))
        elif torch.Tag.nondeterministic_seeded in func.tags:
            raise NotImplementedError(f"{func} draws random numbers for something else than a parameter")
        return func(*args, **options)

    def names(self, model: PreTrainedModel) -> dict[int, list[str]]:
        """Number of each tensor that is a parameter or buffer of `model` -> its names, several if it is tied."""
        names: dict[int, list[str]] = {}
        for kind in (model.named_parameters, model.named_buffers):
            for name, tensor in kind(remove_duplicate=False):
                if tensor.is_meta:
                    names.setdefault(self.numbers[_storage(tensor)], []).append(name)
        return names


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def built_on_meta(build: Callable[[], PreTrainedModel]) -> tuple[PreTrainedModel, Recording]:
    """What `build` returns, with parameters on the meta device, and the record of their initialisation."""
    recording = Recording()
    with recording:
        model = build()
    return model, recording
