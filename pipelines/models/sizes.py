"""Sizes of models and their operations per token: arithmetic on a configuration, without torch.

A token costs 2 operations for each weight that it is multiplied with (all but the embedding table; only the active
experts of a mixture), and 4 d for each position that it attends to, with d = heads x head_dim, in every layer. The
backward pass costs twice the forward pass. So training costs the usual 6 N D plus attention.
"""

from collections.abc import Mapping
from typing import Any

PEAKS = {"h100": 989e12, "h200": 989e12, "a100": 312e12}
"""Dense bfloat16 operations per second of a GPU by its data sheet."""


def parameters(model: Mapping[str, Any], vocabulary: int) -> int:
    """Parameters of the model: a Qwen3ForCausalLM, or with experts a MiniMaxM2ForCausalLM. Tied ones count once."""
    tables = 1 if model["tied_embeddings"] else 2
    return tables * vocabulary * model["d_model"] + body_parameters(model)


def body_parameters(model: Mapping[str, Any]) -> int:
    """Parameters outside the embedding table and the output layer."""
    return _body(model, max(1, model.get("experts", 0)))


def active_body_parameters(model: Mapping[str, Any]) -> int:
    """The same with only the experts that one token is sent to: the second number in a mixture's name."""
    return _body(model, model["active_experts"] if model.get("experts", 0) else 1)


def _body(model: Mapping[str, Any], experts: int) -> int:
    attention, norms = _attention(model)
    router = model.get("experts", 0) * model["d_model"]
    # A layer: attention, norms of queries and keys, two norms of the residual, router, three matrices per expert.
    layer = attention + norms + 2 * model["d_model"] + router + 3 * model["d_model"] * model["ffn"] * experts
    return int(model["layers"] * layer + model["d_model"])


def active_parameters(model: Mapping[str, Any], vocabulary: int) -> int:
    """Weights that one token is multiplied with: the output layer and the active experts, no embedding table."""
    attention, _ = _attention(model)
    experts = model.get("experts", 0)
    ffn = 3 * model["d_model"] * model["ffn"] * (model["active_experts"] if experts else 1)
    return int(model["layers"] * (attention + experts * model["d_model"] + ffn) + vocabulary * model["d_model"])


def _attention(model: Mapping[str, Any]) -> tuple[int, int]:
    """Weights of a layer's four attention projections, and scales of its query and key norms."""
    queries, keys = model["heads"] * model["head_dim"], model["kv_heads"] * model["head_dim"]
    # A mixture has a scale for each query and key feature; a dense model shares them between heads.
    norms = queries + keys if model.get("experts", 0) else 2 * model["head_dim"]
    return model["d_model"] * (2 * queries + 2 * keys), norms


def activations(model: Mapping[str, Any], checkpointing: str = "none") -> float:
    """Numbers per token that one layer of transformers keeps for its backward pass.

    Norms, projections and residuals take 6 d + 4 q + 4 kv, the gated product 4 f, an expert's copies of its tokens
    2.5 d. `selective` checkpointing keeps products and attention, `full` only the layer's input. A test compares this
    with the tensors that torch saves.
    """
    d, q, kv = model["d_model"], model["heads"] * model["head_dim"], model["kv_heads"] * model["head_dim"]
    experts = model.get("experts", 0)
    active = model["active_experts"] if experts else 1
    ffn = model["ffn"] * active
    match checkpointing:
        case "full":
            return float(d)
        case "selective":
            return float(3 * d + 2 * q + 2 * kv + 2 * ffn + (active * d if experts else 0))
        case _:
            return 6 * d + 4 * q + 4 * kv + 4 * ffn + (2.5 * active * d + 4 * experts if experts else 0)


def forward_operations(model: Mapping[str, Any], vocabulary: int, *, tokens: float, length: float) -> float:
    """Operations of a forward pass over `tokens` tokens in causal rows of `length`; training takes three times that."""
    # The mean over the causal positions 1, 2, ..., length.
    attended = (length + 1) / 2
    per_token = 2 * active_parameters(model, vocabulary) + (
        4 * model["layers"] * model["heads"] * model["head_dim"] * attended
    )
    return tokens * per_token
