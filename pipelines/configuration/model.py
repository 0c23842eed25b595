"""The architecture of a model."""

from dataclasses import dataclass

from omegaconf import MISSING

from pipelines.errors import require, require_not_negative, require_positive


@dataclass
class ModelConfig:
    """Architecture of a `Qwen3ForCausalLM` or, with `experts`, a `MiniMaxM2ForCausalLM`.

    The vocabulary comes from the tokenizer in `data`.
    """

    name: str = MISSING
    """Label of the model in tables."""
    layers: int = MISSING
    """Number of transformer layers."""
    d_model: int = MISSING
    """Width of the residual stream."""
    ffn: int = MISSING
    """Hidden size of the feed-forward network, or of each expert."""
    heads: int = MISSING
    """Number of query heads."""
    kv_heads: int = MISSING
    """Number of key and value heads; divides `heads`."""
    head_dim: int = MISSING
    """Size of a head; even. Ours."""
    tied_embeddings: bool = True
    """Whether the output layer shares its weights with the token embeddings. Ours."""
    experts: int = 0
    """Number of experts per layer; 0: a dense model."""
    active_experts: int = 0
    """Number of experts that each token is sent to; 0 in a dense model."""
    balance_rate: float = 1e-3
    """Change of an expert's router bias per optimizer step, against the sign of its load error. Ours."""

    def __post_init__(self) -> None:
        require_positive("model", self, "layers", "d_model", "ffn", "heads", "kv_heads", "head_dim")
        require_not_negative("model", self, "experts", "balance_rate")
        self._check_heads()
        require(
            (1 if self.experts else 0) <= self.active_experts <= self.experts,
            "model.active_experts",
            self.active_experts,
            fix=f"it must be between 1 and model.experts={self.experts}" if self.experts else "a dense model has none",
        )

    def _check_heads(self) -> None:
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
