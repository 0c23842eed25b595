"""Attention of transformers' models by kernels that never hold the scores of a whole row, [heads, S, S].

PyTorch has two such kernels for a GPU. Flash attention takes half precision, grouped queries and no mask; the memory
efficient one takes every type and masks, but not grouped queries. What neither takes goes to plain products, without a
word: in float32 with grouped queries, 34 GB for one row of 16,384 tokens and 32 heads. So keys and values are repeated
where only the second kernel remains: [heads, S, head size], 256 MB each in that example. The CPU has one kernel, for
all of this.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdpa_by_blocks"
"""Name of the attention in transformers."""
FLASH_SIZE = 256
"""Largest head of flash attention."""


def use_attention_by_blocks(model: PreTrainedModel) -> None:
    """Replace PyTorch's attention in `model`, in place, where its choice of a kernel could be the plain products.

    Other implementations, such as FlexAttention, stay.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attention of queries [B, heads, S, d] over keys and values [B, kv heads, T, d] -> [B, heads, S, d].

    Causal, with S = T, without a `mask`, which is bool (True: attend) or added to the scores.
    """
    key, value = ungrouped(query, key, value, masked=mask is not None)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def ungrouped(query: Tensor, key: Tensor, value: Tensor, *, masked: bool) -> tuple[Tensor, Tensor]:
    """Keys and values with a head for each head of `query` where no kernel takes grouped queries; else unchanged."""
    groups = query.shape[1] // key.shape[1]
    dtype = query.dtype
    if torch.is_autocast_enabled(query.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(query.device.type)  # in which attention will be computed
    if groups == 1 or takes_groups(query.device.type, dtype, size=query.shape[-1], masked=masked):
        return key, value
    return repeat_kv(key, groups), repeat_kv(value, groups)


def takes_groups(device: str, dtype: torch.dtype, *, size: int, masked: bool) -> bool:
    """Whether a kernel that holds no row of scores takes grouped queries, for heads of `size`."""
    return device == "cpu" or (dtype in (torch.bfloat16, torch.float16) and size <= FLASH_SIZE and not masked)


def by_blocks(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of transformers: queries [B, heads, S, d], keys and values [B, kv heads, T, d] -> [B, S, heads, d].

    A single query has one row of scores, for which grouped queries are packed by transformers.
    """
    masked = attention_mask is not None
    if query.shape[2] > 1 and (masked or query.shape[2] == key.shape[2]) and options.get("position_bias") is None:
        keys, values = ungrouped(query, key, value, masked=masked)
        if keys is not key:
            causal = options.get("is_causal")
            attended = F.scaled_dot_product_attention(
                query,
                keys,
                values,
                attn_mask=attention_mask,
                dropout_p=options.get("dropout", 0.0),
                scale=options.get("scaling"),
                is_causal=not masked and (getattr(module, "is_causal", True) if causal is None else causal),
            )
            return attended.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


AttentionInterface.register(ATTENTION, by_blocks)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
