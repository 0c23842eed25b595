"""Architectures in the words of `model`, from the names that they have in transformers' configurations."""

from typing import Any

import pytest

from pipelines.configuration.start_checkpoint import shape_of

DENSE = {"layers": 2, "d_model": 128, "ffn": 512, "heads": 4, "kv_heads": 4, "head_dim": 32, "tied_embeddings": True}


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({"n_layer": 2, "n_embd": 128, "n_head": 4}, DENSE),
        ({"n_layer": 2, "n_embd": 128, "n_head": 4, "n_inner": 300}, DENSE | {"ffn": 300}),
        ({"num_layers": 2, "d_model": 128, "intermediate_size": 200}, DENSE | {"ffn": 200, "heads": 2, "kv_heads": 2,
                                                                               "head_dim": 64}),
        ({"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
          "head_dim": 48, "intermediate_size": 384, "tie_word_embeddings": False},
         DENSE | {"ffn": 384, "kv_heads": 2, "head_dim": 48, "tied_embeddings": False}),
        ({"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 384,
          "moe_intermediate_size": 96, "num_experts": 8, "num_experts_per_tok": 2},
         DENSE | {"ffn": 96, "experts": 8, "active_experts": 2}),
        ({"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 384,
          "num_local_experts": 8}, DENSE | {"ffn": 384, "experts": 8, "active_experts": 1}),
        ({"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64},
         DENSE | {"d_model": 32, "ffn": 64, "heads": 1, "kv_heads": 1, "head_dim": 32}),
    ],
)  # fmt: skip
def test_an_architecture_by_its_own_names(config: dict[str, Any], shape: dict[str, Any]) -> None:
    assert shape_of(config) == shape
