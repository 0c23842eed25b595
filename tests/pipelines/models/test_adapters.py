"""Low-rank adapters: what is trained, and what is saved."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from pipelines.configuration.lora import LoRAConfig
from pipelines.errors import StageFailure, UserError
from pipelines.models.adapters import ADAPTER, add_adapters, save_adapters
from pipelines.rollouts import Sampling, generate, score
from pipelines.rollouts.replica_engine import WholeEngine
from pipelines.training.weight_stream import weight_stream
from sweeps.compose.cells import compose_cell
from sweeps.plan.planner import plan
from tests.small_starts import small_model

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_the_merged_model_and_the_adapters_are_the_trained_model(name: str, tmp_path: Path) -> None:
    model, config = small_model(name), LoRAConfig(rank=4)
    before = model(TOKENS).logits
    frozen = {key: value.clone() for key, value in model.state_dict().items()}
    add_adapters(model, config, key="grpo.lora", seed=1)
    assert torch.equal(model(TOKENS).logits, before)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        score(model, [[5, 6]], [[7, 8, 9]]).log_probs.sum().neg().backward()
        optimizer.step()
    trained = model(TOKENS).logits
    assert not torch.allclose(trained, before, atol=1e-2)
    assert all(torch.equal(model.state_dict()[key.replace(".base_layer", "")], value)
               for key, value in frozen.items() if key in model.state_dict())  # fmt: skip

    # The stream of weights is the model with its adapters merged by peft, under the names of the start model.
    whole, peft_merged = small_model(name), copy.deepcopy(model)
    streamed = dict(weight_stream(model, checkpoint_names=False, tied_output=False))
    for layer in [layer for layer in peft_merged.modules() if isinstance(layer, BaseTunerLayer)]:
        layer.merge()
    assert list(streamed) == [key for key, _ in whole.named_parameters()]
    for key, value in peft_merged.named_parameters():
        assert "lora_" in key or torch.equal(streamed[key.replace(".base_layer", "")], value)
    whole.load_state_dict(streamed, strict=False)
    torch.testing.assert_close(whole(TOKENS).logits, trained, atol=1e-4, rtol=0)
    save_adapters(model, config, tmp_path)
    with_peft = PeftModel.from_pretrained(small_model(name), str(tmp_path / ADAPTER))
    torch.testing.assert_close(with_peft(TOKENS).logits, trained, atol=1e-5, rtol=0)
    # The model samples with its adapters, and an engine of its own by the stream: their greedy responses are equal.
    greedy = Sampling(0.0, 1.0, 12)
    engine = WholeEngine(model)
    engine.take(weight_stream(model, checkpoint_names=False))
    ours, theirs = (generate(m, [[5], [6, 7]], greedy, n=1, seed=(0,)).responses() for m in (model, whole))
    assert ours == theirs == engine.generate([[5], [6, 7]], greedy, n=1, seed=(0,)).responses()


def test_equal_seeds_give_equal_adapters() -> None:
    models = [small_model("llama") for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        add_adapters(model, LoRAConfig(2, targets=["q_proj"]), key="grpo.lora", seed=seed)
    first, second, third = (
        model.state_dict()["model.layers.0.self_attn.q_proj.lora_A.default.weight"] for model in models
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    with pytest.raises(StageFailure, match="LlamaForCausalLM has no such layers"):
        add_adapters(small_model("llama"), LoRAConfig(2, targets=["nothing"]), key="grpo.lora", seed=1)


def test_adapters_are_signed_only_where_there_are_some() -> None:
    runs = plan([compose_cell([])]).runs
    assert all("lora" not in run.config[run.stage] for run in runs.values() if run.stage in ("midtrain", "grpo"))
    of_rl = plan([compose_cell(["grpo.lora.rank=8"])]).runs
    assert {run.stage for run in runs.values() if run.signature not in of_rl} == {"grpo", "evaluate"}
    assert set(plan([compose_cell(["grpo.lora.rank=8", "grpo.lora.alpha=8"])]).runs) != set(of_rl)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["grpo.lora.rank=-1"], r"grpo.lora.rank=-1: it must be 0 or more"),
        (["grpo.lora.alpha=8"], r"grpo.lora.alpha=8.0: without adapters it has no effect; set grpo.lora.rank"),
        (["midtrain.lora.rank=8", "midtrain.lora.targets=[lm_head]"], r"output layer or the embedding"),
        (["grpo.lora.rank=8", "compute.strategy=fsdp"], r"compute.strategy=fsdp: adapters are trained on whole models"),
    ],
)
def test_a_mistake_gets_a_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        compose_cell(overrides)


def test_without_peft_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.configuration.lora.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"grpo.lora.rank=8: adapters need peft: pip install 'shaping\[lora\]'"):
        compose_cell(["grpo.lora.rank=8"])
