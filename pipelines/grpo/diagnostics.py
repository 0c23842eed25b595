"""What shows why a run rises or collapses: rewards, lengths, entropy, distance from the start, forking tokens.

Everything here reads groups that are there anyway. `entropy` is the mean of -log pi over all tokens that were sampled,
before any group is dropped: an unbiased estimate of the policy's entropy a token, with no selection in it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pipelines.configuration.grpo import GRPOConfig
from pipelines.evaluation.metrics import pass_at_k
from pipelines.grpo.algorithm import divergence
from pipelines.grpo.collection import Collected, Group
from pipelines.grpo.update import FORKING_SHARE, rows_of
from pipelines.rollouts import length_batches, score

KL_RESPONSES = 64
"""Responses, drawn from all of a step's, on which the divergence from the start model is estimated."""

RIGHT = 0.5
"""Reward from which on a response counts as right."""


def collected_row(collected: Collected) -> dict[str, float]:
    """The ledger's columns on what a step sampled."""
    groups = collected.sampled
    rewards = torch.stack([group.rewards for group in groups])
    lengths = torch.stack([group.lengths for group in groups]).double()
    stopped = torch.stack([group.stopped for group in groups])
    right = (rewards >= RIGHT).sum(1)
    n = rewards.shape[1]
    correct = rewards >= RIGHT
    p10, p50, p90 = np.percentile(lengths.numpy(), [10, 50, 90])
    return {
        "reward": rewards.mean().item(),
        "reward_std": rewards.std(1).mean().item(),
        "reward_spread": rewards.mean(1).std().item() if len(groups) > 1 else 0.0,
        "entropy": sampled_entropy(groups),
        "prompt_length": float(np.mean([len(group.prompt) for group in groups])),
        "response_length": lengths.mean().item(),
        "length_p10": float(p10),
        "length_p50": float(p50),
        "length_p90": float(p90),
        "length_right": lengths[correct].mean().item() if correct.any() else float("nan"),
        "length_wrong": lengths[~correct].mean().item() if not correct.all() else float("nan"),
        "length_reward_correlation": correlation(lengths, rewards),
        "truncated": 1 - stopped.double().mean().item(),
        "groups": len(groups),
        "groups_right": (right == n).double().mean().item(),
        "groups_wrong": (right == 0).double().mean().item(),
        "groups_mixed": float(np.mean([group.mixed for group in groups])),
        "groups_kept": len(collected.kept),
        "groups_left_over": collected.left_over,
        "rounds": collected.rounds,
        "verifier_timeouts": collected.failures["timeout"],
        "verifier_errors": collected.failures["error"],
        **pass_row(groups),
    }


def pass_row(groups: Sequence[Group]) -> dict[str, float]:
    """`pass@k` of the groups for k = 2, 4, ... up to their size (unbiased)."""
    n = len(groups[0].responses)
    right = np.array([int((group.rewards >= RIGHT).sum()) for group in groups])
    powers = [2**i for i in range(1, n.bit_length()) if 2**i <= n]
    return {f"pass@{k}": float(pass_at_k(right, n, k).mean()) for k in powers}


def sampled_entropy(groups: Sequence[Group]) -> float:
    """Mean of -log pi over the groups' tokens, in nats."""
    return -torch.cat([log_probs for group in groups for log_probs in group.log_probs]).double().mean().item()


def correlation(lengths: torch.Tensor, rewards: torch.Tensor) -> float:
    """Pearson's correlation of length and reward inside groups [G, n]; 0 where either does not vary."""
    x = (lengths - lengths.mean(1, keepdim=True)).double().flatten()
    y = (rewards - rewards.mean(1, keepdim=True)).double().flatten()
    scale = x.norm() * y.norm()
    return (x @ y / scale).item() if scale > 0 else 0.0


def entropy_fall(history: Sequence[dict[str, float]], window: int = 5) -> float:
    """Nats of entropy given up for each unit of reward gained since the first steps; NaN while none is gained."""
    first, last = history[:window], history[-window:]
    gained = _mean(last, "reward") - _mean(first, "reward")
    if len(history) < 2 * window or gained < 0.01:
        return float("nan")
    return (_mean(first, "entropy") - _mean(last, "entropy")) / gained


