"""Engines that sample from a copy of the model on every rank: in bfloat16, or in the type of a sharded learner.

The copy gets its weights from the stream, so it exists once on each rank however the learner is sharded. While the
learner updates, it is in main memory.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.rollouts.engine import IN_RL, EngineSetting
from pipelines.rollouts.transformers_engine import TransformersEngine


class ReplicaEngine(TransformersEngine):
    """Samples from a copy, by default in bfloat16, whose log-probabilities differ by that type's rounding."""

    _model: Any  # a decorator of transformers hides the parameters of `to`
    exact = False
    dtype: torch.dtype | None = torch.bfloat16
    """Type of the copy's parameters where the setting names none; None: the learner's."""

    def __init__(
        self,
        model: PreTrainedModel,
        longest: Callable[[], int] | None = None,
        setting: EngineSetting = IN_RL,
    ) -> None:
        """`longest` is not needed, since the buffers grow."""
        self._device = setting.device or model.device
        replica = _empty_copy(model, setting.dtype or self.dtype or model.dtype, self._device)
        super().__init__(replica, longest, setting)

    @torch.no_grad()
    def take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `Engine.take`."""
        tensors = self._model.state_dict(keep_vars=True)
        for name, tensor in weights:
            tensors[name].copy_(tensor)

    def sleep(self) -> None:
        """Move the copy to main memory."""
        self._model.to("cpu")

    def wake(self) -> None:
        """Move the copy back to the device."""
        self._model.to(self._device)

    def close(self) -> None:
        """Forget the copy."""
        del self._model


class WholeEngine(ReplicaEngine):
    """Samples from a whole copy of a sharded model in the learner's type."""

    exact = True
    dtype = None


def _empty_copy(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model of the same architecture on the device, without weights; buffers are copied, in their own type."""
    with torch.device("meta"):
        replica = type(model)(copy.deepcopy(model.config))
    for parameter in replica.parameters():
        parameter.data = parameter.data.to(dtype)
    replica.to_empty(device=device).requires_grad_(False).eval()
    replica.tie_weights()
    replica.generation_config = copy.deepcopy(model.generation_config)  # it has the end tokens
    buffers = dict(model.named_buffers())
    for name, buffer in replica.named_buffers():
        buffer.copy_(buffers[name])
    return replica
