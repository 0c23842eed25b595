"""Routing replay: recorded experts are those of the routers, replay uses them, and nothing else changes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MiniMaxM2ForCausalLM

from pipelines.configuration.engines import ENGINES
from pipelines.configuration.grpo import GRPOConfig
from pipelines.data.questions import Question
from pipelines.errors import UserError
from pipelines.grpo.collection import Group
from pipelines.grpo.policy import Policy
from pipelines.grpo.update import Updater
from pipelines.rollouts import EngineSetting, Sampling, load_engine, score
from pipelines.rollouts.expert_replay import NOT_RECORDED, flat_experts, routing_of
from sweeps.compose.cells import compose_cell
from tests.pipelines.rollouts.test_transformers_engine import moe, tiny

PROMPTS = [[1, 5, 3, 7], [2, 4], [1, 5, 3, 7]]
RESPONSES = [[6, 8, 9], [3, 2, 8, 1], [8]]
LAYERS, ACTIVE, EXPERTS = 2, 2, 4


@contextmanager
def routed(model: MiniMaxM2ForCausalLM, choose: Callable[[int, Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Routers that send tokens where `choose` (layer, own choice) says, written again; yields the choices by layer."""
    choices: list[Tensor] = []
    originals = []
    for layer, block in enumerate(model.model.layers):

        def forward(hidden: Tensor, bias: Tensor, layer: int = layer, gate: Any = block.mlp.gate) -> tuple:
            scores = (hidden.reshape(-1, hidden.shape[-1]) @ gate.weight.T).sigmoid()
            chosen = choose(layer, (scores + bias).topk(ACTIVE, -1).indices)
            choices.append(chosen)
            weights = torch.stack([scores[range(len(scores)), chosen[:, j]] for j in range(ACTIVE)], 1)
            return scores, weights / weights.sum(1, keepdim=True), chosen

        originals.append((block.mlp.gate, block.mlp.gate.forward))
        block.mlp.gate.forward = forward
    try:
        yield choices
    finally:
        for gate, original in originals:
            gate.forward = original


def brute_force(model: MiniMaxM2ForCausalLM, experts: Sequence[Tensor]) -> Tensor:
    """Log-probabilities of all response tokens, one row at a time in float64."""
    exact: Any = moe()
    exact.load_state_dict(model.state_dict())
    exact.set_experts_implementation("eager")  # the grouped product has no float64
    exact = exact.double()
    results = []
    for prompt, response, recorded in zip(PROMPTS, RESPONSES, experts, strict=True):
        row = torch.tensor([[*prompt, *response]])
        # The last token is in this row and not in the record.
        forced = torch.cat([recorded, recorded[-1:]]).long()
        with routed(exact, lambda layer, own, forced=forced: forced[:, layer]), torch.no_grad():  # type: ignore[misc]
            log_pi = exact(input_ids=row, use_cache=False).logits[0].log_softmax(-1)
        at = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        results.append(log_pi[at, response])
    return torch.cat(results)


def own_choices(model: MiniMaxM2ForCausalLM) -> list[Tensor]:
    """Of each row, [P + L - 1, layers, active], by the routers written again."""
    rows = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        with routed(model, lambda layer, own: own) as choices, torch.no_grad():
            model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False)
        rows.append(torch.stack(choices, 1)[:-1])
    return rows


def recorded_in_flat(model: MiniMaxM2ForCausalLM) -> list[Tensor]:
    """What the hooks record of a scoring pass, by row; the third prompt is the first one."""
    routing = routing_of(model)
    routing.record()
    with torch.no_grad():
        score(model, PROMPTS, RESPONSES)
    flat = routing.recorded(1)[0]
    routing.stop_recording()
    first, second = flat[:6], flat[6:11]
    assert len(flat) == 11  # the third response has one token, which is not computed
    return [first, second, flat[:4]]


