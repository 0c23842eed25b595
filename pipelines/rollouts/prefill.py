"""The forward pass over prompts before the first token: in columns, so that its memory is bounded for long ones.

What a pass holds besides keys and values grows with its tokens, and its mask with tokens times width. Later columns
attend to the keys and values of earlier ones, so the result is that of one pass up to rounding.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

PREFILL_TOKENS = 1 << 14
"""Most tokens of padded prompts that run at a time, where that leaves `LEAST_COLUMNS`."""
MASK_ENTRIES = 1 << 27
"""Most entries of their mask."""
LEAST_COLUMNS = 128
"""Columns that always run at a time: a small model's prompts are one pass."""


def columns_at_a_time(prompts: int, width: int) -> int:
    """Columns of `prompts` padded prompts of `width` tokens that run at a time."""
    return max(LEAST_COLUMNS, min(PREFILL_TOKENS, MASK_ENTRIES // width) // prompts)


def run_prompts(model: PreTrainedModel, ids: Tensor, *, positions: Tensor | None = None, mask: Tensor | None) -> Any:
    """The model's output, with its cache and the last logits [B, 1, V], for prompts `ids` [B, width].

    They are padded on the left; `mask` [B, width] is True on their tokens, None without padding. For models with full
    attention in every layer.
    """
    own: Any = model
    count, width = ids.shape
    size = columns_at_a_time(count, width)
    output: Any = None
    for start in range(0, width, size):
        columns = slice(start, min(start + size, width))
        given = None
        if mask is not None or start:
            known = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
            given = causal_mask(known[:, : columns.stop], model.dtype, first=start)
        earlier = {} if output is None else {"past_key_values": output.past_key_values}
        if positions is not None:
            earlier["position_ids"] = positions[:, columns]
        output = own(input_ids=ids[:, columns], attention_mask=given, use_cache=True, logits_to_keep=1, **earlier)
    return output


def causal_mask(mask: Tensor, dtype: torch.dtype, *, first: int = 0) -> Tensor:
    """Additive mask [B, 1, width - first, width] of the queries from `first` on, in rows padded on the left.

    `mask` [B, width] is True on their tokens.
    """
    width = mask.shape[1]
    causal = torch.ones(width - first, width, dtype=torch.bool, device=mask.device).tril(first)
    additive = torch.zeros(len(mask), 1, width - first, width, dtype=dtype, device=mask.device)
    # The lowest finite number instead of -inf: a padded query attends to nothing, and must not become NaN.
    return additive.masked_fill_(~(causal & mask[:, None, None, :]), torch.finfo(dtype).min)
