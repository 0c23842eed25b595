"""A mixture's router: counts against brute force, the bias rule against its formula, and a skewed router that becomes
balanced without a higher loss."""

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from pipelines.configuration.compute import ComputeConfig
from pipelines.configuration.model import ModelConfig
from pipelines.models.causal_lm import empty_model, model_config
from pipelines.training.causal_loss import CausalLoss
from pipelines.training.expert_balance import BIAS, ExpertBalance
from pipelines.training.optimizer import adamw
from pipelines.training.parallel import prepare
from shaping import Objective

SHAPE = ModelConfig("m", layers=2, d_model=32, ffn=16, heads=2, kv_heads=1, head_dim=16, experts=8, active_experts=2)


def mixture(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return empty_model(model_config(SHAPE, 64, 1e4)).train()


def test_the_bias_moves_by_the_sign_of_the_load_error() -> None:
    model = mixture()
    balance = ExpertBalance(model, 1e-3)
    seen: list[torch.Tensor] = []
    model.model.layers[0].mlp.gate.register_forward_hook(lambda m, i, output: seen.append(output[2]))
    with balance.counting():
        for _ in range(2):  # two micro-batches of one step
            model(input_ids=torch.randint(0, 64, (4, 16)))
    model(input_ids=torch.randint(0, 64, (4, 16)))  # outside: not counted
    loads = balance.move()
    assert loads is not None
    counts = torch.zeros(8)
    for chosen in torch.cat(seen[:2]).flatten().tolist():
        counts[chosen] += 1
    torch.testing.assert_close(loads[0], counts / (2 * 4 * 16 * 2 / 8))
    torch.testing.assert_close(getattr(model.model.layers[0].mlp, BIAS), 1e-3 * torch.sign(1 - loads[0]))
    assert balance.move() is None  # nothing counted since then


def test_layers_that_are_computed_again_are_counted_once() -> None:
    loads = []
    ids = torch.randint(0, 64, (4, 17))
    for activations in ("none", "full"):
        model = mixture()
        prepare(model, ComputeConfig(activation_checkpointing=activations), precision="float32", documents=False)
        balance, loss = ExpertBalance(model, 1e-3), CausalLoss(model, Objective())
        with balance.counting():
            value = loss(ids)[0]
        value.backward()
        assert balance._counts[0] is not None
        assert balance._counts[0].sum() == 4 * 16 * 2
        loads.append(balance.move())
    assert torch.equal(*loads)


def test_a_skipped_step_moves_no_bias() -> None:
    model = mixture()
    balance = ExpertBalance(model, 1e-3)
    with balance.counting():
        model(input_ids=torch.randint(0, 64, (1, 16)))
    assert balance.move(keep=True) is not None
    assert not getattr(model.model.layers[0].mlp, BIAS).any()
    assert balance.move() is None  # its tokens do not count in the next step


def test_a_skewed_router_becomes_balanced_without_a_higher_loss() -> None:
    """Tokens with a fixed successor; at first the router sends nearly all tokens to two experts."""
    successor = torch.randperm(64, generator=torch.Generator().manual_seed(1))

    def learn(rate: float) -> tuple[float, float, float]:
        model = mixture()
        for layer in model.model.layers:
            getattr(layer.mlp, BIAS)[:2] += 0.2
        balance = ExpertBalance(model, rate)
        optimizer = adamw(model, learning_rate=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
        loads = []
        for step in range(150):
            generator = torch.Generator().manual_seed(step)
            ids = torch.randint(0, 64, (64, 8), generator=generator)
            with balance.counting():
                logits = model(input_ids=ids).logits
            loss = F.cross_entropy(logits.flatten(0, 1), successor[ids].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step_loads = balance.move()
            assert step_loads is not None
            loads.append(step_loads.max().item())
        return loads[0], sum(loads[-20:]) / 20, loss.item()

    first, unbalanced, plain = learn(0.0)
    _, balanced, shaped = learn(5e-3)
    assert first > 3.0  # of at most 4
    assert balanced < 1.6 < unbalanced
    assert shaped < plain + 0.05


def test_ledger_columns() -> None:
    balance = ExpertBalance(mixture(), 1e-3)
    loads = torch.tensor([[0.0, 2.0, 1, 1, 1, 1, 1, 1], [1.0] * 8])
    assert balance.row(loads) == {"expert_load_max": 2.0, "experts_dead": 1.0, "router_bias_span": 0.0}
    dense = empty_model(model_config(ModelConfig("d", 1, 16, 16, 2, 1, 8), 64, 1e4))
    assert not ExpertBalance(dense, 1e-3)


def test_the_span_of_the_biases_is_within_a_layer() -> None:
    """Layers whose biases have drifted apart choose no other experts for it."""
    model = mixture()
    for layer, biases in zip(model.model.layers, ((0.5, 0.25), (-0.5, -0.625)), strict=True):
        bias = getattr(layer.mlp, BIAS)
        bias.fill_(biases[0])
        bias[3] = biases[1]
    assert ExpertBalance(model, 1e-3).row(torch.ones(2, 8))["router_bias_span"] == 0.25


def test_in_bfloat16_the_biases_and_the_rotary_angles_stay_in_float32() -> None:
    """A bias of 1 would not move by 1e-3 in bfloat16."""
    model = mixture()
    prepare(model, ComputeConfig(), precision="bfloat16", documents=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for _, buffer in model.named_buffers()} == {torch.float32}
    assert any(name.endswith(BIAS) for name, _ in model.named_buffers())