def _mean(rows: Sequence[dict[str, float]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def divergence_from(
    reference: PreTrainedModel, groups: Sequence[Group], config: GRPOConfig, seed: Sequence[int]
) -> float:
    """Sampled, unbiased KL(policy || reference) a token, in nats, on responses drawn from the groups' own policy."""
    pairs = [(group, j) for group in groups for j in range(len(group.responses))]
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:KL_RESPONSES]
    rows = [pairs[i] for i in chosen]
    total, count = 0.0, 0
    lengths = [len(group.prompt) + len(group.responses[j]) for group, j in rows]
    for batch in length_batches(lengths, config.micro_batch_tokens):
        part = [rows[i] for i in batch]
        with torch.no_grad():
            scores = score(
                reference, [g.prompt for g, _ in part], [g.responses[j] for g, j in part], config.temperature
            )
        own = torch.cat([group.log_probs[j] for group, j in part]).to(scores.log_probs.device)
        total += divergence(own.double(), scores.log_probs.double()).sum().item()
        count += len(own)
    return total / count


def forking_tokens(
    model: PreTrainedModel,
    groups: Sequence[Group],
    config: GRPOConfig,
    tokenizer: PreTrainedTokenizerFast,
    step: int,
    most: int = 20,
) -> list[dict[str, Any]]:
    """Where the policy decides: rows by token and by tenth of the response.

    Forking tokens are the fifth of the tokens drawn from the highest entropy. A row `{"by": "token"}` gives how often a
    string is among them, at which mean position, the mean entropy in nats, and its share of the whole gradient
    (sizes with respect to the logits); `{"by": "position"}` gives a tenth's share of the forking tokens and of the
    gradient; `{"by": "all"}` the threshold and the gradient's share on all of them.
    """
    rows = [row for group in rows_of(groups, config, step) for row in group if row.kept]
    if not rows:
        return []
    lengths = [len(row.prompt) + len(row.response) for row in rows]
    tokens, places, tenths, entropies, slopes = [], [], [], [], []
    for batch in length_batches(lengths, config.micro_batch_tokens):
        part = [rows[i] for i in batch]
        with torch.no_grad():
            scores = score(model, [r.prompt for r in part], [r.response for r in part], config.temperature)
        sizes = [len(row.response) for row in part]
        tokens += [token for row in part for token in row.response]
        places += [i for size in sizes for i in range(size)]
        tenths += [10 * i // size for size in sizes for i in range(size)]
        entropies.append(scores.entropies.cpu().numpy())
        advantage = torch.tensor([abs(row.advantage) for row in part]).repeat_interleave(torch.tensor(sizes))
        slopes.append((advantage * scores.steepness.cpu()).numpy())
    entropy, slope = np.concatenate(entropies), np.concatenate(slopes)
    slope = slope / max(slope.sum(), 1e-30)
    threshold = float(np.quantile(entropy, 1 - FORKING_SHARE))
    forking = np.flatnonzero(entropy > threshold).tolist()
    by_token: dict[int, list[int]] = defaultdict(list)
    for i in forking:
        by_token[tokens[i]].append(i)
    commonest = sorted(by_token.items(), key=lambda item: (-len(item[1]), item[0]))[:most]
    found: list[dict[str, Any]] = [
        {
            "step": step,
            "by": "all",
            "threshold": threshold,
            "entropy": float(entropy.mean()),
            "gradient": float(slope[forking].sum()),
        }
    ]
    found += [
        {
            "step": step,
            "by": "token",
            "token": tokenizer.decode([token]),
            "count": len(at),
            "position": float(np.mean([places[i] for i in at])),
            "entropy": float(entropy[at].mean()),
            "gradient": float(slope[at].sum()),
        }
        for token, at in commonest
    ]
    tenth = np.array(tenths)
    for place in range(10):
        inside = tenth == place
        found.append(
            {
                "step": step,
                "by": "position",
                "tenth": place,
                "share": float(inside[forking].mean()) if len(forking) else 0.0,
                "entropy": float(entropy[inside].mean()) if inside.any() else None,
                "gradient": float(slope[inside].sum()),
            }
        )
    return found
