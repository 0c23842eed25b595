"""Prompts and responses as one flat list of tokens without padding, and a model's own forward pass over it.

A prompt that several responses share is in the list once. Everything but attention works on single tokens; attention
copies the tokens of each response, with its prompt, to a row, and rows of similar length run together.
`hidden_states` does so for any model of transformers whose attention can be replaced, through the model's own modules:
so it works where these are sharded, checkpointed, compiled or autocast. `pipelines.rollouts.qwen3` does it faster by
hand where they are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from pipelines.rollouts import attention
from pipelines.rollouts.expert_replay import flat_experts, routing_of

ATTENTION = "rows_of_flat_tokens"
"""Name of the attention in transformers."""

SPREAD = 1.2
"""Rows of attention run together if the longest has at most this many times the tokens of the shortest."""


@dataclass(frozen=True)
class Layout:
    """Prompts and responses as one flat list of N tokens, in which equal prompts are stored once.

    The last token of a response predicts nothing and is left out.
    """

    tokens: Tensor
    """[N]."""
    positions: Tensor
    """[N]: position of each token in its sequence."""
    groups: tuple[Tensor, ...]
    """[R, width] each: the rows of attention as indices into the flat tokens; -1 is padding, on the right."""
    origins: Tensor
    """[N]: index into all flattened groups, one after another, of each flat token; for a prompt in several rows, of one
    of them."""
    predicts: Tensor
    """[sum of response lengths]: index of the flat token from which each response token is predicted."""

    def to(self, device: torch.device) -> "Layout":
        """The same on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("tokens", "positions", "origins", "predicts")}
        return replace(self, groups=tuple(rows.to(device) for rows in self.groups), **moved)


def layout(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, spread: float | None = None
) -> Layout:
    """The layout of `responses`, each after its prompt; none may be empty.

    Rows of attention form one group or, with `spread`, groups in which the longest row has at most `spread` times the
    tokens of the shortest.
    """
    tokens: list[int] = []
    positions: list[int] = []
    rows: list[list[int]] = []
    predicts: list[int] = []
    stored: dict[tuple[int, ...], int] = {}
    """The index of each prompt's first token in `tokens`."""
    for prompt, response in zip(prompts, responses, strict=True):
        # Equal prompts are stored once, every response is appended.
        key = tuple(prompt)
        if key not in stored:
            stored[key] = len(tokens)
            tokens += prompt
            positions += range(len(prompt))
        prompt_start, response_start, size = stored[key], len(tokens), len(prompt)
        # The last token of a response predicts nothing, so it is not computed.
        tokens += response[:-1]
        positions += range(size, size + len(response) - 1)
        rows.append([*range(prompt_start, prompt_start + size), *range(response_start, len(tokens))])
        predicts += [prompt_start + size - 1, *range(response_start, len(tokens))]
    groups = tuple(map(_padded, [rows] if spread is None else _similar(rows, spread)))
    # One place in the groups that holds each token.
    flattened = torch.cat([group.flatten() for group in groups])
    places = (flattened >= 0).nonzero()[:, 0]
    origins = torch.empty(len(tokens), dtype=torch.int64)
    origins[flattened[places]] = places
    return Layout(torch.tensor(tokens), torch.tensor(positions), groups, origins, torch.tensor(predicts))


def _similar(rows: list[list[int]], spread: float) -> list[list[list[int]]]:
    """The rows, sorted by length, in groups of similar length."""
    groups: list[list[list[int]]] = []
    for row in sorted(rows, key=len):
        if not groups or len(row) > spread * len(groups[-1][0]):
            groups.append([])
        groups[-1].append(row)
    return groups


def _padded(rows: list[list[int]]) -> Tensor:
    """[rows, width], with -1 for padding."""
    width = max(map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def hidden_states(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    experts: Sequence[Tensor] | None = None,
) -> Tensor:
    """Final hidden states [sum of response lengths, d] from which each response token is predicted, in order.

    `experts` are those of each prompt with its response (`expert_replay.flat_experts`) in place of the model's choices.

    They come from the forward pass of `model.base_model`, whose attention is replaced for good: without a layout it
    does what `attention.by_blocks` does. So a backward pass that computes a layer again uses the same attention.
    """
    if model.config._attn_implementation != ATTENTION:
        model.set_attn_implementation(ATTENTION)
    flat = layout(prompts, responses, spread=SPREAD).to(model.device)
    if experts is not None:
        routing_of(model).replay(flat_experts(prompts, experts).to(model.device))
    elif hasattr(model, "expert_routing"):
        routing_of(model).replay(None)
    output = model.base_model(
        input_ids=flat.tokens[None],
        position_ids=flat.positions[None],
        # transformers takes a mask of four dimensions for a finished one and makes none; the attention ignores it.
        attention_mask=torch.zeros(1, 1, 1, 1, device=model.device),
        use_cache=False,
        layout=flat,
    )
    return F.embedding(flat.predicts, output.last_hidden_state[0])


@torch.compiler.disable
def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of transformers: queries [1, heads, N, d], keys and values [1, kv heads, N, d] -> [1, N, heads, d]."""
    if layout is None:
        return attention.by_blocks(module, query, key, value, attention_mask, scaling=scaling, **options)
    heads, kv_heads, tokens, size = query.shape[1], key.shape[1], query.shape[2], query.shape[3]
    # [N, (heads + 2 kv heads) d], so that one copy moves queries, keys and values to the rows.
    flat = torch.cat([query, key, value], 1)[0].transpose(0, 1).reshape(tokens, -1)
    results = []
    for rows in layout.groups:
        in_rows = F.embedding(rows.flatten().clamp(min=0), flat).view(*rows.shape, -1, size).transpose(1, 2)
        q, k, v = in_rows.split([heads, kv_heads, kv_heads], 1)
        attended = attention.attend(q, k, v, scale=scaling)
        results.append(attended.transpose(1, 2).reshape(-1, heads * size))
    return F.embedding(layout.origins, torch.cat(results)).view(1, tokens, heads, size), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
