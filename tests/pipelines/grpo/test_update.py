"""The update against `transformers`' own logits and plain autograd, and changes that must not affect it."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from transformers import Qwen3ForCausalLM

from pipelines.configuration.grpo import ADVANTAGES, LOSSES, GRPOConfig
from pipelines.data.questions import Question
from pipelines.grpo.algorithm import advantages
from pipelines.grpo.collection import Group
from pipelines.grpo.policy import Policy
from pipelines.grpo.update import Updater
from pipelines.rollouts import Sampling, generate
from tests.pipelines.rollouts.test_transformers_engine import END, tiny

QUESTION = Question("t", "?", "1", "marked")


def config(**changes: object) -> GRPOConfig:
    values = {"steps": 1, "tasks": ["t"], "milestones": 1, "prompts": 2, "samples": 2, "max_new_tokens": 6}
    return GRPOConfig(**({"gradient_clip": 1e9} | values | changes))  # type: ignore[arg-type]


def group(
    prompt: list[int], responses: list[list[int]], rewards: list[float], *, stopped: Sequence[bool] = (True, True)
) -> Group:
    return Group(
        question=QUESTION,
        prompt=prompt,
        responses=responses,
        log_probs=[torch.full((len(response),), -2.0) for response in responses],
        texts=[""] * len(responses),
        rewards=torch.tensor(rewards),
        stopped=torch.tensor(stopped),
        lengths=torch.tensor([len(response) for response in responses]),
        owners=[0] * len(responses),
        step=1,
    )


def ragged() -> list[Group]:
    return [
        group([1, 2], [[6, END], [7, 8, 3, END]], [1.0, 0.0]),
        group([3, 4, 5], [[9, END], [6, 6, 6, 6, 6, 6]], [0.0, 1.0], stopped=(True, False)),
    ]


def sgd(model: Qwen3ForCausalLM, rate: float = 1.0) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate)


def naive_log_probs(
    model: Qwen3ForCausalLM, prompt: list[int], response: list[int], *, temperature: float = 1.0
) -> torch.Tensor:
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1)[range(len(response)), response]


def moved(before: Qwen3ForCausalLM, after: Qwen3ForCausalLM) -> torch.Tensor:
    return torch.cat([(b - a).flatten() for b, a in zip(before.parameters(), after.parameters(), strict=True)])


def updater(
    model: Qwen3ForCausalLM,
    optimizer: torch.optim.Optimizer,
    settings: GRPOConfig,
    *,
    reference: Qwen3ForCausalLM | None = None,
    exact_sampler: bool = True,
) -> Updater:
    frozen = reference and Policy(reference)
    return Updater(Policy(model), optimizer, settings, reference=frozen, exact_sampler=exact_sampler)


def updated(
    groups: list[Group], settings: GRPOConfig, reference: Qwen3ForCausalLM | None = None
) -> tuple[torch.Tensor, dict[str, float]]:
    """The change of the weights in one step of plain gradient descent, and the ledger's columns."""
    model = tiny(scale=2.0).train()
    before = copy.deepcopy(model)
    row = updater(model, sgd(model), settings, reference=reference).update(groups, 1)
    return moved(before, model), row


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_the_gradient_is_that_of_the_formula(loss: str, advantage: str) -> None:
    """One SGD step at rate 1 moves the weights by the gradient of plain autograd."""
    groups = ragged()
    step, row = updated(groups, config(loss=loss, advantage=advantage, learning_rate=1.0, temperature=0.8))
    model = tiny(scale=2.0)
    relative = advantages(torch.stack([g.rewards for g in groups]), advantage)
    lengths = [[len(r) for r in g.responses] for g in groups]
    total = torch.tensor(0.0)
    for i, g in enumerate(groups):
        for j, response in enumerate(g.responses):
            weight = {
                "token": 1 / sum(map(sum, lengths)),
                "sequence": 1 / (4 * len(response)),
                "constant": 1 / (4 * 6),
            }[loss]
            total = total - weight * relative[i, j] * naive_log_probs(model, g.prompt, response, temperature=0.8).sum()
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-6)
    assert row["gradient_norm"] == pytest.approx(expected.norm().item(), rel=1e-4)
    assert row["ratio_p01"] == row["ratio_p99"] == 1
    assert row["clip_low"] == row["clip_high"] == 0


