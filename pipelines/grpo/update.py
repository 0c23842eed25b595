"""The update: the loss of one batch of groups in micro-batches, the optimizer's steps, and statistics of both.

With one epoch of one minibatch (the study's choice), a batch is used for one update of the policy that sampled it. The
old log-probabilities then are the new ones without gradient: the ratio is 1 by construction and nothing is clipped,
which the ledger's counts show. With several updates per batch, the old log-probabilities are taken before the first:
the sampler's if it is the same program as the learner, else those of a scoring pass. Groups left over from an earlier
step keep their sampler's.

With several ranks, each learns from a part of the rows. The weight of a token is that in the whole minibatch, so the
sum of the ranks' gradients is the gradient of one process.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.configuration.grpo import IMPORTANCE_CAP, GRPOConfig
from pipelines.grpo.algorithm import (
    advantages,
    divergence,
    importance_weights,
    overlong_penalty,
    surrogate,
    token_weights,
)
from pipelines.grpo.collection import Group
from pipelines.grpo.communicator import SINGLE_PROCESS, Communicator
from pipelines.grpo.policy import Policy
from pipelines.grpo.sharing import micro_batches
from pipelines.rollouts import Scores
from pipelines.rollouts.expert_replay import routing_of
from pipelines.training.throughput import step_operations

FORKING_SHARE = 0.2
"""Forking tokens are this share of the tokens, those with the highest entropy (arXiv 2506.01939)."""


@dataclass
class Row:
    """One response in the loss or in a measurement; other ranks may have its tokens."""

    prompt: list[int]
    length: int
    """Tokens of the response."""
    owner: int
    """The rank that sampled the response and has its tokens."""
    response: list[int]
    """Token ids; empty where another rank has them."""
    sampler_log_probs: Tensor
    """Of its tokens, under the policy that sampled them; empty where another rank has them."""
    advantage: float
    kept: bool
    """Whether it is in the loss; a filtered overlong response is not."""
    fresh: bool
    """Whether the policy that is being updated sampled it."""
    experts: Tensor | None = None
    """Of its prompt and its tokens but the last, those that the sampler chose; None without routing replay."""
    weight: float = 0.0
    """Of each of its tokens in the minibatch's loss."""
    rescored: Tensor | None = None
    """Log-probabilities of its tokens by the learner before the first update, where the sampler's do not do."""

    @property
    def old_log_probs(self) -> Tensor:
        """Of its tokens, under the policy in the denominator of the ratio."""
        return self.sampler_log_probs if self.rescored is None else self.rescored


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
                length=length,
                owner=group.owners[j],
                response=group.responses[j],
                sampler_log_probs=group.log_probs[j],
                advantage=advantage[i][j],
                kept=config.overlong != "filter" or bool(group.stopped[j]),
                fresh=group.step == step,
                experts=group.experts[j] if group.experts else None,
            )
            for j, length in enumerate(group.lengths.tolist())
        ]
        for i, group in enumerate(groups)
    ]


class Division:
    """Divides rows among the ranks, by the operations that each costs, and brings each rank its own."""

    def __init__(
        self, policy: Policy, communicator: Communicator, tokens: int, *, experts: tuple[int, int] = (0, 0)
    ) -> None:
        """`tokens`: most tokens of a micro-batch; `experts`: see `Communicator.deliver`."""
        self.communicator, self._tokens, self._experts = communicator, tokens, experts
        model = policy.model
        self._cost = lru_cache(maxsize=None)(lambda length: step_operations(model, length, length))

    def __call__(self, rows: Sequence[Row]) -> list[list[Row]]:
        """This rank's micro-batches, with their tokens; as many on every rank, so some may be empty."""
        communicator = self.communicator
        lengths = [len(row.prompt) + row.length for row in rows]
        parts = micro_batches(lengths, self._cost, ranks=communicator.ranks, tokens=self._tokens)
        destination = {index: rank for rank, part in enumerate(parts) for batch in part for index in batch}
        communicator.deliver(rows, [destination[index] for index in range(len(rows))], experts=self._experts)
        return [[rows[index] for index in batch] for batch in parts[communicator.rank]]


