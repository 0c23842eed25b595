"""Updates in several minibatches and epochs, and the ledger's statistics of them, against loops in plain Python."""

import copy
import math

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from pipelines.configuration.grpo import LOSSES, GRPOConfig
from pipelines.grpo.algorithm import token_weights
from pipelines.grpo.collection import Group
from pipelines.grpo.update import rows_of
from tests.pipelines.grpo.test_update import config, group, moved, naive_log_probs, sgd, updated, updater
from tests.pipelines.rollouts.test_transformers_engine import END, tiny

LENGTHS = [[2, 5], [6, 3], [1, 4]]
REWARDS = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]


def uneven() -> list[Group]:
    """Three groups, so that two minibatches have two and one of them, of 16 and of 5 tokens."""
    prompts = [[1, 2], [3, 4, 5], [6]]
    return [
        group(prompt, [[6 + (i + j + t) % 9 for t in range(length - 1)] + [END] for j, length in enumerate(lengths)], r)
        for i, (prompt, lengths, r) in enumerate(zip(prompts, LENGTHS, REWARDS, strict=True))
    ]


def from_the_policy(groups: list[Group], model: Qwen3ForCausalLM, *, off: float = 0.0) -> list[Group]:
    """The groups with the log-probabilities of `model`, `off` by so much."""
    for g in groups:
        for j, response in enumerate(g.responses):
            g.log_probs[j] = naive_log_probs(model, g.prompt, response).detach() + off
    return groups


