"""Diagnostics of why a run improves or collapses: rewards, lengths, entropy, divergence, forking tokens.

All of them use groups that the run has sampled anyway. `entropy` is the mean of -log pi over all sampled tokens, before
any group is dropped, which is an unbiased estimate of the policy's entropy per token.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from pipelines.configuration.grpo import GRPOConfig
from pipelines.evaluation.metrics import RIGHT, pass_at_k
from pipelines.grpo.algorithm import divergence
from pipelines.grpo.collection import Collected, Group
from pipelines.grpo.communicator import SINGLE_PROCESS, Communicator
from pipelines.grpo.policy import Policy
from pipelines.grpo.update import FORKING_SHARE, Division, Row, measured, rows_of

KL_RESPONSES = 64
"""Responses, drawn from all of a step's, on which the divergence from the start model is estimated."""


def collected_row(collected: Collected, communicator: Communicator = SINGLE_PROCESS) -> dict[str, float]:
    """The ledger's columns on the groups that a step sampled; all ranks compute them together."""
    groups = collected.sampled
    # [groups, n] each.
    rewards = torch.stack([group.rewards for group in groups])
    lengths = torch.stack([group.lengths for group in groups]).double()
    stopped = torch.stack([group.stopped for group in groups])
    right = rewards >= RIGHT
    p10, p50, p90 = np.percentile(lengths.numpy(), [10, 50, 90])
    return {
        "reward": rewards.mean().item(),
        "reward_std": rewards.std(1).mean().item(),
        "reward_spread": rewards.mean(1).std().item() if len(groups) > 1 else float("nan"),
        "entropy": sampled_entropy(groups, communicator),
        "prompt_length": float(np.mean([len(group.prompt) for group in groups])),
        "response_length": lengths.mean().item(),
        "length_p10": float(p10),
        "length_p50": float(p50),
        "length_p90": float(p90),
        "length_right": lengths[right].mean().item() if right.any() else float("nan"),
        "length_wrong": lengths[~right].mean().item() if not right.all() else float("nan"),
        "length_reward_correlation": correlation(lengths, rewards),
        "truncated": 1 - stopped.double().mean().item(),
        "groups": len(groups),
        "groups_right": right.all(1).double().mean().item(),
        "groups_wrong": (~right).all(1).double().mean().item(),
        "groups_mixed": float(np.mean([group.mixed for group in groups])),
        "groups_kept": len(collected.kept),
        "groups_left_over": collected.left_over,
        "groups_missing": collected.missing,
        "rounds": collected.rounds,
        "verifier_timeouts": collected.failures["timeout"],
        "verifier_errors": collected.failures["error"],
        "verifier_too_long": collected.failures["too_long"],
        **pass_row(groups),
    }


def pass_row(groups: Sequence[Group]) -> dict[str, float]:
    """The unbiased `pass@k` of the groups for k = 2, 4, ... up to their size."""
    n = len(groups[0].responses)
    right = np.array([int((group.rewards >= RIGHT).sum()) for group in groups])
    powers = [2**i for i in range(1, n.bit_length()) if 2**i <= n]
    return {f"pass@{k}": float(pass_at_k(right, n, k).mean()) for k in powers}


def sampled_entropy(groups: Sequence[Group], communicator: Communicator = SINGLE_PROCESS) -> float:
    """Mean of -log pi over the groups' tokens, in nats."""
    local = torch.cat([log_probs for group in groups for log_probs in group.log_probs]).double()
    total, count = communicator.sums(local.sum().item(), len(local))
    return -total / count


def correlation(lengths: torch.Tensor, rewards: torch.Tensor) -> float:
    """Pearson's correlation of length and reward within groups, [G, n] each; NaN if either does not vary."""
    # Deviations from the group's mean, so that hard questions with long responses do not count.
    x = (lengths - lengths.mean(1, keepdim=True)).double().flatten()
    y = (rewards - rewards.mean(1, keepdim=True)).double().flatten()
    return (x @ y / (x.norm() * y.norm())).item()  # 0 / 0 is NaN


def entropy_fall(history: Sequence[dict[str, float]], window: int = 5) -> float:
    """Entropy lost, in nats, per unit of reward gained since the first steps; NaN without a gain of at least 0.01."""
    first, last = history[:window], history[-window:]
    gained = _mean(last, "reward") - _mean(first, "reward")
    if len(history) < 2 * window or gained < 0.01:
        return float("nan")
    return (_mean(first, "entropy") - _mean(last, "entropy")) / gained


def _mean(rows: Sequence[dict[str, float]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def divergence_from(
    reference: Policy,
    groups: Sequence[Group],
    config: GRPOConfig,
    *,
    seed: Sequence[int],
    division: Division,
) -> float:
    """Sampled, unbiased KL(policy || reference) per token, in nats; the groups must be from the current policy."""
    rows = [row for group in rows_of(groups, config, step=groups[0].step) for row in group]
    # A fixed number of responses, so that the cost does not grow with the batch.
    chosen = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:KL_RESPONSES]]
    total, count = 0.0, 0
    for micro in division(chosen):
        scores = measured(reference, micro, temperature=config.temperature)
        if micro:
            policy = torch.cat([row.sampler_log_probs for row in micro]).to(scores.log_probs.device)
            total += divergence(policy.double(), scores.log_probs.double()).sum().item()
            count += len(policy)
    total, tokens = division.communicator.sums(total, count)
    return total / tokens


