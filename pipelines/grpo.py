"""GRPO with verifiable rewards, on-policy: sample groups, pay right answers, raise what did better than its group.

The study's form: no KL term, advantages relative to the group, clip-higher bounds, dynamic sampling (a group whose
rewards are all equal teaches nothing and is replaced), the mean of the loss taken over tokens (DAPO). One update is
made on each batch, so the policy that is updated is the one that sampled: the ratio is 1, its gradient is that of
the log-probability, and the clip acts on nothing; its counts are in the ledger to show that.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from pipelines.cell import GRPOConfig
from pipelines.data import Corpus
from pipelines.ledger import Ledger
from pipelines.rollouts import Rollouts, Sampling, generate, length_batches, score
from pipelines.tasks import Problem, verify
from pipelines.training import adamw

BATCH_TOKENS = 8_192
"""Tokens that an update runs through the model at a time; the gradient is that of the whole batch."""

SHOWN = 8


def advantages(rewards: Tensor) -> Tensor:
    """Rewards [G, n] relative to their group: (r - mean) / standard deviation, 0 where a group's rewards are equal."""
    centred = rewards - rewards.mean(1, keepdim=True)
    deviation = rewards.std(1, keepdim=True)
    return torch.where(deviation > 0, centred / deviation.clamp(min=1e-6), torch.zeros_like(centred))


def policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Clipped surrogate of each token, [T], and which tokens the lower and the upper bound holds back, [T] bool.

    All arguments are [T]: -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A), ratio = pi / pi_old.
    """
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    low = (ratio < 1 - clip_low) & (advantage < 0)
    high = (ratio > 1 + clip_high) & (advantage > 0)
    return loss, low, high


@dataclass
class _Batch:
    """Groups kept for one update, and what was seen on the way to them."""

    prompts: list[list[int]]
    responses: list[list[int]]
    advantage: list[float]
    """One number a response."""
    rewards: Tensor
    """[all groups sampled, n], before any was dropped."""
    lengths: Tensor
    stopped: Tensor
    rounds: int
    shown: list[dict[str, object]]


def train_grpo(
    model: Qwen3ForCausalLM,
    config: GRPOConfig,
    corpus: Corpus,
    seed: int,
    ledger: Ledger,
    keep: Callable[[Qwen3ForCausalLM, int], None],
) -> dict[str, float]:
    """Train `model` in place for `config.steps` updates; returns the mean reward and entropy of the last steps."""
    optimizer = adamw(model, config.learning_rate, config.weight_decay, (config.adam_beta1, config.adam_beta2))
    questions = _questions(config, corpus, seed)
    milestones = set(config.checkpoints())
    rewards, entropies = [], []
    for step in range(1, config.steps + 1):
        began = time.time()
        batch = _collect(model, config, corpus, questions, (seed, step))
        sampled = time.time()
        update = _update(model, optimizer, config, batch)
        ended = time.time()
        right = batch.rewards.mean(1)
        row = {
            "step": step,
            "reward": batch.rewards.mean().item(),
            "reward_std": batch.rewards.std(1).mean().item(),
            "response_length": batch.lengths.double().mean().item(),
            "truncated": 1 - batch.stopped.double().mean().item(),
            **update,
            "groups_right": int((right == 1).sum()),
            "groups_wrong": int((right == 0).sum()),
            "groups_mixed": int(((right > 0) & (right < 1)).sum()),
            "rounds": batch.rounds,
            "tokens_per_second": int(batch.lengths.sum()) / (ended - began),
            "rollout_seconds": sampled - began,
            "update_seconds": ended - sampled,
        }
        ledger.log(row)
        rewards.append(row["reward"])
        entropies.append(update["entropy"])
        if step in milestones:
            ledger.samples("rollouts", batch.shown)
            keep(model, step)
    last = slice(-min(5, config.steps), None)
    return {"reward": float(np.mean(rewards[last])), "entropy": float(np.mean(entropies[last])), "steps": config.steps}


def _questions(config: GRPOConfig, corpus: Corpus, seed: int) -> Iterator[Problem]:
    """Problems of the RL split for ever: families in turn, each in shuffled passes."""
    rng = np.random.default_rng([seed, 4])
    families = {name: corpus.problems(name, "rl") for name in config.tasks}
    waiting: dict[str, list[int]] = {name: [] for name in families}
    while True:
        for name, problems in families.items():
            if not waiting[name]:
                waiting[name] = list(rng.permutation(len(problems)))
            yield problems[waiting[name].pop()]


def _collect(
    model: Qwen3ForCausalLM, config: GRPOConfig, corpus: Corpus, questions: Iterator[Problem], seed: tuple[int, int]
) -> _Batch:
    """Sample groups until `config.prompts` of them have mixed rewards, or the extra rounds are used up."""
    batch = _Batch([], [], [], torch.empty(0), torch.empty(0), torch.empty(0), 0, [])
    sampling = Sampling(config.temperature, 1.0, config.max_new_tokens)
    missing = config.prompts
    parts: list[tuple[Tensor, Rollouts]] = []
    for round_ in range(1 + config.resample_rounds):
        problems = [next(questions) for _ in range(missing)]
        prompts = [corpus.encode(problem.prompt) for problem in problems]
        rollouts = generate(model, prompts, config.samples, sampling, (*seed, round_))
        responses = rollouts.responses()
        texts = corpus.tokenizer.batch_decode(responses, skip_special_tokens=True)
        rewards = torch.tensor(
            [
                float(stopped and verify(text, problems[i // config.samples].answer))
                for i, (text, stopped) in enumerate(zip(texts, rollouts.stopped.tolist(), strict=True))
            ]
        ).view(-1, config.samples)
        parts.append((rewards, rollouts))
        if not batch.shown:
            batch.shown = [
                {"question": problems[i // config.samples].question, "response": texts[i], "reward": float(reward)}
                for i, reward in list(enumerate(rewards.flatten()))[:: config.samples][:SHOWN]
            ]
        mixed = rewards.std(1) > 0
        for group in mixed.nonzero()[:, 0].tolist():
            place = slice(group * config.samples, (group + 1) * config.samples)
            batch.prompts += [prompts[group]] * config.samples
            batch.responses += responses[place]
            batch.advantage += advantages(rewards[group : group + 1])[0].tolist()
        missing -= int(mixed.sum())
        batch.rounds += 1
        if missing == 0:
            break
    batch.rewards = torch.cat([rewards for rewards, _ in parts])
    batch.lengths = torch.cat([rollouts.lengths for _, rollouts in parts])
    batch.stopped = torch.cat([rollouts.stopped for _, rollouts in parts])
    return batch


def _update(
    model: Qwen3ForCausalLM, optimizer: torch.optim.Optimizer, config: GRPOConfig, batch: _Batch
) -> dict[str, float]:
    """One optimizer step on the whole batch, in micro-batches of like length; nothing where no group was mixed."""
    total = sum(map(len, batch.responses))
    entropy = clipped_low = clipped_high = 0.0
    if not total:
        return {"entropy": float("nan"), "clip_low": 0.0, "clip_high": 0.0, "gradient_norm": 0.0}
    lengths = [len(prompt) + len(response) for prompt, response in zip(batch.prompts, batch.responses, strict=True)]
    for rows in length_batches(lengths, BATCH_TOKENS):
        responses = [batch.responses[i] for i in rows]
        log_probs, entropies = score(model, [batch.prompts[i] for i in rows], responses, config.temperature)
        advantage = torch.tensor(
            [batch.advantage[i] for i in rows for _ in batch.responses[i]], device=log_probs.device
        )
        # Strictly on-policy: the sampling policy is this one, before the only update of the batch.
        loss, low, high = policy_loss(log_probs, log_probs.detach(), advantage, config.clip_low, config.clip_high)
        (loss.sum() / total).backward()
        entropy += entropies.sum().item() / total
        clipped_low += low.sum().item() / total
        clipped_high += high.sum().item() / total
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
    optimizer.step()
    optimizer.zero_grad()
    return {
        "entropy": entropy,
        "clip_low": clipped_low,
        "clip_high": clipped_high,
        "gradient_norm": norm.item(),
    }
