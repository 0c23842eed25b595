"""The update: the loss of one batch of groups in micro-batches, the optimizer's steps, and statistics of both.

With one epoch of one minibatch (the study's choice), a batch is used for one update of the policy that sampled it. The
old log-probabilities then are the new ones without gradient: the ratio is 1 by construction and nothing is clipped,
which the ledger's counts show. With several updates per batch, the old log-probabilities are taken before the first:
the sampler's if it is the same program as the learner, else those of a scoring pass. Groups left over from an earlier
step keep their sampler's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.configuration.grpo import GRPOConfig
from pipelines.grpo.algorithm import (
    advantages,
    divergence,
    importance_weights,
    overlong_penalty,
    surrogate,
    token_weights,
)
from pipelines.grpo.collection import Group
from pipelines.rollouts import length_batches, score

FORKING_SHARE = 0.2
"""Forking tokens are this share of the tokens, those with the highest entropy (arXiv 2506.01939)."""


@dataclass
class Row:
    """One response in the loss."""

    prompt: list[int]
    response: list[int]
    advantage: float
    kept: bool
    """Whether it is in the loss; a filtered overlong response is not."""
    sampler_log_probs: Tensor
    """Of its tokens, under the policy that sampled them."""
    old_log_probs: Tensor
    """Of its tokens, under the policy in the denominator of the ratio."""
    fresh: bool
    """Whether the policy that is being updated sampled it."""
    weight: float = 0.0
    """Of each of its tokens in the minibatch's loss."""


def rows_of(groups: Sequence[Group], config: GRPOConfig, *, step: int) -> list[list[Row]]:
    """The groups' responses with their advantages, by group. Adds the overlong penalty to the rewards if configured."""
    if not groups:
        return []
    rewards = torch.stack([group.rewards for group in groups])  # [G, n]
    if config.overlong == "penalty":
        rewards = rewards + torch.stack(
            [
                overlong_penalty(
                    group.lengths,
                    group.stopped,
                    limit=config.response_limit(max(1, group.step)),
                    buffer=config.overlong_buffer,
                )
                for group in groups
            ]
        )
    advantage = advantages(rewards, config.advantage).tolist()
    return [
        [
            Row(
                prompt=group.prompt,
                response=response,
                advantage=advantage[i][j],
                kept=config.overlong != "filter" or bool(group.stopped[j]),
                sampler_log_probs=group.log_probs[j],
                old_log_probs=group.log_probs[j],
                fresh=group.step == step,
            )
            for j, response in enumerate(group.responses)
        ]
        for i, group in enumerate(groups)
    ]