def gradients(model: MiniMaxM2ForCausalLM, experts: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
    log_probs = score(model, PROMPTS, RESPONSES, experts=experts).log_probs
    parameters = list(model.parameters())
    found = torch.autograd.grad(log_probs.sum(), parameters)
    return log_probs.detach(), list(found)


def same(first: Tensor, second: Tensor) -> bool:
    """Whether the same experts are chosen, in any order."""
    return torch.equal(first.long().sort(-1).values, second.long().sort(-1).values)


def test_replay_of_the_models_own_choice_changes_no_bit() -> None:
    model = moe()
    plain, plain_gradients = gradients(model, None)
    experts = recorded_in_flat(model)
    replayed, replayed_gradients = gradients(model, experts)
    assert routing_of(model).differing() == (0.0, 11 * LAYERS)
    assert torch.equal(plain, replayed)
    assert all(torch.equal(a, b) for a, b in zip(plain_gradients, replayed_gradients, strict=True))
    again, _ = gradients(model, None)
    assert torch.equal(again, plain)
    assert all(same(row, own) for row, own in zip(experts, own_choices(model), strict=True))


def test_other_experts_give_the_probabilities_of_a_brute_force_forward_pass() -> None:
    model = moe()
    own = own_choices(model)
    # Of a prompt that two responses share, those of the first one are used.
    other = [(row + 1) % EXPERTS for row in own]
    expected = brute_force(model, other)
    replayed, found = gradients(model, [row.short() for row in other])
    torch.testing.assert_close(replayed.double(), expected, rtol=1e-4, atol=1e-4)
    assert (replayed - gradients(model, None)[0]).abs().max() > 1e-2
    assert routing_of(model).differing() == (0.0, 0)
    router = [value for (name, _), value in zip(model.named_parameters(), found, strict=True) if "mlp.gate." in name]
    assert len(router) == LAYERS
    assert all(value.abs().max() > 0 for value in router), "the gradient passes through the learner's own scores"


def test_tokens_without_a_record_are_routed_by_the_model() -> None:
    model = moe()
    plain = gradients(model, None)[0]
    nothing = [torch.full_like(row, NOT_RECORDED) for row in own_choices(model)]
    assert torch.equal(gradients(model, nothing)[0], plain)
    score(model, PROMPTS, RESPONSES, experts=nothing)
    assert routing_of(model).differing() == (0.0, 0)


def test_experts_are_flattened_as_tokens_are() -> None:
    rows = [torch.arange(5).view(5, 1, 1), 10 + torch.arange(3).view(3, 1, 1), 20 + torch.arange(6).view(6, 1, 1)]
    flat = flat_experts([[1, 2, 3], [4], [1, 2, 3]], rows)
    assert flat.flatten().tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 23, 24, 25]


