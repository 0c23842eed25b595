"""One new token per row: our decoder for Qwen3, or a model's own forward pass over plain buffers or its own cache."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from pipelines.rollouts import qwen3
from pipelines.rollouts.architectures import has_full_attention
from pipelines.rollouts.qwen3 import Prefill


class Decoder(Protocol):
    """Rows of tokens that grow by one at a time."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Append `tokens` [B] to the rows; returns the logits [B, V] of the tokens after them."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but `rows` [int64]."""
        ...

    def grow(self, capacity: int) -> None:
        """Extend the buffers to `capacity` columns."""
        ...


def decoder_of(model: PreTrainedModel, prefill: Prefill, capacity: int) -> Decoder:
    """The fastest decoder for `model`, after its prompts; `capacity`: columns of its buffers."""
    if qwen3.supports(model):
        return qwen3.Decoder(model, prefill, capacity)
    return (_BufferedCache if has_full_attention(model) else _OwnCache)(model, prefill, capacity)


def causal_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, width, width] of rows padded on the left; `mask` [B, width] is True on their tokens."""
    width = mask.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    additive = torch.zeros(len(mask), 1, width, width, dtype=dtype, device=mask.device)
    # The lowest finite number instead of -inf: a padded query attends to nothing, and must not become NaN.
    return additive.masked_fill_(~(causal & mask[:, None, None, :]), torch.finfo(dtype).min)


class _ForwardPass:
    """Decodes one token per row by the model's own forward pass over a cache of keys and values."""

    def __init__(self, model: PreTrainedModel, prefill: Prefill, *, cache: Cache, mask: Tensor | None) -> None:
        """`mask` has a row of each response, in its last dimension a column per token so far."""
        self._model, self._cache, self._mask = model, cache, mask
        self._position = prefill.lengths[prefill.source][:, None]

    def _keep_rows(self, rows: Tensor) -> None:
        self._position = self._position[rows]
        self._mask = None if self._mask is None else self._mask[rows]

    def __call__(self, tokens: Tensor) -> Tensor:
        """See `Decoder`."""
        if self._mask is not None:
            # A new column: True where True is a token, 0 where the mask is added to scores.
            self._mask = F.pad(self._mask, (0, 1), value=float(self._mask.dtype == torch.bool))
        output = self._model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=self._position,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._position = self._position + 1
        return output.logits[:, -1]


class _BufferedCache(_ForwardPass):
    """Over plain buffers, which are filled in place."""

    def __init__(self, model: PreTrainedModel, prefill: Prefill, capacity: int) -> None:
        self._layers = [
            _Buffer(layer.keys, layer.values, rows=prefill.source, capacity=capacity) for layer in prefill.cache.layers
        ]
        # [B, 1, 1, columns]: the last row of the prompts' mask.
        mask = prefill.mask
        last = None if mask is None else causal_mask(mask, model.dtype)[prefill.source, :, -1:]
        super().__init__(model, prefill, cache=Cache(layers=list(self._layers)), mask=last)

    def keep(self, rows: Tensor) -> None:
        """See `Decoder`."""
        for layer in self._layers:
            layer.reserve(layer.keys, layer.values, rows=rows, capacity=layer.keys.shape[2])
        self._keep_rows(rows)

    def grow(self, capacity: int) -> None:
        """See `Decoder`."""
        rows = torch.arange(len(self._position), device=self._position.device)
        for layer in self._layers:
            layer.reserve(layer.keys, layer.values, rows=rows, capacity=capacity)


class _OwnCache(_ForwardPass):
    """Over the model's own cache, such as one of sliding windows, which grows by itself."""

    def __init__(self, model: PreTrainedModel, prefill: Prefill, capacity: int) -> None:
        """`capacity` is not needed."""
        prefill.cache.batch_select_indices(prefill.source)
        # [B, columns], True on tokens.
        mask = None if prefill.mask is None else prefill.mask[prefill.source]
        super().__init__(model, prefill, cache=prefill.cache, mask=mask)

    def keep(self, rows: Tensor) -> None:
        """See `Decoder`."""
        self._cache.batch_select_indices(rows)
        self._keep_rows(rows)

    def grow(self, capacity: int) -> None:
        """See `Decoder`."""


class _Buffer(DynamicLayer):
    """Keys and values of one layer, [rows, heads, capacity, head_dim] each; the first `length` columns are filled."""

    keys: Tensor  # the base class has None before the first update
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, *, rows: Tensor, capacity: int) -> None:
        super().__init__()
        self.length = keys.shape[2]
        self.is_initialized = True
        self.reserve(keys, values, rows=rows, capacity=capacity)

    def reserve(self, keys: Tensor, values: Tensor, *, rows: Tensor, capacity: int) -> None:
        """Copy the filled columns of `rows` [int64] into new buffers of `capacity` columns."""
        copies = []
        for old in (keys, values):
            new = old.new_empty(len(rows), old.shape[1], capacity, old.shape[3])
            new[:, :, : self.length] = old[rows, :, : self.length]
            copies.append(new)
        self.keys, self.values = copies

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple:
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length