class Updater:
    """Updates the policy of one training run."""

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        config: GRPOConfig,
        *,
        reference: PreTrainedModel | None,
        exact_sampler: bool,
    ) -> None:
        """`reference` is the model of the KL term; `exact_sampler` is `Engine.exact`."""
        self._model, self._optimizer, self._config = model, optimizer, config
        self._reference, self._exact_sampler = reference, exact_sampler
        optimizer.zero_grad()  # an earlier training run of the model may have left gradients

    def update(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Run all epochs and minibatches over `groups`; returns the ledger's columns on them.

        If no response has an advantage, the step is skipped and only `skipped` is returned. Raises `FloatingPointError`
        if the norm of a gradient is not finite; that gradient is not applied.
        """
        config = self._config
        if not groups:
            return {"skipped": 1}
        by_group = rows_of(groups, config, step=step)
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = config.learning_rate * min(1.0, step / max(1, config.warmup_steps))
        # Several updates need the log-probabilities of the policy before the first; see the module's docstring.
        if not config.on_policy and not self._exact_sampler:
            self._score_old([row for group in by_group for row in group if row.fresh])
        # Each minibatch is a part of the groups, in their order.
        statistics = _Statistics()
        size = -(-len(by_group) // config.minibatches)
        for _ in range(config.epochs):
            for start in range(0, len(by_group), size):
                rows = [row for group in by_group[start : start + size] for row in group]
                self._minibatch(rows, statistics, limit=config.response_limit(step))
        if not statistics.norms:
            return {"skipped": 1}
        return {"skipped": 0, "learning_rate": self._optimizer.param_groups[0]["lr"], **statistics.row()}

    def _score_old(self, rows: list[Row]) -> None:
        """Set `old_log_probs` to those of the current policy."""
        for micro in self.micro_batches(rows):
            prompts, responses = [row.prompt for row in micro], [row.response for row in micro]
            with torch.no_grad():
                scores = score(self._model, prompts, responses, temperature=self._config.temperature)
            lengths = [len(response) for response in responses]
            for row, log_probs in zip(micro, scores.log_probs.cpu().split(lengths), strict=True):
                row.old_log_probs = log_probs

    def _minibatch(self, rows: list[Row], statistics: "_Statistics", *, limit: int) -> None:
        """One step of the optimizer; none if no row has a gradient."""
        config = self._config
        lengths, kept = [len(row.response) for row in rows], [row.kept for row in rows]
        for row, weight in zip(rows, token_weights(lengths, kept, loss=config.loss, limit=limit), strict=True):
            row.weight = weight
        # Rows without a gradient are not computed. With a KL term, every row with a weight has a gradient.
        rows = [row for row in rows if row.weight and (row.advantage or config.kl_weight)]
        if not rows:
            return
        # The weights are of the whole minibatch, so the micro-batches' gradients add up to its gradient.
        for micro in self.micro_batches(rows):
            self._loss(micro, statistics).backward()
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), config.gradient_clip).item()
        if not np.isfinite(norm):
            self._optimizer.zero_grad()
            raise FloatingPointError(f"the gradient's norm is {norm}; lower grpo.learning_rate={config.learning_rate}")
        self._optimizer.step()
        self._optimizer.zero_grad()
        statistics.norms.append(norm)

    def micro_batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """The rows sorted by length, in parts of at most `micro_batch_tokens` tokens."""
        lengths = [len(row.prompt) + len(row.response) for row in rows]
        for batch in length_batches(lengths, self._config.micro_batch_tokens):
            yield [rows[i] for i in batch]

    def _loss(self, rows: list[Row], statistics: "_Statistics") -> Tensor:
        """The rows' part of the minibatch's loss. All tensors are [T], the rows' response tokens one after another."""
        config, device = self._config, self._model.device
        prompts, responses = [row.prompt for row in rows], [row.response for row in rows]
        scores = score(self._model, prompts, responses, temperature=config.temperature)
        lengths = torch.tensor([len(response) for response in responses], device=device)

        def per_token(values: list[float]) -> Tensor:
            """A value of each row, repeated for each of its tokens."""
            return torch.tensor(values, device=device).repeat_interleave(lengths)

        advantage = per_token([row.advantage for row in rows])
        weight = per_token([row.weight for row in rows])
        sampler = torch.cat([row.sampler_log_probs for row in rows]).to(device)
        old = torch.cat([row.old_log_probs for row in rows]).to(device)
        current = scores.log_probs.detach()
        # On-policy, the old policy of fresh rows is the current one; left-over rows keep their sampler's.
        if config.on_policy:
            fresh = per_token([float(row.fresh) for row in rows]) > 0
            old = current.where(fresh, old)
        parts = surrogate(scores.log_probs, old, advantage, clip_low=config.clip_low, clip_high=config.clip_high)
        loss = parts.loss
        # Correct for a sampler with other arithmetic, then add the KL term.
        if config.importance_cap is not None:
            loss = loss * importance_weights(old, sampler, config.importance_cap)
        if config.kl_weight:
            assert self._reference is not None
            with torch.no_grad():
                reference = score(self._reference, prompts, responses, temperature=config.temperature).log_probs
            loss = loss + config.kl_weight * divergence(scores.log_probs, reference)
        statistics.add(parts.ratio, parts.low, parts.high, current - sampler, scores.entropies)
        statistics.slopes.append(((weight * advantage).abs() * scores.steepness).cpu())
        return (loss * weight).sum()


class _Statistics:
    """Statistics of all updates of one step, collected token by token."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        """The gradient's norm of each update."""
        self.slopes: list[Tensor] = []
        """The norm of each token's gradient with respect to its logits."""
        self._columns: list[list[Tensor]] = []
        """By micro-batch: ratio, clipped low, clipped high, mismatch and entropy of each token."""

    def add(self, *columns: Tensor) -> None:
        """Add the columns of a micro-batch."""
        self._columns.append([column.detach().float().cpu() for column in columns])

    def row(self) -> dict[str, float]:
        """The ledger's columns."""
        ratio, low, high, mismatch, entropies = (torch.cat(parts) for parts in zip(*self._columns, strict=True))
        # Columns of all tokens of all updates.
        slopes = torch.cat(self.slopes)
        percentiles = np.percentile(ratio.numpy(), [1, 50, 99])
        forking = entropies > np.quantile(entropies.numpy(), 1 - FORKING_SHARE)
        return {
            "gradient_norm": float(np.mean(self.norms)),
            "clip_low": low.mean().item(),
            "clip_high": high.mean().item(),
            "ratio_p01": float(percentiles[0]),
            "ratio_p50": float(percentiles[1]),
            "ratio_p99": float(percentiles[2]),
            # Between the learner and the sampler: rounding if both are the same program, more with another engine.
            "mismatch": mismatch.abs().mean().item(),
            "entropy_updated": entropies.mean().item(),
            "forking_gradient": (slopes[forking].sum() / slopes.sum().clamp(min=1e-30)).item(),
        }
