"""Logits are scaled exactly, whatever architecture, bias and tied weights; where they cannot be, nothing changes."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipelines.errors import StageFailure
from pipelines.models.logit_scale import scale_logits

SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights everywhere, biases and norms included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.1)
    return model.train()


MODELS = {
    "tied norm": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True)),
    "untied norm": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "tied norm with a bias": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)),
    "biases of norm and output layer": lambda: PhiForCausalLM(PhiConfig(**SIZES, tie_word_embeddings=False)),
    "untied, with a norm that stores its scale minus one": lambda: GemmaForCausalLM(
        GemmaConfig(**SIZES, tie_word_embeddings=False)
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("factor", [0.4, 1.7])
def test_every_logit_is_multiplied(name: str, factor: float) -> None:
    model = randomised(MODELS[name]())
    tokens = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(1))
    embedding = model.get_input_embeddings().weight.clone()
    before = model.eval()(input_ids=tokens).logits
    scale_logits(model.train(), factor)
    assert model.training
    torch.testing.assert_close(model.eval()(input_ids=tokens).logits, factor * before, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.get_input_embeddings().weight, embedding)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=2.0, tie_word_embeddings=False)),
        lambda: GemmaForCausalLM(GemmaConfig(**SIZES, tie_word_embeddings=True)),
    ],
)
def test_a_model_whose_logits_no_weight_scales_is_named_and_unchanged(make: object) -> None:
    model = randomised(make())  # type: ignore[operator]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(StageFailure, match=r"no weight scales its logits.*leave out evaluation\.controls\.tempered"):
        scale_logits(model, 0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
