"""What other architectures than ours allow: which short cuts give the numbers of their own forward pass.

The study's own classes (Qwen3 and MiniMax-M2) take every short cut. For any other class a probe compares each short cut
with the model's own forward pass once, on a few tokens, and only one that agrees is taken. Without any of them a model
is run over whole rows, which every causal language model allows, be its layers attention, recurrent or anything else.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MiniMaxM2ForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from pipelines.configuration.start_checkpoint import NO_LIMIT

TOLERANCE = 1e-4
"""Largest difference, relative to the largest number, of a short cut that agrees in float32."""


@dataclass(frozen=True)
class ShortCuts:
    """Which short cuts agree with the model's own forward pass."""

    flat_tokens: bool
    """Running prompts and responses as one flat list of tokens (`pipelines.rollouts.flat_tokens`)."""
    plain_logits: bool
    """Taking logits as the product of the last hidden states and the output layer's weight."""
    cached: bool = True
    """Decoding over the model's own cache, also of padded prompts whose rows are copied and dropped."""
    packed: bool = True
    """Running several documents in one row, where positions begin again: the second one sees nothing of the first."""


ALL = ShortCuts(True, True)
UNSUPPORTED = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError, KeyError)
"""What a model raises whose code does not have what a short cut needs."""


def positions(model: PreTrainedModel) -> int:
    """Tokens that a model has positions for."""
    return int(getattr(model.config, "max_position_embeddings", None) or NO_LIMIT)


def layer_types(model: PreTrainedModel) -> set[str]:
    """The kinds of a model's layers."""
    config = model.config
    if types := getattr(config, "layer_types", None):
        return set(types)
    return {"sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"}


def has_full_attention(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all earlier tokens, so that keys and values are one plain buffer per layer."""
    return layer_types(model) == {"full_attention"}


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of a model's transformer layers, whatever the architecture calls it."""
    count = model.config.num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of its {count} layers")


def short_cuts(model: PreTrainedModel) -> ShortCuts:
    """The short cuts that agree with this model; probed once, when it is first asked for."""
    known: ShortCuts | None = getattr(model, "short_cuts", None)
    if known is None:
        known = ALL if type(model) in (Qwen3ForCausalLM, MiniMaxM2ForCausalLM) else _probed(model)
        model.short_cuts = known  # type: ignore[assignment]  # copies of the model keep it
    return known


@torch.no_grad()
def _probed(model: PreTrainedModel) -> ShortCuts:
    from pipelines.rollouts import flat_tokens

    any_model: Any = model
    was_training, attention = model.training, model.config._attn_implementation
    model.eval()
    # Two responses to one prompt, and one to another.
    prompts, responses = [[1, 5, 3, 7], [1, 5, 3, 7], [2, 4]], [[6, 8, 9], [3, 2], [8, 1, 2, 3, 4]]
    rows = [torch.tensor([[*p, *r]], device=model.device) for p, r in zip(prompts, responses, strict=True)]
    hidden = [any_model.base_model(input_ids=row, use_cache=False).last_hidden_state[0] for row in rows]
    logits = [any_model(input_ids=row, use_cache=False).logits[0] for row in rows]
    layer: Any = model.get_output_embeddings()
    plain = all(_agree(part @ layer.weight.T, whole) for part, whole in zip(hidden, logits, strict=True))
    flat = False
    if has_full_attention(model):
        expected = [part[len(prompt) - 1 : -1] for part, prompt in zip(hidden, prompts, strict=True)]
        try:
            flat = _agree(flat_tokens.hidden_states(model, prompts, responses), torch.cat(expected))
        except UNSUPPORTED:
            flat = False  # its attention cannot be replaced
        if not flat:
            model.set_attn_implementation(attention)
    cached, packed = _cache_agrees(model, prompts, responses, logits=logits), _packed_agrees(model, rows, hidden)
    model.train(was_training)
    return ShortCuts(flat, plain, cached, packed)


def _cache_agrees(
    model: PreTrainedModel, prompts: list[list[int]], responses: list[list[int]], *, logits: list[torch.Tensor]
) -> bool:
    """Whether the logits of responses, token by token over the cache of padded prompts, are those of whole rows."""
    from pipelines.rollouts.decoders import decoder_of, prefilled

    try:
        source = torch.tensor([0, 1, 1], device=model.device)
        prefill, newest = prefilled(model, [prompts[0], prompts[2]], source, cached=True)
        decoder = decoder_of(model, prefill, capacity=16, cached=True)
        order = torch.tensor([0, 2, 2])
        for step in range(4):
            after = [logits[i][len(prompts[i]) - 1 + step] for i in order]
            if not _agree(newest, torch.stack(after)):
                return False
            if step == 1:  # the first row has ended
                order, kept = order[1:], torch.tensor([1, 2], device=model.device)
                decoder.keep(kept)
            newest = decoder(torch.tensor([responses[i][step] for i in order], device=model.device))
    except UNSUPPORTED:
        return False
    return True


def _packed_agrees(model: PreTrainedModel, rows: list[torch.Tensor], hidden: list[torch.Tensor]) -> bool:
    """Whether a document after another one in a row has the hidden states that it has alone."""
    any_model: Any = model
    first, second = rows[0], rows[2]
    restarting = [torch.arange(row.shape[1], device=row.device) for row in (first, second)]
    try:
        output = any_model.base_model(
            input_ids=torch.cat([first, second], 1), position_ids=torch.cat(restarting)[None], use_cache=False
        )
    except UNSUPPORTED:
        return False
    return _agree(output.last_hidden_state[0, first.shape[1] :], hidden[2])


def _agree(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape:
        return False
    # Weights in bfloat16 round more than the short cut changes.
    tolerance = TOLERANCE if first.dtype == torch.float32 else 300 * TOLERANCE
    return bool((first - second).abs().max() <= tolerance * second.abs().max())