@dataclass(frozen=True)
class _TokenTable:
    """One entry for each response token of all ranks."""

    tokens: list[int]
    positions: list[int]
    """Index in the response."""
    tenths: NDArray[np.int64]
    """Tenth of the response, 0 to 9."""
    entropies: NDArray[np.float32]
    """Of the distribution that the token was drawn from, nats."""
    gradients: NDArray[np.float32]
    """Share of the whole gradient: norms with respect to the logits, which sum to 1."""


def forking_tokens(
    policy: Policy,
    groups: Sequence[Group],
    config: GRPOConfig,
    *,
    tokenizer: PreTrainedTokenizerFast,
    step: int,
    division: Division,
    most: int = 20,
) -> list[dict[str, Any]]:
    """Where the policy's entropy is highest, as rows by token and by tenth of the response.

    Forking tokens are the fifth of the tokens with the highest entropy. The row `{"by": "all"}` has the threshold and
    the forking tokens' share of the gradient; a row `{"by": "token"}`, for the `most` frequent ones, has how often a
    token is among them, its mean position and entropy (nats) there, and its share of the gradient; `{"by": "position"}`
    has a tenth's share of the forking tokens and of the gradient.
    """
    rows = [row for group in rows_of(groups, config, step=step) for row in group if row.kept]
    if not rows:
        return []
    # Forking tokens are compared over all responses of the step, not within one.
    table = _token_table(policy, division(rows), temperature=config.temperature, communicator=division.communicator)
    threshold = float(np.quantile(table.entropies, 1 - FORKING_SHARE))
    forking = np.flatnonzero(table.entropies > threshold).tolist()
    summary = {
        "step": step,
        "by": "all",
        "threshold": threshold,
        "entropy": float(table.entropies.mean()),
        "gradient": float(table.gradients[forking].sum()),
    }
    by_token = _forking_by_token(table, forking, most)
    return [
        summary,
        *({"step": step, "by": "token", "token": tokenizer.decode([token]), **row} for token, row in by_token),
        *({"step": step, "by": "position", **row} for row in _forking_by_tenth(table, forking)),
    ]


def _token_table(
    policy: Policy, micro_batches: Sequence[list[Row]], *, temperature: float, communicator: Communicator
) -> _TokenTable:
    """The table of all ranks' rows, of which `micro_batches` are this rank's."""
    tokens: list[int] = []
    positions: list[int] = []
    tenths: list[int] = []
    entropies, slopes = [torch.empty(0)], [torch.empty(0)]
    for part in micro_batches:
        scores = measured(policy, part, temperature=temperature)
        if not part:
            continue
        # One entry per response token, in the order of the scores.
        sizes = [row.length for row in part]
        tokens += [token for row in part for token in row.response]
        positions += [i for size in sizes for i in range(size)]
        tenths += [10 * i // size for size in sizes for i in range(size)]
        entropies.append(scores.entropies.cpu())
        # |d loss / d logits| of a token is |advantage| times the norm of d log pi / d logits.
        advantage = torch.tensor([abs(row.advantage) for row in part]).repeat_interleave(torch.tensor(sizes))
        slopes.append(advantage * scores.steepness.cpu())
    whole = communicator.concatenated(torch.tensor([tokens, positions, tenths], dtype=torch.int64).T.contiguous())
    entropy, slope = (communicator.concatenated(torch.cat(parts)).numpy() for parts in (entropies, slopes))
    gradients = slope / max(slope.sum(), 1e-30)
    all_tokens, all_positions, all_tenths = whole.T.contiguous()
    return _TokenTable(all_tokens.tolist(), all_positions.tolist(), all_tenths.numpy(), entropy, gradients)


def _forking_by_token(table: _TokenTable, forking: Sequence[int], most: int) -> list[tuple[int, dict[str, Any]]]:
    """(token, row) of the `most` frequent forking tokens; `forking` are indices into the table."""
    indices: dict[int, list[int]] = defaultdict(list)
    for i in forking:
        indices[table.tokens[i]].append(i)
    frequent = sorted(indices.items(), key=lambda entry: (-len(entry[1]), entry[0]))[:most]
    return [
        (
            token,
            {
                "count": len(chosen),
                "position": float(np.mean([table.positions[i] for i in chosen])),
                "entropy": float(table.entropies[chosen].mean()),
                "gradient": float(table.gradients[chosen].sum()),
            },
        )
        for token, chosen in frequent
    ]


def _forking_by_tenth(table: _TokenTable, forking: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each tenth of the responses; `forking` are indices into the table."""
    rows = []
    for tenth in range(10):
        inside = table.tenths == tenth
        rows.append(
            {
                "tenth": tenth,
                "share": float(inside[forking].mean()) if len(forking) else 0.0,
                "entropy": float(table.entropies[inside].mean()) if inside.any() else None,
                "gradient": float(table.gradients[inside].sum()),
            }
        )
    return rows