@pytest.mark.parametrize("overlong", ["wrong", "filter", "penalty"])
def test_micro_batches_change_nothing(overlong: str) -> None:
    steps = [
        updated(ragged(), config(micro_batch_tokens=tokens, overlong=overlong, learning_rate=1.0))[0]
        for tokens in (6, 9, 1000)
    ]
    torch.testing.assert_close(steps[0], steps[2], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(steps[1], steps[2], rtol=1e-3, atol=1e-6)


def test_the_tokens_of_a_filtered_response_do_not_matter() -> None:
    """Its tokens, their number and their log-probabilities do not reach the weights; its reward does, by its group."""
    settings = config(overlong="filter", learning_rate=1.0)
    first, second = ragged(), ragged()
    second[1].responses[1], second[1].lengths[1] = [1, 2, 3], 3
    second[1].log_probs[1] = torch.tensor([-9.0, -9.0, -9.0])
    assert torch.equal(updated(first, settings)[0], updated(second, settings)[0])
    kept = updated(second, config(learning_rate=1.0))[0]
    assert not torch.allclose(kept, updated(first, config(learning_rate=1.0))[0])


def test_tokens_after_the_end_of_text_are_never_seen() -> None:
    """The engine's padding is cut before the update, so changing it changes nothing."""
    model = tiny(scale=3.0)
    rollouts = generate(model, [[5, 6]], Sampling(1.0, 1.0, 40), n=8, seed=(2,))
    responses = rollouts.responses()
    assert rollouts.stopped.any()
    changed = rollouts.tokens.clone()
    changed[torch.arange(40) >= rollouts.lengths[:, None]] = 7
    responses_of_changed = type(rollouts)(changed, rollouts.log_probs, rollouts.lengths, rollouts.stopped).responses()
    assert responses_of_changed == responses
    assert all(END not in response[:-1] for response in responses)


def test_prompt_tokens_are_not_in_the_loss() -> None:
    """The weights move by the gradient of the response tokens only."""
    model = tiny(scale=2.0)
    (-naive_log_probs(model, [1, 2], [6, END]).sum() / 4).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    different = [group([1, 2], [[6, END], [8, END]], [0.5, -0.5])]
    equal = [group([1, 2], [[6, END], [8, END]], [0.5, 0.5])]
    settings = config(advantage="centred", learning_rate=1.0)
    step, _ = updated(different, settings)
    assert updated(equal, settings)[1] == {"skipped": 1}
    model = tiny(scale=2.0)
    (0.5 * naive_log_probs(model, [1, 2], [8, END]).sum() / 4).backward()
    counter = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(step, 0.5 * expected + counter, rtol=1e-3, atol=1e-6)


def test_several_minibatches_and_epochs_keep_the_old_policy() -> None:
    """Four SGD steps on the clipped surrogate, against the same loop written with `transformers` and autograd."""
    groups = ragged()
    model = tiny(scale=2.0)
    for g in groups:
        for j, response in enumerate(g.responses):
            g.log_probs[j] = naive_log_probs(model, g.prompt, response).detach()
    settings = config(epochs=2, minibatches=2, learning_rate=0.05)
    step, row = updated(groups, settings)
    before, optimizer = copy.deepcopy(model), sgd(model, 0.05)
    relative = advantages(torch.stack([g.rewards for g in groups]), "standardised")
    for _ in range(2):
        for i, g in enumerate(groups):
            total = torch.tensor(0.0)
            for j, response in enumerate(g.responses):
                ratio = (naive_log_probs(model, g.prompt, response) - g.log_probs[j]).exp()
                a = relative[i, j]
                total = total - torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a).sum()
            optimizer.zero_grad()
            (total / sum(map(len, g.responses))).backward()
            optimizer.step()
    torch.testing.assert_close(step, moved(before, model), rtol=1e-2, atol=1e-5)
    assert row["ratio_p01"] < 1 < row["ratio_p99"]
    assert row["clip_low"] + row["clip_high"] > 0


