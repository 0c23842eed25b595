"""The stream of weights against the file that transformers writes, and back through `from_pretrained`."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus
from pipelines.models import causal_lm
from pipelines.models.causal_lm import build_model, load_model, save_checkpoint
from pipelines.training.weight_stream import weight_stream

SHAPES = {
    "dense, tied": ModelConfig("t", layers=2, d_model=16, ffn=32, heads=2, kv_heads=1, head_dim=8),
    "dense, untied": ModelConfig(
        "t", layers=2, d_model=16, ffn=32, heads=2, kv_heads=1, head_dim=8, tied_embeddings=False
    ),
    "experts, tied": ModelConfig(
        "t", layers=2, d_model=16, ffn=16, heads=2, kv_heads=1, head_dim=8, experts=4, active_experts=2
    ),
    "experts, untied": ModelConfig(
        "t", layers=2, d_model=16, ffn=16, heads=2, kv_heads=1, head_dim=8, experts=4, active_experts=2,
        tied_embeddings=False,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    return corpus.tokenizer


def built(shape: ModelConfig, tokenizer: PreTrainedTokenizerFast):  # type: ignore[no-untyped-def]
    """A random model whose routers have biases, as after training."""
    model = build_model(shape, tokenizer, 1e4, seed=1)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.linspace(-0.1, 0.1, len(buffer)))
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_the_stream_is_the_checkpoint(name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = built(SHAPES[name], tokenizer)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    streamed = dict(weight_stream(model, tied_output=False))
    assert streamed.keys() == saved.keys()
    assert all(torch.equal(streamed[key], saved[key]) for key in saved)
    assert any("e_score_correction_bias" in key for key in saved) == name.startswith("experts")
    # The output layer is always there for an engine, and each tensor under the name that the modules have.
    whole = dict(weight_stream(model))
    assert torch.equal(whole.pop("lm_head.weight"), model.lm_head.weight)
    assert whole.keys() == saved.keys() - {"lm_head.weight"}
    inside = dict(weight_stream(model, checkpoint_names=False))
    assert inside.keys() == model.state_dict().keys()
    assert all(torch.equal(inside[key], tensor) for key, tensor in model.state_dict().items())


def test_another_type_spares_the_biases_of_routers(tokenizer: PreTrainedTokenizerFast) -> None:
    model = built(SHAPES["experts, tied"], tokenizer)
    for name, tensor in weight_stream(model, dtype=torch.bfloat16):
        assert tensor.dtype == (torch.float32 if "bias" in name else torch.bfloat16), name


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("file_bytes", [5 * 2**30, 3000])
def test_a_checkpoint_of_a_stream_loads_as_any_other(
    name: str,
    file_bytes: int,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(causal_lm, "FILE_BYTES", file_bytes)
    model = built(SHAPES[name], tokenizer)
    folders = [tmp_path / "plain", tmp_path / "streamed"]
    save_checkpoint(model, tokenizer, folders[0])
    save_checkpoint(model, tokenizer, folders[1], weights=weight_stream(model, tied_output=False))
    assert (len(list(folders[1].glob("*.safetensors"))) > 1) == (file_bytes == 3000)
    for file in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (folders[0] / file).read_text() == (folders[1] / file).read_text()
    for load in (load_model, AutoModelForCausalLM.from_pretrained):
        loaded = [load(folder).state_dict() for folder in folders]  # type: ignore[operator]
        assert loaded[0].keys() == loaded[1].keys()
        assert all(torch.equal(loaded[1][key], tensor) for key, tensor in model.state_dict().items())