def descended(
    model: Qwen3ForCausalLM, groups: list[Group], *, settings: GRPOConfig, old: list[list[torch.Tensor]]
) -> Qwen3ForCausalLM:
    """Clipped surrogate, weights and plain descent written out, without the project's or torch's optimizers."""
    size = math.ceil(len(groups) / settings.minibatches)
    for _ in range(settings.epochs):
        for start in range(0, len(groups), size):
            part = range(start, min(start + size, len(groups)))
            tokens = sum(sum(LENGTHS[i]) for i in part)
            total = torch.tensor(0.0)
            for i in part:
                mean, spread = np.mean(REWARDS[i]), np.std(REWARDS[i], ddof=1)
                for j, response in enumerate(groups[i].responses):
                    a = (REWARDS[i][j] - mean) / spread
                    weight = {
                        "token": 1 / tokens,
                        "sequence": 1 / (2 * len(part) * LENGTHS[i][j]),
                        "constant": 1 / (2 * len(part) * 6),
                    }[settings.loss]
                    ratio = (naive_log_probs(model, groups[i].prompt, response) - old[i][j]).exp()
                    total = total - weight * torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a).sum()
            names, parameters = zip(*model.named_parameters(), strict=True)
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            with torch.no_grad():
                for _, parameter, gradient in zip(names, parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter -= settings.learning_rate * gradient
    return model


@pytest.mark.parametrize("loss", LOSSES)
def test_uneven_minibatches_are_steps_of_their_own_weights(loss: str) -> None:
    """A minibatch's tokens are weighted within it: the second has a third of the first one's tokens."""
    groups = from_the_policy(uneven(), tiny(scale=2.0))
    settings = config(epochs=2, minibatches=2, learning_rate=0.05, loss=loss)
    step, row = updated(groups, settings)
    before = tiny(scale=2.0)
    after = descended(copy.deepcopy(before), groups, settings=settings, old=[g.log_probs for g in groups])
    torch.testing.assert_close(step, moved(before, after), rtol=1e-2, atol=1e-5)
    assert row["skipped"] == 0


def test_the_norm_of_the_gradient_is_clipped() -> None:
    settings = config(learning_rate=1.0, gradient_clip=0.125)
    whole, row = updated(uneven(), config(learning_rate=1.0))
    step, clipped = updated(uneven(), settings)
    assert row["gradient_norm"] == clipped["gradient_norm"] == pytest.approx(whole.norm().item(), rel=1e-4)
    assert whole.norm() > 0.25
    torch.testing.assert_close(step, whole * (0.125 / whole.norm()), rtol=1e-3, atol=1e-6)


def test_left_over_groups_are_not_scored_again() -> None:
    """With an engine of other arithmetic, fresh groups get the learner's log-probabilities before the first update;
    a group of an earlier step keeps those of the policy that sampled it."""
    model = tiny(scale=2.0)
    groups = from_the_policy(uneven(), model, off=-0.5)
    groups[1].step = 0
    settings = config(epochs=2, learning_rate=1e-9, importance_cap=0.0)
    row = updater(model, sgd(model), settings, exact_sampler=False).update(groups, 1)
    # Of 21 tokens, 9 are of the group that is left over: their ratio is e^0.5, that of the others 1.
    assert row["ratio_p50"] == pytest.approx(1.0, abs=1e-4)
    assert row["ratio_p99"] == pytest.approx(math.exp(0.5), rel=1e-4)
    assert row["mismatch"] == pytest.approx(0.5, rel=1e-4)
    # The first response of the group has advantage < 0 and the second > 0, where the upper bound clips 3 of 21.
    assert row["clip_high"] == pytest.approx(3 / 21)
    assert row["clip_low"] == 0


def test_a_correction_of_the_sampler_is_that_of_the_old_policy() -> None:
    """min(old / sampler, cap), once per batch: later epochs have another ratio, and the same correction."""
    groups = from_the_policy(uneven(), tiny(scale=2.0), off=-math.log(1.5))
    plain = from_the_policy(uneven(), tiny(scale=2.0))
    settings = {"epochs": 2, "learning_rate": 0.02}
    model = tiny(scale=2.0).train()
    before = copy.deepcopy(model)
    updater(model, sgd(model, 1.5), config(**settings, importance_cap=4.0), exact_sampler=False).update(groups, 1)
    expected = copy.deepcopy(before)
    updater(expected, sgd(expected), config(epochs=2, learning_rate=0.03), exact_sampler=True).update(plain, 1)
    torch.testing.assert_close(moved(before, model), moved(before, expected), rtol=1e-2, atol=1e-5)


def test_the_percentiles_and_the_share_of_forking_tokens() -> None:
    """Of one update without a spread of ratios; entropies, slopes and their top fifth by hand."""
    model, groups = tiny(scale=2.0), uneven()
    _, row = updated(groups, config(learning_rate=1e-9, loss="sequence"))
    entropies, slopes = [], []
    for g, rewards in zip(groups, REWARDS, strict=True):
        for response, reward in zip(g.responses, rewards, strict=True):
            logits = model(torch.tensor([g.prompt + response])).logits[0, len(g.prompt) - 1 : -1].double()
            probs = logits.softmax(-1)
            entropies += (-(probs * probs.log()).sum(-1)).tolist()
            onehot = torch.nn.functional.one_hot(torch.tensor(response), probs.shape[-1])
            a = (reward - 0.5) / math.sqrt(0.5)
            slopes += (abs(a) / len(response) * (onehot - probs).norm(dim=-1)).tolist()
    forking = np.array(entropies) > np.quantile(entropies, 0.8)
    assert forking.sum() == 4
    assert row["entropy_updated"] == pytest.approx(np.mean(entropies), rel=1e-4)
    assert row["forking_gradient"] == pytest.approx(np.array(slopes)[forking].sum() / sum(slopes), rel=1e-3)


def test_the_percentiles_of_the_ratio() -> None:
    model = tiny(scale=2.0)
    groups = from_the_policy(uneven(), model)
    ratios = np.linspace(0.5, 1.5, 21)
    flat = iter(ratios.tolist())
    for g in groups:
        g.step = 0  # left over, so that the ratio is to the sampler
        for j, log_probs in enumerate(g.log_probs):
            g.log_probs[j] = log_probs - torch.tensor([math.log(next(flat)) for _ in log_probs])
    _, row = updated(groups, config(learning_rate=1e-9))
    assert (row["ratio_p01"], row["ratio_p50"], row["ratio_p99"]) == pytest.approx((0.51, 1.0, 1.49), abs=1e-4)
    assert row["mismatch"] == pytest.approx(np.abs(np.log(ratios)).mean(), rel=1e-3)


def test_a_divergence_moves_a_group_without_an_advantage() -> None:
    equal = [group([1, 2], [[6, END], [7, 8, END]], [1.0, 1.0])]
    assert updated(equal, config(learning_rate=1.0))[1] == {"skipped": 1}
    step, row = updated(equal, config(kl_weight=0.3, learning_rate=1.0), reference=tiny(seed=3, scale=2.0))
    assert row["skipped"] == 0
    assert step.any()


def test_the_overlong_penalty_counts_by_the_limit_of_the_step_that_sampled() -> None:
    settings = config(
        overlong="penalty", overlong_buffer=0.5, advantage="centred", extended_from_step=3, extended_max_new_tokens=12
    )
    groups = uneven()
    for g, step in zip(groups, (2, 3, 3), strict=True):
        g.step = step
    # Limit 6: 0 up to 3 tokens, then -1/3 per token; limit 12: none of these lengths is punished.
    first, second, _ = rows_of(groups, settings, step=3)
    assert [row.advantage for row in first] == pytest.approx([(1 - (0 - 2 / 3)) / 2, -(1 - (0 - 2 / 3)) / 2])
    assert [row.advantage for row in second] == pytest.approx([-0.5, 0.5])
    assert [row.fresh for rows in rows_of(groups, settings, step=3) for row in rows] == [False] * 2 + [True] * 4


def test_weights_of_a_batch_with_a_filtered_response() -> None:
    lengths, kept = [2, 5, 6, 3], [True, False, True, True]
    assert token_weights(lengths, kept, loss="token", limit=6) == [1 / 11, 0, 1 / 11, 1 / 11]
    assert token_weights(lengths, kept, loss="sequence", limit=6) == [1 / 6, 0, 1 / 18, 1 / 9]
    assert token_weights(lengths, kept, loss="constant", limit=6) == [1 / 24, 0, 1 / 24, 1 / 24]


def test_a_constant_weight_is_that_of_the_limit_at_the_step() -> None:
    plain, _ = updated(uneven(), config(loss="constant", learning_rate=1.0))
    extended = config(loss="constant", learning_rate=1.0, extended_from_step=1, extended_max_new_tokens=12)
    step, _ = updated(uneven(), extended)
    torch.testing.assert_close(step, plain / 2, rtol=1e-3, atol=1e-7)


def test_the_share_of_forking_tokens_does_not_depend_on_the_size_of_the_gradient() -> None:
    shares = [
        updated(uneven(), config(loss="constant", max_new_tokens=limit, learning_rate=1e-9))[1]["forking_gradient"]
        for limit in (6, 6_000_000)
    ]
    assert shares[1] == pytest.approx(shares[0], rel=1e-3)
    assert 0 < shares[0] < 1