def test_an_inexact_sampler_is_scored_before_several_updates() -> None:
    """The first ratio is 1 for any sampler, since the old log-probabilities are the learner's."""
    groups, model = ragged(), tiny(scale=2.0)
    settings = config(epochs=2, learning_rate=1e-9)
    row = updater(model, sgd(model), settings, exact_sampler=False).update(groups, 1)
    assert row["ratio_p01"] == pytest.approx(1, abs=1e-4)
    assert row["mismatch"] > 0.1


def test_an_inexact_sampler_is_scored_at_its_temperature() -> None:
    model = tiny(scale=2.0)
    settings = config(epochs=2, learning_rate=1e-9, temperature=0.5, importance_cap=0.0)
    row = updater(model, sgd(model), settings, exact_sampler=False).update(ragged(), 1)
    assert (row["ratio_p01"], row["ratio_p99"]) == pytest.approx((1.0, 1.0), abs=1e-4)


def test_importance_weights_correct_the_sampler() -> None:
    """A sampler with twice the probabilities halves each token's loss; with less, the weight is capped."""
    plain, _ = updated(ragged(), config(learning_rate=1.0))
    # The cap is 2 by default where the sampler is not exact, and 0 means no correction.
    cases = ((2.0, 2.0, 0.5, True), (0.5, 1.5, 1.5, True), (0.1, None, 2.0, False), (0.1, 0.0, 1.0, False))
    for factor, cap, expected, exact in (*cases, (0.1, None, 1.0, True)):
        groups, model = ragged(), tiny(scale=2.0)
        for g in groups:
            for j, response in enumerate(g.responses):
                g.log_probs[j] = naive_log_probs(model, g.prompt, response).detach() + math.log(factor)
        before = copy.deepcopy(model)
        settings = config(importance_cap=cap, learning_rate=1.0)
        updater(model, sgd(model), settings, exact_sampler=exact).update(groups, 1)
        torch.testing.assert_close(moved(before, model), expected * plain, rtol=1e-3, atol=1e-6)


def test_the_divergence_pulls_towards_the_reference() -> None:
    groups, reference = ragged(), tiny(seed=3, scale=2.0)
    plain, _ = updated(groups, config(learning_rate=1.0))
    step, _ = updated(groups, config(kl_weight=0.3, learning_rate=1.0), reference=reference)
    model, total = tiny(scale=2.0), torch.tensor(0.0)
    for g in groups:
        for response in g.responses:
            ratio = naive_log_probs(reference, g.prompt, response).detach() - naive_log_probs(model, g.prompt, response)
            total = total + 0.3 * (ratio.exp() - ratio - 1).sum() / 14
    total.backward()
    pull = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(step, plain + pull, rtol=1e-3, atol=1e-5)


def test_the_divergence_is_that_of_the_distributions_at_the_temperature() -> None:
    """Of policy and reference alike: they are equal here, so that there is nothing to pull."""
    plain, _ = updated(ragged(), config(learning_rate=1.0, temperature=0.5))
    settings = config(learning_rate=1.0, temperature=0.5, kl_weight=1.0)
    step, _ = updated(ragged(), settings, reference=tiny(scale=2.0))
    torch.testing.assert_close(step, plain, rtol=1e-3, atol=1e-5)


