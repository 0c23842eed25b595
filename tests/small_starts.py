"""Start checkpoints of several architectures made small: a folder each, with the tokenizer of a small corpus."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCABULARY = 304
"""More than the tokenizer's 300: start checkpoints have padded embeddings too."""

SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
WINDOW: dict[str, Any] = {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZE),  # SmolLM too
    "qwen2": Qwen2Config(**SIZE),
    "qwen3": Qwen3Config(**SIZE, head_dim=8),
    "olmo2": Olmo2Config(**SIZE),
    "gemma": GemmaConfig(**SIZE, head_dim=8),
    "gemma2": Gemma2Config(**SIZE, **WINDOW),  # sliding windows, and logits that are more than a product
    "gemma3": Gemma3TextConfig(**SIZE, **WINDOW),
    "mistral": MistralConfig(**SIZE, head_dim=8, sliding_window=8),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True
    ),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, eos_token_id=0),
}


def small_model(name: str) -> PreTrainedModel:
    """A model with random weights, large enough that its distributions differ from token to token."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(6.0)
    return model


def save_start(name: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save the model and the tokenizer as anybody would; returns the folder."""
    small_model(name).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