def measured(policy: Policy, rows: Sequence[Row], *, temperature: float, replay: bool = False) -> Scores:
    """The scores of the rows' tokens without gradient, row by row; all ranks measure together.

    With `replay` by the experts that were recorded with the rows, else by those that the policy chooses.
    """
    experts = _experts(rows) if replay else None
    return policy.measured([row.prompt for row in rows], [row.response for row in rows], temperature, experts=experts)


def _experts(rows: Sequence[Row]) -> list[Tensor]:
    return [row.experts for row in rows if row.experts is not None]


def plain_backward(loss: Tensor, last: bool) -> None:
    """The gradient of a micro-batch's loss in a single process."""
    loss.backward()


class Updater:
    """Updates the policy of one training run."""

    def __init__(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        config: GRPOConfig,
        *,
        reference: Policy | None = None,
        exact_sampler: bool,
        communicator: Communicator = SINGLE_PROCESS,
        micro_batch_tokens: int | None = None,
        backward: Callable[[Tensor, bool], None] = plain_backward,
    ) -> None:
        """`reference` is the model of the KL term; `exact_sampler` is whether the sampler computes as the learner does.

        `micro_batch_tokens` is by default that of `config`. `backward` computes the gradient of a micro-batch's loss,
        and with True, for the last one of an optimizer step, also the mean of the gradients over the ranks.
        """
        self._policy, self._optimizer, self._config = policy, optimizer, config
        self._reference, self._exact_sampler = reference, exact_sampler
        self._communicator, self._backward = communicator, backward
        # With routing replay, the hooks by which the policy takes the experts that were recorded.
        self._routing = routing_of(policy.model) if config.routing_replay else None
        self.division = Division(
            policy,
            communicator,
            micro_batch_tokens or config.micro_batch_tokens,
            experts=(self._routing.layers, self._routing.active) if self._routing else (0, 0),
        )
        cap = config.importance_cap
        if cap is None and not exact_sampler:
            cap = IMPORTANCE_CAP
        self._cap = cap or None
        optimizer.zero_grad()  # an earlier training run of the model may have left gradients

    def update(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Run all epochs and minibatches over `groups`; returns the ledger's columns on them.

        If no response has an advantage, the step is skipped and only `skipped` is returned. Raises `FloatingPointError`
        if the norm of a gradient is not finite; that gradient is not applied.
        """
        config = self._config
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = config.learning_rate * min(1.0, step / max(1, config.warmup_steps))
        minibatches = list(self._minibatches(rows_of(groups, config, step=step), config.response_limit(step)))
        if not minibatches:
            return {"skipped": 1}
        # Several updates need the log-probabilities of the policy before the first; see the module's docstring.
        if not config.on_policy and not self._exact_sampler:
            for micro in (micro for minibatch in minibatches for micro in minibatch):
                self._score_old(micro)
        statistics = _Statistics()
        for _ in range(config.epochs):
            for minibatch in minibatches:
                self._step(minibatch, statistics)
        row = statistics.row(self._communicator)
        if self._routing:
            differing, count = self._communicator.sums(*(statistics.routing or (0.0, 0)))
            row["routing_differs"] = differing / max(1, count)
        return {"skipped": 0, "learning_rate": self._optimizer.param_groups[0]["lr"], **row}

    def _minibatches(self, by_group: Sequence[list[Row]], limit: int) -> Iterator[list[list[Row]]]:
        """The micro-batches of this rank in each minibatch that has a gradient; a minibatch is a part of the groups."""
        config = self._config
        size = -(-len(by_group) // config.minibatches)
        for start in range(0, len(by_group), size or 1):
            rows = [row for group in by_group[start : start + size] for row in group]
            lengths, kept = [row.length for row in rows], [row.kept for row in rows]
            for row, weight in zip(rows, token_weights(lengths, kept, loss=config.loss, limit=limit), strict=True):
                row.weight = weight
            # Rows without a gradient are not computed. With a KL term, every row with a weight has a gradient.
            rows = [row for row in rows if row.weight and (row.advantage or config.kl_weight)]
            if rows:
                yield self.division(rows)

    def _score_old(self, rows: list[Row]) -> None:
        """Set the old log-probabilities of fresh rows to those of the current policy."""
        replay = self._config.routing_replay
        scores = measured(self._policy, rows, temperature=self._config.temperature, replay=replay)
        log_probs = scores.log_probs.cpu()
        for row, part in zip(rows, log_probs.split([row.length for row in rows]) if rows else (), strict=True):
            if row.fresh:
                row.rescored = part

    def _step(self, minibatch: list[list[Row]], statistics: "_Statistics") -> None:
        """One step of the optimizer."""
        # The weights are of the whole minibatch, so the micro-batches' gradients add up to its gradient.
        for index, micro in enumerate(minibatch):
            # Gradients are averaged over ranks.
            loss = self._loss(micro, statistics) * self._communicator.ranks
            self._backward(loss, index + 1 == len(minibatch))
        total: Any = torch.nn.utils.clip_grad_norm_(self._policy.parameters(), self._config.gradient_clip)
        norm = (total.full_tensor() if hasattr(total, "full_tensor") else total).item()
        if not np.isfinite(norm):
            self._optimizer.zero_grad()
            raise FloatingPointError(
                f"the gradient's norm is {norm}; lower grpo.learning_rate={self._config.learning_rate}"
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        statistics.norms.append(norm)

    def _loss(self, rows: list[Row], statistics: "_Statistics") -> Tensor:
        """The rows' part of the minibatch's loss. All tensors are [T], the rows' response tokens one after another."""
        config, device = self._config, self._policy.model.device
        experts = _experts(rows) if self._routing else None
        scores = self._policy(
            [row.prompt for row in rows], [row.response for row in rows], config.temperature, experts=experts
        )
        if self._routing and rows:
            statistics.add_routing(*self._routing.differing())
        reference = None
        if config.kl_weight:
            assert self._reference is not None
            reference = measured(self._reference, rows, temperature=config.temperature).log_probs
        if not rows:
            return scores.log_probs.sum() * 0.0
        lengths = torch.tensor([row.length for row in rows], device=device)

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
        if self._cap is not None:
            loss = loss * importance_weights(old, sampler, self._cap)
        if reference is not None:
            loss = loss + config.kl_weight * divergence(scores.log_probs, reference)
        slopes = (weight * advantage).abs() * scores.steepness
        statistics.add(parts.ratio, parts.low, parts.high, current - sampler, scores.entropies, slopes)
        return (loss * weight).sum()


@dataclass
class _Statistics:
    """Statistics of all updates of one step, collected token by token."""

    norms: list[float] = field(default_factory=list)
    """The gradient's norm of each update."""
    micro_batches: list[Tensor] = field(default_factory=list)
    """[6, T] each: ratio, clipped low, clipped high, mismatch, entropy, and norm of the gradient with respect to the
    logits, of each token."""

    routing: tuple[float, int] | None = None
    """For how many tokens x layers the policy itself chose other experts than the sampler, and of how many."""

    def add_routing(self, differing: float, count: int) -> None:
        """Add the counts of a micro-batch."""
        before = self.routing or (0.0, 0)
        self.routing = (before[0] + differing, before[1] + count)

    def add(self, *columns: Tensor) -> None:
        """Add the columns of a micro-batch."""
        self.micro_batches.append(torch.stack([column.detach().float().cpu() for column in columns]))

    def row(self, communicator: Communicator) -> dict[str, float]:
        """The ledger's columns, over the tokens of all ranks."""
        local = torch.cat([torch.empty(6, 0), *self.micro_batches], 1)
        columns = communicator.concatenated(local.T.contiguous()).T.contiguous()
        ratio, low, high, mismatch, entropies, slopes = columns
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