def test_gradients_from_before_the_run_are_not_applied() -> None:
    plain, _ = updated(ragged(), config(learning_rate=1.0))
    model = tiny(scale=2.0).train()
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    updater(model, sgd(model), config(learning_rate=1.0)).update(ragged(), 1)
    torch.testing.assert_close(moved(before, model), plain)


def test_groups_left_over_keep_their_sampler() -> None:
    """The ratio of a group of an earlier step is to the policy that sampled it; that of a fresh group is 1."""
    old = ragged()
    old[0].step = 0
    _, row = updated(old, config(learning_rate=1e-9))
    assert row["ratio_p01"] < 1 - 1e-3 or row["ratio_p99"] > 1 + 1e-3
    _, fresh = updated(ragged(), config(learning_rate=1e-9))
    assert fresh["ratio_p01"] == fresh["ratio_p99"] == 1


def test_without_advantages_the_step_is_skipped_and_nothing_moves() -> None:
    equal = [group([1, 2], [[6, END], [7, END]], [1.0, 1.0]), group([3], [[6, END], [7, END]], [0.0, 0.0])]
    for groups in ([], equal):
        step, row = updated(groups, config(learning_rate=1.0, dynamic_sampling=False))
        assert row == {"skipped": 1}
        assert not step.any()


def test_a_gradient_that_is_not_finite_is_an_error_and_leaves_the_weights() -> None:
    model = tiny()
    before = copy.deepcopy(model)
    groups = ragged()
    groups[0].rewards[0] = math.inf
    with pytest.raises(FloatingPointError, match=r"lower grpo\.learning_rate"):
        updater(model, sgd(model), config(advantage="centred")).update(groups, 1)
    assert not moved(before, model).any()


def test_the_rate_warms_up() -> None:
    model = tiny()
    optimizer = sgd(model)
    settings = config(learning_rate=1e-3, warmup_steps=4)
    rows = [updater(model, optimizer, settings).update(ragged(), step) for step in (1, 2, 4, 9)]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.25e-3, 0.5e-3, 1e-3, 1e-3])


def test_a_bandit_finds_its_best_arm() -> None:
    """Eight arms of one token each that pay with known probabilities: the policy learns the one that pays most."""
    model = tiny(vocab=8, scale=1.0).train()
    probabilities = torch.tensor([0.1, 0.3, 0.2, 0.9, 0.5, 0.0, 0.4, 0.6])
    settings = config(samples=16, max_new_tokens=1, learning_rate=0.02)
    bandit = updater(model, torch.optim.AdamW(model.parameters(), lr=0.02), settings)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 61):
        rollouts = generate(model, [[1]] * 4, Sampling(1.0, 1.0, 1), n=16, seed=(0, step))
        paid = (torch.rand(64, generator=generator) < probabilities[rollouts.tokens[:, 0]]).float()
        responses, ended = rollouts.responses(), torch.ones(16, dtype=torch.bool)
        groups = [
            Group(
                question=QUESTION,
                prompt=[1],
                responses=responses[i : i + 16],
                log_probs=list(rollouts.log_probs[i : i + 16]),
                texts=[""] * 16,
                rewards=paid[i : i + 16],
                stopped=ended,
                lengths=torch.ones(16, dtype=torch.int64),
                owners=[0] * 16,
                step=step,
            )
            for i in range(0, 64, 16)
        ]
        bandit.update([g for g in groups if g.mixed], step)
    policy = model(torch.tensor([[1]])).logits[0, -1].softmax(-1)
    assert policy.argmax() == 3
    assert policy[3] > 0.9


class Spread:
    """A norm of which this rank has a part, as of sharded parameters."""

    def full_tensor(self) -> torch.Tensor:
        return torch.tensor(2.5)

    def item(self) -> float:
        return 1.5


def test_the_norm_of_sharded_gradients_is_that_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, limit: Spread())
    model = tiny()
    assert updater(model, sgd(model), config()).update(ragged(), 1)["gradient_norm"] == 2.5
