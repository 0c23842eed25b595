"""Deferred models against those that are built or loaded at once: every number, name and setting is the same."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus
from pipelines.errors import StageFailure
from pipelines.models import causal_lm
from pipelines.models.causal_lm import build_model, load_model, save_checkpoint
from pipelines.models.deferred import is_deferred, when_made
from pipelines.models.meta_build import built_on_meta
from pipelines.rollouts.architectures import decoder_layers
from pipelines.training.weight_stream import weight_stream

DENSE = {"layers": 3, "d_model": 16, "ffn": 32, "heads": 2, "kv_heads": 1, "head_dim": 8}
MIXTURE = DENSE | {"ffn": 16, "experts": 4, "active_experts": 2}
SHAPES = {
    "dense, tied": ModelConfig("t", **DENSE),
    "dense, untied": ModelConfig("t", **DENSE, tied_embeddings=False),
    "experts, tied": ModelConfig("t", **MIXTURE),
    "experts, untied": ModelConfig("t", **MIXTURE, tied_embeddings=False),
}


def made(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its weights; each layer has its own when it is its turn, and no later one has."""
    assert is_deferred(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    layers = list(decoder_layers(model))
    for index, layer in enumerate(when_made(model, layers)):
        assert layer is layers[index]
        assert [any(p.is_meta for p in other.parameters()) for other in layers] == [
            other > index for other in range(len(layers))
        ]
    assert not is_deferred(model)
    return model


def assert_same(model: PreTrainedModel, expected: PreTrainedModel) -> None:
    """Compare names, values, types, what is trained, and the configurations."""
    for kind in ("state_dict", "named_parameters", "named_buffers"):
        tensors, others = (dict(getattr(either, kind)()) for either in (model, expected))
        assert list(tensors) == list(others)
        for name, tensor in tensors.items():
            assert (tensor.dtype, tensor.requires_grad) == (others[name].dtype, others[name].requires_grad), name
            assert torch.equal(tensor, others[name]), name
    assert model.training == expected.training
    assert model.config.to_dict() == expected.config.to_dict()
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()


@pytest.mark.parametrize("name", SHAPES)
def test_new_weights_are_those_of_the_whole_model(name: str, corpus: Corpus) -> None:
    expected = build_model(SHAPES[name], corpus.tokenizer, 1e4, seed=5, length=64)
    state = torch.get_rng_state()
    model = made(build_model(SHAPES[name], corpus.tokenizer, 1e4, seed=5, length=64, deferred=True))
    assert_same(model, expected)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("file_bytes", [5 * 2**30, 3000])
@pytest.mark.parametrize("name", SHAPES)
def test_a_checkpoint_is_that_of_the_whole_model(
    name: str, file_bytes: int, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one file and in several, with another RoPE base, with router biases, and saved again under the same names."""
    monkeypatch.setattr(causal_lm, "FILE_BYTES", file_bytes)
    source = build_model(SHAPES[name], corpus.tokenizer, 1e4, seed=6)
    for buffer_name, buffer in source.named_buffers():
        if buffer_name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.linspace(-0.1, 0.1, len(buffer)))
    save_checkpoint(source, corpus.tokenizer, tmp_path / "start", weights=weight_stream(source, tied_output=False))
    assert (len(list((tmp_path / "start").glob("*.safetensors"))) > 1) == (file_bytes == 3000)
    options = {"rope_base": 5e4, "tokenizer": corpus.tokenizer, "length": 32}
    expected = load_model(tmp_path / "start", **options)  # type: ignore[arg-type]
    model = made(load_model(tmp_path / "start", **options, deferred=True))  # type: ignore[arg-type]
    assert_same(model, expected)
    saved = [dict(weight_stream(either, tied_output=False)) for either in (model, expected)]
    assert list(saved[0]) == list(saved[1])


@pytest.mark.parametrize("kind", ["new", "checkpoint"])
def test_types_and_frozen_copies_stay(kind: str, corpus: Corpus, tmp_path: Path) -> None:
    """A model in bfloat16 and its frozen copy, as RL has them, take the weights of the whole ones."""
    whole = build_model(SHAPES["experts, tied"], corpus.tokenizer, 1e4, seed=7)
    deferred = build_model(SHAPES["experts, tied"], corpus.tokenizer, 1e4, seed=7, deferred=True)
    if kind == "checkpoint":
        save_checkpoint(whole, corpus.tokenizer, tmp_path / "start")
        whole, deferred = (load_model(tmp_path / "start", deferred=later) for later in (False, True))
    pairs = []
    for model in (whole, deferred):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        pairs.append((model, copy.deepcopy(model).eval().requires_grad_(False)))
    for expected, model in zip(*pairs, strict=True):
        assert_same(made(model), expected)


def test_a_missing_weight_is_named(corpus: Corpus, tmp_path: Path) -> None:
    save_checkpoint(build_model(SHAPES["dense, tied"], corpus.tokenizer, 1e4, seed=8), corpus.tokenizer, tmp_path / "c")
    path = tmp_path / "c" / "model.safetensors"
    tensors = load_file(path)
    norm = tensors.pop("model.layers.1.input_layernorm.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    model = load_model(tmp_path / "c", deferred=True)
    with pytest.raises(StageFailure, match=r"layer 1 has no input_layernorm.weight"):
        list(when_made(model, decoder_layers(model)))
    save_file(tensors | {"model.layers.1.input_layernorm.weight": norm[:-1]}, path, metadata={"format": "pt"})
    model = load_model(tmp_path / "c", deferred=True)
    with pytest.raises(StageFailure, match=r"model.layers.1.input_layernorm.weight has shape \[15\]"):
        list(when_made(model, decoder_layers(model)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StageFailure, match="its weights cannot be read"):
        load_model(tmp_path / "c", deferred=True)
    path.unlink()
    with pytest.raises(StageFailure, match="not a complete checkpoint"):
        load_model(tmp_path / "c", deferred=True)


def test_another_architecture_is_loaded_at_once(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(tmp_path, deferred=True)
    assert not is_deferred(model)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert list(when_made(model, decoder_layers(model))) == list(decoder_layers(model))


class Drawing(nn.Module):
    """Takes random numbers, or values of another parameter, in a way that is not replayed."""

    def __init__(self, draw: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2) if draw else torch.ones(2, 2))
        with torch.no_grad():
            self.weight.copy_(nn.Linear(2, 2).weight)


@pytest.mark.parametrize("draw", [True, False])
def test_what_cannot_be_replayed_is_refused(draw: bool) -> None:
    with pytest.raises(NotImplementedError, match="draws random numbers" if draw else "made later"):
        built_on_meta(lambda: Drawing(draw))  # type: ignore[arg-type, return-value]


def test_values_are_those_of_the_last_operation() -> None:
    """Partial changes of a tensor after it was drawn, as an embedding has them for the token that pads."""
    from pipelines.models.seeded_weights import SeededWeights

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Embedding(5, 4, padding_idx=2)
            self.second = nn.Linear(4, 5)

    torch.manual_seed(9)
    expected = Padded().state_dict()
    module, recording = built_on_meta(Padded)  # type: ignore[arg-type]
    shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in recording.tensors]
    weights = SeededWeights(9, recording.operations, shapes, recording.names(module))
    assert list(weights.fill(module)) == []
    values: dict[str, Tensor] = module.state_dict()
    assert all(torch.equal(values[name], tensor) for name, tensor in expected.items())
    assert (values["first.weight"][2] == 0).all()
    assert values["first.weight"][1].any()
