"""The architecture of a model."""

import math
from dataclasses import dataclass

from omegaconf import MISSING

from pipelines.errors import require, require_positive


@dataclass
class ModelConfig:
    """Architecture of a `Qwen3ForCausalLM`, or with `experts` of a `MiniMaxM2ForCausalLM`; the vocabulary comes from
    the tokenizer in `data`."""

    name: str = MISSING
    layers: int = MISSING
    d_model: int = MISSING
    ffn: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING
    head_dim: int = MISSING
    tied_embeddings: bool = True
    experts: int = 0
    """Experts of a layer, each with a hidden size of `ffn`; 0: a dense model."""
    active_experts: int = 0
    """Experts that a token is sent to."""
    balance_rate: float = 1e-3
    """How far the router's bias moves after each step, by the sign of an expert's load error."""

    def __post_init__(self) -> None:
        require_positive("model", self, "layers", "d_model", "ffn", "heads", "kv_heads", "head_dim")
        require(
            self.heads % self.kv_heads == 0,
            "model.kv_heads",
            self.kv_heads,
            fix=f"it must divide model.heads={self.heads}",
        )
        require(
            self.head_dim % 2 == 0,
            "model.head_dim",
            self.head_dim,
            fix="it must be even: rotary embeddings pair channels",
        )
        require(self.experts >= 0, "model.experts", self.experts, fix="it must be 0 or more")
        require(
            math.isfinite(self.balance_rate) and self.balance_rate >= 0,
            "model.balance_rate",
            self.balance_rate,
            fix="it must be 0 or more",
        )
        require(
            (1 if self.experts else 0) <= self.active_experts <= self.experts,
            "model.active_experts",
            self.active_experts,
            fix=f"it must lie between 1 and model.experts={self.experts}" if self.experts else "a dense model has none",
        )
