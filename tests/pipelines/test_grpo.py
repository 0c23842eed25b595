"""GRPO's loss against the formula, its gradient against REINFORCE, and RL that really improves a model."""

import json
import math
from pathlib import Path

import pytest
import torch

from pipelines import grpo
from pipelines.cell import DataConfig, GRPOConfig, ModelConfig, PretrainConfig, TrackingConfig
from pipelines.data import Corpus, prepare
from pipelines.grpo import advantages, policy_loss, train_grpo
from pipelines.ledger import Ledger
from pipelines.models import build_model
from pipelines.rollouts import score
from pipelines.training import train
from shaping import Objective

OFF = TrackingConfig(mode="off")


def test_advantages_are_relative_to_the_group() -> None:
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
    result = advantages(rewards)
    deviation = math.sqrt((0.75**2 + 3 * 0.25**2) / 3)
    torch.testing.assert_close(result[0], torch.tensor([0.75, -0.25, -0.25, -0.25]) / deviation)
    assert not result[1:3].any()
    torch.testing.assert_close(result.sum(1), torch.zeros(4))


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "held"),
    [
        (1.0, 2.0, -2.0, (False, False)),
        (1.5, 1.0, -1.28, (False, True)),
        (1.5, -1.0, 1.5, (False, False)),
        (0.5, 1.0, -0.5, (False, False)),
        (0.5, -1.0, 0.8, (True, False)),
    ],
)
def test_clip_higher(ratio: float, advantage: float, expected: float, held: tuple[bool, bool]) -> None:
    old = torch.tensor([-1.0])
    loss, low, high = policy_loss(old + math.log(ratio), old, torch.tensor([advantage]), 0.2, 0.28)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert (bool(low), bool(high)) == held


def test_on_policy_the_gradient_is_that_of_the_log_probability() -> None:
    log_probs = torch.tensor([-0.3, -2.0, -1.0], requires_grad=True)
    advantage = torch.tensor([1.5, -0.5, 0.0])
    loss, low, high = policy_loss(log_probs, log_probs.detach(), advantage, 0.2, 0.28)
    loss.sum().backward()
    torch.testing.assert_close(log_probs.grad, -advantage)
    assert not low.any()
    assert not high.any()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(DataConfig("t", [], ["boolean"], 2000, 0.0, 0.0, 270, 8), tmp_path_factory.mktemp("cache"))


MODEL = ModelConfig("tiny", layers=1, d_model=32, ffn=64, heads=2, kv_heads=1, head_dim=16)


def test_micro_batches_change_nothing(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """One update's gradient is that of the mean over all tokens, however the batch is cut."""
    config = GRPOConfig(steps=1, prompts=2, samples=2, max_new_tokens=4, tasks=["boolean"], milestones=1)
    prompts, responses = [[1, 2], [1, 2], [3, 4, 5], [3, 4, 5]], [[6, 0], [7, 8, 0], [9, 0], [6, 6, 6, 6]]
    advantage = [1.0, -1.0, 0.5, -0.5]
    batch = grpo._Batch(prompts, responses, advantage, *(torch.empty(0) for _ in range(3)), 1, [])
    norms = []
    for tokens in (6, 1000):
        monkeypatch.setattr(grpo, "BATCH_TOKENS", tokens)
        model = build_model(MODEL, corpus.tokenizer, 1e4, seed=0)
        norms.append(grpo._update(model, torch.optim.SGD(model.parameters(), 0.0), config, batch)["gradient_norm"])
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=0)
    log_probs, _ = score(model, prompts, responses)
    weights = torch.tensor([a for a, r in zip(advantage, responses, strict=True) for _ in r])
    (-(log_probs * weights).sum() / len(weights)).backward()
    expected = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf).item()
    assert norms == pytest.approx([expected, expected], rel=1e-4)


@pytest.mark.slow
def test_rl_improves_a_model(corpus: Corpus, tmp_path: Path) -> None:
    """A model that is often not even well-formed learns to answer, and to be right."""
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=0)
    budget = PretrainConfig(
        tokens=24 * 512, batch_tokens=512, sequence_length=32, learning_rate=1e-2, rope_base=1e4,
        mixture={"boolean": 1.0}, milestones=1, warmup_steps=5,
    )  # fmt: skip
    config = GRPOConfig(
        steps=12, prompts=32, samples=8, learning_rate=3e-3, max_new_tokens=6, tasks=["boolean"], milestones=2
    )
    kept: list[int] = []
    with Ledger({"stage": "grpo"}, tmp_path, tmp_path, OFF) as ledger:
        train(model, Objective(), budget, corpus, 0, ledger, lambda m, s: None)
    with Ledger({"stage": "grpo"}, tmp_path, tmp_path, OFF) as ledger:
        train_grpo(model, config, corpus, 0, ledger, lambda m, s: kept.append(s))
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    rewards = [row["reward"] for row in rows]
    assert kept == [6, 12]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    for row in rows:
        groups = row["groups_right"] + row["groups_wrong"] + row["groups_mixed"]
        assert groups >= 32
        assert 1 <= row["rounds"] <= 3
        assert row["groups_mixed"] == 32 or row["rounds"] == 3
        assert row["clip_low"] == row["clip_high"] == 0
