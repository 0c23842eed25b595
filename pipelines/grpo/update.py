"""One batch of groups into the weights: the loss in micro-batches, the optimizer's steps, and what they tell.

With one epoch of one minibatch (the study's choice) a batch is used for one update, made by the policy that sampled
it. The old log-probabilities are then the new ones without gradient: the ratio is 1 by construction and the clip acts
on nothing; its counts are in the ledger to show that. With more than one update a batch, the old log-probabilities are
taken before the first: the sampler's own where it is the same program as the learner, a scoring pass otherwise. Groups
left over from an earlier step keep their sampler's.
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
"""Forking tokens are the fifth of the tokens with the highest entropy (arXiv 2506.01939)."""


@dataclass
class Row:
    """One response as the loss sees it."""

    prompt: list[int]
    response: list[int]
    advantage: float
    kept: bool
    """Whether its tokens are in the loss; a filtered overlong response is not."""
    sampler: Tensor
    """The sampler's log-probabilities of its tokens."""
    old: Tensor
    """Those that the ratio is taken to."""
    fresh: bool
    """Sampled by the policy that is updated."""
    weight: float = 0.0
    """Of each of its tokens in the minibatch's loss."""


def rows_of(groups: Sequence[Group], config: GRPOConfig, step: int) -> list[list[Row]]:
    """The groups' responses with their advantages, group by group; an overlong penalty is added to the rewards."""
    if not groups:
        return []
    rewards = torch.stack([group.rewards for group in groups])
    if config.overlong == "penalty":
        rewards = rewards + torch.stack(
            [
                overlong_penalty(g.lengths, g.stopped, config.response_limit(max(1, g.step)), config.overlong_buffer)
                for g in groups
            ]
        )
    advantage = advantages(rewards, config.advantage).tolist()
    return [
        [
            Row(
                group.prompt,
                response,
                advantage[i][j],
                config.overlong != "filter" or bool(group.stopped[j]),
                group.log_probs[j],
                group.log_probs[j],
                group.step == step,
            )
            for j, response in enumerate(group.responses)
        ]
        for i, group in enumerate(groups)
    ]


