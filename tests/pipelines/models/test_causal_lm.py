"""The study's models on meta tensors, which take no memory, and one-layer copies that train; checkpoints that load
unchanged, and mid-training with another RoPE base."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pipelines.configuration.compute import ComputeConfig
from pipelines.configuration.data import DataConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.errors import StageFailure
from pipelines.models import causal_lm
from pipelines.models.causal_lm import (
    build_model,
    empty_model,
    load_model,
    model_config,
    parameter_count,
    save_checkpoint,
)
from pipelines.models.sizes import active_body_parameters, body_parameters, parameters
from pipelines.rollouts.engine import Sampling
from pipelines.rollouts.scoring import score
from pipelines.rollouts.transformers_engine import TransformersEngine
from pipelines.training.causal_loss import CausalLoss, positions_in_documents
from pipelines.training.optimizer import adamw
from pipelines.training.parallel import prepare as set_up
from shaping import NAMED, Objective, shaped_cross_entropy
from sweeps.compose.cells import compose_cell

VOCABULARY = 151_936
TABLE_1 = {
    # layers, width, hidden, heads, kv heads, experts, active; parameters in all, and those that a token meets
    "1B": ((28, 1536, 4608, 16, 4, 0, 0), 1.05e9, None),
    "4B": ((36, 2560, 9728, 32, 8, 0, 0), 4.02e9, None),
    "5B-A0.3B": ((12, 1024, 320, 32, 4, 384, 12), 4.80e9, 0.26e9),
    "10B-A0.5B": ((16, 1536, 320, 32, 4, 384, 12), 9.53e9, 0.52e9),
}
MIXTURE = ModelConfig("m", layers=2, d_model=16, ffn=16, heads=2, kv_heads=1, head_dim=8, experts=4, active_experts=2)
DENSE = ModelConfig("d", layers=2, d_model=16, ffn=32, heads=2, kv_heads=1, head_dim=8)


def shape_of(name: str) -> ModelConfig:
    return compose_cell([f"model={name}"]).model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(DataConfig("t", [], ["chain3", "boolean"], 300, 0.5, 0.5, 300, 8), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    return corpus.tokenizer


@pytest.mark.parametrize("name", TABLE_1)
def test_table_1_on_meta_tensors(name: str) -> None:
    columns, total, active = TABLE_1[name]
    model = shape_of(name)
    shape = (model.layers, model.d_model, model.ffn, model.heads, model.kv_heads, model.experts, model.active_experts)
    assert shape == columns
    with torch.device("meta"):
        built = empty_model(model_config(model, VOCABULARY, 1e4))
    assert type(built).__name__ == ("MiniMaxM2ForCausalLM" if model.experts else "Qwen3ForCausalLM")
    counted = parameter_count(built)
    assert counted == pytest.approx(total, rel=0.003)
    assert counted == parameters(vars(model), VOCABULARY)
    assert counted - built.lm_head.weight.numel() == body_parameters(vars(model))
    if active is not None:
        assert active_body_parameters(vars(model)) == pytest.approx(active, rel=0.003)
    else:
        assert active_body_parameters(vars(model)) == body_parameters(vars(model))


@pytest.mark.parametrize(
    ("name", "vocabulary", "millions"),
    [("micro", 2048, 5), ("micro-moe", 2048, 5), ("20M", 16384, 20), ("100M", 32768, 100), ("nano-moe", 640, 0.6)],
)
def test_smaller_models_have_the_size_in_their_name(name: str, vocabulary: int, millions: float) -> None:
    assert parameters(vars(shape_of(name)), vocabulary) == pytest.approx(millions * 1e6, rel=0.02)


@pytest.mark.parametrize("name", TABLE_1)
def test_one_layer_of_each_trains(name: str) -> None:
    """With the original widths, fewer experts and a vocabulary of 512."""
    model = shape_of(name)
    model.layers = 1
    if model.experts:
        model.experts, model.active_experts = 24, 3
    torch.manual_seed(0)
    built = empty_model(model_config(model, 512, 1e4)).train()
    loss = CausalLoss(built, Objective(-0.25))
    optimizer = adamw(built, learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    batch = torch.randint(0, 512, (1, 33))
    before = [p.detach().clone() for p in built.parameters()]
    values = []
    for _ in range(2):
        value = loss(batch)[0]
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.item())
    assert values[1] < values[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, built.parameters(), strict=True))


@pytest.mark.parametrize("shape", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_a_checkpoint_loads_unchanged(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, shape: ModelConfig) -> None:
    model = build_model(shape, tokenizer, 1e4, seed=3).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(-0.1, 0.1)
    save_checkpoint(model, tokenizer, tmp_path / "step-000001", card="# A card\n")
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "step-000001")
    ids = torch.tensor([tokenizer.encode("Q: 1+2-3")])
    torch.testing.assert_close(by_transformers(ids).logits, model(ids).logits)
    loaded = load_model(tmp_path / "step-000001")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert (tmp_path / "step-000001" / "README.md").read_text() == "# A card\n"
    # where transformers 4 looks for these
    assert json.loads((tmp_path / "step-000001" / "config.json").read_text())["rope_theta"] == 1e4
    settings = json.loads((tmp_path / "step-000001" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_mid_training_takes_another_rope_base(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    for shape in (DENSE, MIXTURE):
        save_checkpoint(build_model(shape, tokenizer, 1e4, seed=3), tokenizer, tmp_path / "step-000001")
        raised = load_model(tmp_path / "step-000001", rope_base=1e6)
        expected = 1e6 ** -(torch.arange(0, 8, 2) / 8)
        torch.testing.assert_close(raised.model.rotary_emb.inv_freq, expected)
        save_checkpoint(raised, tokenizer, tmp_path / "step-000002")
        torch.testing.assert_close(load_model(tmp_path / "step-000002").model.rotary_emb.inv_freq, expected)


def test_a_checkpoint_that_does_not_fit_is_reported(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    small = model_config(DENSE, 100, 1e4)
    save_checkpoint(empty_model(small), tokenizer, tmp_path / "small")
    with pytest.raises(StageFailure, match="vocabulary of 100 is smaller than the tokenizer's"):
        load_model(tmp_path / "small", tokenizer=tokenizer)
    save_checkpoint(build_model(DENSE, tokenizer, 1e4, seed=3), tokenizer, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(StageFailure, match="cut"):
        load_model(tmp_path / "cut")
    with pytest.raises(StageFailure, match="not a complete checkpoint"):
        load_model(tmp_path / "nothing")


@pytest.mark.parametrize("shape", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_tokens_attend_to_their_own_document(tokenizer: PreTrainedTokenizerFast, shape: ModelConfig) -> None:
    """A document's logits do not depend on the documents before it in the row."""
    model = build_model(shape, tokenizer, 1e4, seed=3).eval()
    end = tokenizer.eos_token_id
    first, second = [end, 40, 41, 42, 43], [end, 50, 51, 52]
    row = torch.tensor([[*first, *second]])
    positions = positions_in_documents(row, end)
    assert positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]
    packed = model(input_ids=row, position_ids=positions).logits
    torch.testing.assert_close(packed[:, :5], model(input_ids=torch.tensor([first])).logits)
    torch.testing.assert_close(packed[:, 5:], model(input_ids=torch.tensor([second])).logits)
    assert positions_in_documents(torch.tensor([[7, 8, end, 9]]), end).tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_activation_checkpointing_changes_no_gradient(tokenizer: PreTrainedTokenizerFast, checkpointing: str) -> None:
    batch = torch.randint(0, len(tokenizer), (2, 17))
    for shape in (DENSE, MIXTURE):
        gradients = []
        for activations in ("none", checkpointing):
            model = build_model(shape, tokenizer, 1e4, seed=3).train()
            set_up(model, ComputeConfig(activation_checkpointing=activations), precision="float32", documents=False)
            CausalLoss(model, Objective())(batch)[0].backward()
            gradients.append([p.grad for p in model.parameters()])
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_the_fused_loss_takes_over_for_large_logits(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = torch.randint(0, len(tokenizer), (2, 17))
    for objective in (Objective(), Objective(-0.25, 0.1, -0.1, 8)):
        results = []
        for limit in (2**25, 0):
            monkeypatch.setattr("pipelines.training.causal_loss.CHUNK_BYTES", limit)
            model = build_model(DENSE, tokenizer, 1e4, seed=3).train()
            loss, stats = CausalLoss(model, objective)(batch, True)
            loss.backward()
            assert stats is not None
            results.append((loss.detach(), stats.entropy, [p.grad for p in model.parameters()]))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("objective", [*NAMED.values(), Objective(-0.25, 0.1, -0.1, 8)], ids=str)
def test_statistics_have_one_head_for_all_objectives(
    tokenizer: PreTrainedTokenizerFast, objective: Objective, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mass of the 5 likeliest tokens, whatever the objective's head. Loss and gradients do not change by a bit, so
    training is the same whichever steps have a row in the ledger."""
    monkeypatch.setattr("pipelines.training.causal_loss.CHUNK_BYTES", 0 if fused else 2**25)
    batch = torch.randint(0, len(tokenizer), (2, 17))
    objective = replace(objective, top_k=min(objective.top_k, 20))
    model = build_model(DENSE, tokenizer, 1e4, seed=3).train()
    losses, gradients = [], []
    for statistics in (False, True):
        model.zero_grad()
        loss, measured = CausalLoss(model, objective, top_k=5)(batch, statistics)
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert torch.equal(losses[0], losses[1])
    assert all(torch.equal(without, with_statistics) for without, with_statistics in zip(*gradients, strict=True))
    expected = shaped_cross_entropy(model(batch[:, :-1]).logits, batch[:, 1:], objective)
    torch.testing.assert_close(losses[0], expected.detach(), rtol=1e-5, atol=0)
    probabilities = model(batch[:, :-1]).logits.detach().double().softmax(-1)
    assert measured is not None
    torch.testing.assert_close(
        measured.head_mass.double(), probabilities.sort(-1, descending=True).values[..., :5].sum(-1), rtol=1e-5, atol=0
    )


def test_a_mixture_samples_and_is_scored(tokenizer: PreTrainedTokenizerFast) -> None:
    """The rollout engine's log-probabilities of its samples equal those of the learner."""
    model = build_model(MIXTURE, tokenizer, 1e4, seed=3).eval()
    engine = TransformersEngine(model)
    prompts = [tokenizer.encode("Q: 1+2"), tokenizer.encode("Q: 3-1+4")]
    rollouts = engine.generate(prompts, Sampling(1.0, 1.0, 6), n=3, seed=[0])
    responses = rollouts.responses()
    scores = score(model, [prompts[i // 3] for i in range(6)], responses)
    sampled = torch.cat([rollouts.log_probs[i, : len(r)] for i, r in enumerate(responses)])
    torch.testing.assert_close(sampled, scores.log_probs.detach(), rtol=1e-4, atol=1e-4)


OLDER = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
tokens = torch.tensor([tokenizer("7-5+3 ->")["input_ids"] * 4])
print(json.dumps([transformers.__version__, tokens.tolist(), model(tokens).logits.tolist()]))
"""


@pytest.mark.ci_only
def test_transformers_4_computes_the_same_logits(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """With a base of the rotary embedding other than 1e4, which the older version takes if it finds none.

    It does not know the class of mixtures of experts, so these need transformers 5.
    """
    older = tmp_path / "transformers-4"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]
    subprocess.run([*install, str(older), "transformers>=4.57,<5"], check=True)
    model = build_model(DENSE, tokenizer, 1e5, seed=1).eval()
    save_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    command = [sys.executable, "-c", OLDER, str(tmp_path / "checkpoint")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(older)}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    version, tokens, logits = json.loads(done.stdout)
    assert version.startswith("4.")
    assert tokens[0] == tokenizer("7-5+3 ->")["input_ids"] * 4
    torch.testing.assert_close(torch.tensor(logits), model(torch.tensor(tokens)).logits, atol=1e-5, rtol=1e-5)


def test_no_file_of_weights_is_larger_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five tensors of 40 bytes two fit into 100; one of 120 has a file of its own."""
    monkeypatch.setattr(causal_lm, "FILE_BYTES", 100)
    weights = {f"w{number}": torch.full((10,), float(number)) for number in range(5)} | {"large": torch.ones(30)}
    causal_lm._write_weights(weights.items(), tmp_path / "checkpoint")
    index = json.loads((tmp_path / "checkpoint" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 5 * 40 + 120}
    files = sorted(set(index["weight_map"].values()))
    inside = [sorted(load_file(tmp_path / "checkpoint" / file)) for file in files]
    assert inside == [["w0", "w1"], ["w2", "w3"], ["w4"], ["large"]]


def test_a_new_model_draws_nothing_from_torchs_own_generator(tokenizer: PreTrainedTokenizerFast) -> None:
    before = torch.get_rng_state()
    build_model(MIXTURE, tokenizer, 1e4, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mixture_is_not_balanced_by_a_loss_too() -> None:
    """Neither here nor by a program that trains its checkpoint on: the routers' biases do it."""
    assert model_config(MIXTURE, 64, 1e4).router_aux_loss_coef == 0
