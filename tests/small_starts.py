"""Start checkpoints of several architectures made small: a folder each, with the tokenizer of a small corpus."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    RwkvConfig,
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
RECURRENT: dict[str, Any] = {
    name: SIZE[name]
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "bos_token_id", "eos_token_id", "pad_token_id")
}

STATEFUL = ("falcon_h1", "mamba", "mamba2", "qwen3_next", "rwkv")
"""Architectures whose layers carry a state from token to token."""

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
    # Linear attention and state spaces: no keys and values in some layers or in all of them.
    "falcon_h1": FalconH1Config(
        **SIZE,
        head_dim=8,
        mamba_d_ssm=64,
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_d_state=8,
        mamba_chunk_size=16,
    ),
    "mamba": MambaConfig(**RECURRENT, state_size=4),
    "mamba2": Mamba2Config(**RECURRENT, state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=16),
    "qwen3_next": Qwen3NextConfig(
        **SIZE,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
    ),
    "rwkv": RwkvConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        attention_hidden_size=32,
        context_length=256,
        bos_token_id=0,
        eos_token_id=0,
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
                # Scans and decays amplify rounding with their weights.
                parameter.mul_(2.0 if name in STATEFUL else 6.0)
    return model


def save_start(name: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save the model and the tokenizer as anybody would; returns the folder."""
    small_model(name).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