class Updater:
    """Makes the updates of one training run."""

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        config: GRPOConfig,
        reference: PreTrainedModel | None,
        exact_sampler: bool,
    ) -> None:
        self._model, self._optimizer, self._config = model, optimizer, config
        self._reference, self._exact = reference, exact_sampler
        optimizer.zero_grad()  # whoever trained the model before may have left gradients

    def update(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """All epochs and minibatches over `groups`; returns what the ledger shows.

        Where nothing has an advantage the step is skipped, which is all that is returned.
        Raises `FloatingPointError` where the gradient stops being finite; the weights are then the ones before.
        """
        config = self._config
        if not groups:
            return {"skipped": 1}
        by_group = rows_of(groups, config, step)
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, step / max(1, config.warmup_steps))
        if not config.on_policy and not self._exact:
            self._take_old([row for group in by_group for row in group if row.fresh])
        watched = _Watched()
        size = -(-len(by_group) // config.minibatches)
        for _ in range(config.epochs):
            for start in range(0, len(by_group), size):
                rows = [row for group in by_group[start : start + size] for row in group]
                self._minibatch(rows, config.response_limit(step), watched)
        if not watched.norms:
            return {"skipped": 1}
        return {"skipped": 0, "learning_rate": self._optimizer.param_groups[0]["lr"], **watched.row()}

    def _take_old(self, rows: list[Row]) -> None:
        """Score the rows by the policy as it stands before the step's first update."""
        for micro in self.micro_batches(rows):
            responses = [row.response for row in micro]
            with torch.no_grad():
                scores = score(self._model, [row.prompt for row in micro], responses, self._config.temperature)
            for row, old in zip(micro, scores.log_probs.cpu().split([len(r) for r in responses]), strict=True):
                row.old = old

    def _minibatch(self, rows: list[Row], limit: int, watched: "_Watched") -> None:
        config = self._config
        lengths = [len(row.response) for row in rows]
        weights = token_weights(lengths, [row.kept for row in rows], config.loss, limit)
        for row, weight in zip(rows, weights, strict=True):
            row.weight = weight
        # A response whose every token weighs nothing is not computed; with a KL term every kept one has a gradient.
        rows = [row for row in rows if row.weight and (row.advantage or config.kl_weight)]
        if not rows:
            return
        for micro in self.micro_batches(rows):
            self._loss(micro, watched).backward()
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), config.gradient_clip).item()
        if not np.isfinite(norm):
            self._optimizer.zero_grad()
            raise FloatingPointError(f"the gradient's norm is {norm}; lower grpo.learning_rate={config.learning_rate}")
        self._optimizer.step()
        self._optimizer.zero_grad()
        watched.norms.append(norm)

    def micro_batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """The rows sorted by length, in parts that fit in `micro_batch_tokens`."""
        lengths = [len(row.prompt) + len(row.response) for row in rows]
        for batch in length_batches(lengths, self._config.micro_batch_tokens):
            yield [rows[i] for i in batch]

    def _loss(self, rows: list[Row], watched: "_Watched") -> Tensor:
        config, device = self._config, self._model.device
        prompts, responses = [row.prompt for row in rows], [row.response for row in rows]
        scores = score(self._model, prompts, responses, config.temperature)
        counts = torch.tensor([len(response) for response in responses], device=device)

        def spread(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device).repeat_interleave(counts)

        advantage, weight = spread([row.advantage for row in rows]), spread([row.weight for row in rows])
        sampler = torch.cat([row.sampler for row in rows]).to(device)
        old = torch.cat([row.old for row in rows]).to(device)
        current = scores.log_probs.detach()
        if config.on_policy:
            fresh = spread([float(row.fresh) for row in rows]) > 0
            old = current.where(fresh, old)
        parts = surrogate(scores.log_probs, old, advantage, config.clip_low, config.clip_high)
        loss = parts.loss
        if config.importance_cap is not None:
            loss = loss * importance_weights(old, sampler, config.importance_cap)
        if config.kl_weight:
            assert self._reference is not None
            with torch.no_grad():
                reference = score(self._reference, prompts, responses, config.temperature).log_probs
            loss = loss + config.kl_weight * divergence(scores.log_probs, reference)
        watched.see(parts.ratio, parts.low, parts.high, current - sampler, scores.entropies)
        watched.slopes.append(((weight * advantage).abs() * scores.steepness).cpu())
        return (loss * weight).sum()


class _Watched:
    """What the updates of one step show, token by token."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.slopes: list[Tensor] = []
        """Size of each token's gradient with respect to its logits."""
        self._seen: list[list[Tensor]] = []

    def see(self, *columns: Tensor) -> None:
        self._seen.append([column.detach().float().cpu() for column in columns])

    def row(self) -> dict[str, float]:
        ratio, low, high, mismatch, entropies = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        slopes = torch.cat(self.slopes)
        percentiles = np.percentile(ratio.numpy(), [1, 50, 99])
        forking = entropies > np.quantile(entropies.numpy(), 1 - FORKING_SHARE)
        # Between the learner and the sampler: rounding where both are one program, more with another engine.
        return {
            "gradient_norm": float(np.mean(self.norms)),
            "clip_low": low.mean().item(),
            "clip_high": high.mean().item(),
            "ratio_p01": float(percentiles[0]),
            "ratio_p50": float(percentiles[1]),
            "ratio_p99": float(percentiles[2]),
            "mismatch": mismatch.abs().mean().item(),
            "entropy_updated": entropies.mean().item(),
            "forking_gradient": (slopes[forking].sum() / slopes.sum().clamp(min=1e-30)).item(),
        }
