"""What other architectures than ours allow: which layers can be sampled from, and which short cuts give their numbers.

The study's own classes (Qwen3 and MiniMax-M2) take every short cut. For any other class a probe compares each short cut
with the model's own forward pass once, on a few tokens, and only one that agrees is taken.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MiniMaxM2ForCausalLM, PreTrainedModel, Qwen3ForCausalLM

KEEP_KEYS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers whose past is keys and values."""
TOLERANCE = 1e-4
"""Largest difference, relative to the largest number, of a short cut that agrees in float32."""


@dataclass(frozen=True)
class ShortCuts:
    """Which short cuts agree with the model's own forward pass."""

    flat_tokens: bool
    """Running prompts and responses as one flat list of tokens (`pipelines.rollouts.flat_tokens`)."""
    plain_logits: bool
    """Taking logits as the product of the last hidden states and the output layer's weight."""


ALL = ShortCuts(True, True)


def layer_types(model: PreTrainedModel) -> set[str]:
    """The kinds of a model's layers."""
    config = model.config
    if types := getattr(config, "layer_types", None):
        return set(types)
    return {"sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"}


def has_full_attention(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all earlier tokens, so that keys and values are one plain buffer per layer."""
    return layer_types(model) == {"full_attention"}


def check_layers(model: PreTrainedModel) -> None:
    """Raise `ValueError` for a model whose layers keep something else than keys and values."""
    if others := layer_types(model) - KEEP_KEYS:
        raise ValueError(f"rollouts keep the keys and values of each layer, which {sorted(others)} does not have")


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
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError):
            flat = False  # its attention cannot be replaced
        if not flat:
            model.set_attn_implementation(attention)
    model.train(was_training)
    return ShortCuts(flat, plain)


def _agree(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape:
        return False
    # Weights in bfloat16 round more than the short cut changes.
    tolerance = TOLERANCE if first.dtype == torch.float32 else 300 * TOLERANCE
    return bool((first - second).abs().max() <= tolerance * second.abs().max())