@pytest.mark.parametrize("name", ["transformers", "replica"])
def test_engines_record_what_the_routers_choose(name: str) -> None:
    """Over prompts of several lengths, rows that end early, and shares; the samples are those without a record."""
    model, sampling = moe(), Sampling(1.0, 1.0, 12)
    dtype = torch.float32
    engine = load_engine(name, model, lambda: 64, setting=EngineSetting(routed_experts=True, dtype=dtype))
    plain = load_engine(name, moe(), lambda: 64, setting=EngineSetting(dtype=dtype))
    for sampler in (engine, plain):
        sampler.take(model.state_dict(keep_vars=True).items())
    rollouts = engine.generate(PROMPTS, sampling, n=5, seed=(3,))
    assert torch.equal(rollouts.tokens, plain.generate(PROMPTS, sampling, n=5, seed=(3,)).tokens)
    assert rollouts.experts is not None
    assert len(set(rollouts.lengths.tolist())) > 1
    for number, (response, recorded) in enumerate(zip(rollouts.responses(), rollouts.experts, strict=True)):
        row = [*PROMPTS[number // 5], *response]
        with routed(model, lambda layer, own: own) as choices, torch.no_grad():
            model(input_ids=torch.tensor([row]), use_cache=False)
        assert recorded.shape == (len(row) - 1, LAYERS, ACTIVE)
        assert recorded.dtype == torch.int16
        assert same(recorded, torch.stack(choices, 1)[:-1])
    part = engine.generate(PROMPTS, sampling, n=5, seed=(3,), share=range(4, 9))
    assert part.experts is not None
    assert all(same(a, b) for a, b in zip(part.experts, rollouts.experts[4:9], strict=True))
    assert plain.generate(PROMPTS, sampling, n=1, seed=(3,)).experts is None


def group(experts: list[Tensor]) -> Group:
    """Two responses with different rewards."""
    responses = RESPONSES[:2]
    return Group(
        question=Question("t", "", "", "marked"),
        prompt=PROMPTS[0],
        responses=responses,
        log_probs=[torch.full((len(response),), -2.0) for response in responses],
        texts=["", ""],
        rewards=torch.tensor([0.0, 1.0]),
        stopped=torch.tensor([True, True]),
        lengths=torch.tensor([len(response) for response in responses]),
        owners=[0, 0],
        step=1,
        experts=experts,
    )


SETTINGS: dict[str, Any] = {"steps": 1, "milestones": 1, "tasks": ["t"], "prompts": 1, "samples": 2}


@pytest.mark.parametrize("epochs", [1, 2])
def test_an_update_learns_by_the_samplers_experts(epochs: int) -> None:
    """The ledger has the share of choices that differ; the mismatch is that of a replayed forward pass."""
    model = moe()
    rows = [[*PROMPTS[0], *response] for response in RESPONSES[:2]]
    experts = []
    for row in rows:
        with routed(model, lambda layer, own: own) as choices, torch.no_grad():
            model(input_ids=torch.tensor([row]), use_cache=False)
        experts.append(torch.stack(choices, 1)[:-1])
    tokens = len(PROMPTS[0]) + sum(len(response) - 1 for response in RESPONSES[:2])
    # The first response's first token goes elsewhere in the first layer.
    changed = [row.clone() for row in experts]
    at = len(PROMPTS[0])
    missing = set(range(EXPERTS)) - set(experts[0][at, 0].tolist())
    changed[0][at, 0] = torch.tensor(sorted(missing)[:ACTIVE])
    config = GRPOConfig(**SETTINGS, routing_replay=True, learning_rate=1e-9, epochs=epochs, importance_cap=0.0)
    for recorded, differing in ((experts, 0.0), (changed, 1 / (tokens * LAYERS))):
        learner = moe()
        expected = score(learner, [PROMPTS[0]] * 2, RESPONSES[:2], experts=recorded).log_probs.detach()
        updater = Updater(Policy(learner), torch.optim.SGD(learner.parameters(), 1e-9), config, exact_sampler=False)
        row = updater.update([group(recorded)], 1)
        assert row["routing_differs"] == pytest.approx(differing, abs=1e-9)
        assert row["mismatch"] == pytest.approx((expected + 2.0).abs().mean().item(), rel=1e-4)
    plain = Updater(
        Policy(moe()), torch.optim.SGD(moe().parameters(), 1e-9), replace(config, routing_replay=False),
        exact_sampler=False,
    )  # fmt: skip
    assert "routing_differs" not in plain.update([group([])], 1)


def test_what_cannot_be_replayed_is_refused() -> None:
    with pytest.raises(UserError, match=r"^grpo\.routing_replay=True: the model has no routers that can be replayed"):
        load_engine("transformers", tiny(), lambda: 64, setting=EngineSetting(routed_experts=True))
    with pytest.raises(UserError, match=r"^grpo\.routing_replay=True: the model is dense, .*; set it to false, or "):
        compose_cell(["grpo.routing_replay=true"])
    mixture = ["model.experts=8", "model.active_experts=2", "grpo.routing_replay=true"]
    assert compose_cell(mixture).grpo.routing_replay
    with pytest.raises(UserError, match=r"^grpo\.routing_replay=True: .*set grpo\.leftovers=discard"):
        compose_cell([*mixture, "grpo.leftovers=keep"])


def test_an_engine_that_gives_no_experts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "other", "x:Y")
    told = (
        "grpo.routing_replay=True: the engine other does not give its experts; set it to false, or grpo.engine to one "
        "of transformers, replica, vllm"
    )
    with pytest.raises(UserError) as refused:
        load_engine("other", moe(), lambda: 64, setting=EngineSetting(routed_experts=True))
    assert str(refused.value) == told
    with pytest.raises(UserError) as refused:
        GRPOConfig(**SETTINGS, engine="other", routing_replay=True)
    assert str(refused.value) == told
