"""One new token per row: our decoder for Qwen3, or a model's own forward pass over buffers, its cache or whole rows."""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from pipelines.data.tokenizer import end_tokens
from pipelines.rollouts import qwen3
from pipelines.rollouts.architectures import has_full_attention, layer_types, short_cuts
from pipelines.rollouts.prefill import causal_mask, run_prompts
from pipelines.rollouts.qwen3 import Prefill

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""What architectures and versions of transformers call a model's cache."""


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


def decoder_of(model: PreTrainedModel, prefill: Prefill, capacity: int, *, cached: bool | None = None) -> Decoder:
    """The fastest decoder for `model`, after its prompts; `capacity`: columns of its buffers.

    `cached`: whether its cache is used, by default if that agrees with its forward pass.
    """
    if qwen3.supports(model):
        return qwen3.Decoder(model, prefill, capacity)
    if not (short_cuts(model).cached if cached is None else cached):
        return _WholeRows(model, prefill)
    return (_BufferedCache if has_full_attention(model) else _OwnCache)(model, prefill, capacity)


def prefilled(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], source: Tensor, *, cached: bool | None = None
) -> tuple[Prefill, Tensor]:
    """Run `prompts`, padded on the left, once; row b of the batch continues `prompts[source[b]]`.

    Also returns the logits [B, V] of each row's first token. For `cached` see `decoder_of`.
    """
    device, padding = model.device, (end_tokens(model) or [0])[0]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    ids = torch.tensor([[padding] * (width - len(p)) + list(p) for p in prompts], device=device)
    if not (short_cuts(model).cached if cached is None else cached):
        prefill = Prefill(ids, None, source, lengths, None)
        once = Prefill(ids, None, torch.arange(len(prompts), device=device), lengths, None)
        return prefill, _WholeRows(model, once).newest()[source]
    positions = (torch.arange(width, device=device) - (width - lengths)[:, None]).clamp(min=0)
    # [prompts, width], True on the prompts' tokens; no mask at all if all prompts are equally long.
    mask = torch.arange(width, device=device) >= (width - lengths)[:, None] if int(lengths.min()) < width else None
    output: Any
    if has_full_attention(model):
        output = run_prompts(model, ids, positions=positions, mask=mask)
    else:
        # Layers with other attention make their own masks from one of two dimensions.
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = next((output[name] for name in CACHE_NAMES if name in output), None)
    if cache is None:
        raise ValueError(f"{type(model).__name__} returns no cache")
    return Prefill(ids, cache, source, lengths, mask), output.logits[source, -1]


class _ForwardPass:
    """Decodes one token per row by the model's own forward pass over a cache of keys and values."""

    def __init__(self, model: PreTrainedModel, prefill: Prefill, *, cache: Cache, mask: Tensor | None) -> None:
        """`mask` has a row of each response, in its last dimension a column per token so far."""
        self._model, self._cache, self._mask = model, cache, mask
        arguments = inspect.signature(model.forward).parameters
        self._cache_name = next((name for name in CACHE_NAMES if name in arguments), "past_key_values")
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
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: self._cache},
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
        last = None if mask is None else causal_mask(mask[prefill.source], model.dtype, first=prefill.width - 1)
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
    """Over the model's own cache, such as one of sliding windows or of recurrent states, which grows by itself."""

    def __init__(self, model: PreTrainedModel, prefill: Prefill, capacity: int) -> None:
        """`capacity` is not needed."""
        prefill.cache.reorder_cache(prefill.source)  # despite its name it copies and drops rows too
        # [B, columns], True on tokens.
        mask = None if prefill.mask is None else prefill.mask[prefill.source]
        if layer_types(model) == {"linear_attention"}:
            mask = None  # padding has passed these layers, and they multiply by the mask of the new token alone
        super().__init__(model, prefill, cache=prefill.cache, mask=mask)

    def keep(self, rows: Tensor) -> None:
        """See `Decoder`."""
        self._cache.reorder_cache(rows)  # type: ignore[arg-type]  # indices of any kind
        self._keep_rows(rows)

    def grow(self, capacity: int) -> None:
        """See `Decoder`."""


class _WholeRows:
    """Over no cache: each token runs the whole rows again, padded on the right, which a causal model does not see."""

    def __init__(self, model: PreTrainedModel, prefill: Prefill) -> None:
        self._model: Any = model
        self._plain = short_cuts(model).plain_logits
        self._lengths = prefill.lengths
        columns = torch.arange(prefill.width, device=prefill.ids.device) + (prefill.width - self._lengths)[:, None]
        # The prompts moved to the left; what follows them is overwritten, or never seen.
        self._ids = prefill.ids.gather(1, columns.clamp(max=prefill.width - 1))
        self.keep(prefill.source)

    def __call__(self, tokens: Tensor) -> Tensor:
        """See `Decoder`."""
        self._ids = F.pad(self._ids, (0, 1))
        self._ids[torch.arange(len(tokens), device=tokens.device), self._lengths] = tokens
        self._lengths = self._lengths + 1
        return self.newest()

    def newest(self) -> Tensor:
        """The logits [B, V] of the tokens after the rows."""
        rows = torch.arange(len(self._ids), device=self._ids.device)
        if not self._plain:
            logits: Tensor = self._model(input_ids=self._ids, use_cache=False).logits
            return logits[rows, self._lengths - 1]
        hidden = self._model.base_model(input_ids=self._ids, use_cache=False).last_hidden_state
        product: Tensor = self._model.get_output_embeddings()(hidden[rows, self._lengths - 1])
        return product

    def keep(self, rows: Tensor) -> None:
        """See `Decoder`."""
        self._ids, self._lengths = self._ids[rows], self._lengths[rows]

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
