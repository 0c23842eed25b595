"""Pre-training and mid-training from the first step to the last: the trainer, its data and its errors.

Pre-training warms up and then holds its learning rate; mid-training starts at that rate and decays.
"""

from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from pipelines.configuration.compute import micro_batch
from pipelines.errors import StageFailure
from pipelines.stage_context import StageContext
from pipelines.training import parallel
from pipelines.training.next_token import Budget, NextToken
from pipelines.training.trainer import trainer, without_noise
from pipelines.training.training_rows import RankRows, TrainingRows
from shaping.objective import Objective


def train(
    model: PreTrainedModel,
    objective: Objective,
    budget: Budget,
    *,
    context: StageContext,
    balance_rate: float = 1e-3,
) -> dict[str, float]:
    """Train `model` in place for the whole budget; returns the last ledger row's statistics and the throughput.

    Resumes from the trainer state in `context.resume` if there is one, to the same weights, bit for bit on a CPU with
    the same number of ranks, and saves one there from time to time. With several ranks each takes an equal share of
    every batch and gradients are averaged: the same training up to the order of summation. `balance_rate` is the step
    of the routers' biases in a mixture of experts.

    Raises `Interrupted`, with the state saved, soon after `context.interrupted()` turns true; `FloatingPointError` if
    more steps than the budget allows are not finite or spikes; `UserError` if a batch cannot be divided by the ranks;
    `StageFailure` if a trainer state does not fit the model.
    """
    ranks = context.ranks
    micro_rows, accumulation = micro_batch(budget, context.compute, ranks.tasks)
    module = NextToken(model, objective, budget, context=context, accumulation=accumulation, balance_rate=balance_rate)
    rows = RankRows(
        TrainingRows(context.corpus, budget, context.seed),
        first_step=module.first_step,
        batch=budget.batch_tokens // budget.sequence_length,
        rank=ranks.rank,
        ranks=ranks.tasks,
    )
    # `RankRows` already returns micro-batches as tensors [rows, length + 1].
    loader = DataLoader(rows, batch_size=micro_rows, collate_fn=_unchanged)
    with without_noise():
        try:
            # Nothing is left to train if the state was saved after the last step.
            if module.first_step < budget.steps:
                steps = budget.steps - module.first_step
                _trainer(budget, context, accumulation=accumulation, steps=steps).fit(module, loader)
        except torch.OutOfMemoryError as error:
            raise StageFailure(
                f"compute.micro_batch_tokens={micro_rows * budget.sequence_length}: the device's memory does not hold "
                "that many tokens of this model at a time; halve it, or set compute.activation_checkpointing=full or "
                "compute.strategy=fsdp"
            ) from error
    model.eval()
    return {
        **module.newest_statistics,
        "steps": budget.steps,
        "tokens": budget.steps * budget.batch_tokens,
        "skipped": module.step_filter.skipped,
        **module.speed.overall,
    }


def _trainer(budget: Budget, context: StageContext, *, accumulation: int, steps: int) -> L.Trainer:
    # FSDP's own policy sets the precision of a sharded model.
    mixed = budget.precision == "bfloat16-mixed" and not parallel.is_sharded(context.compute, context.ranks.tasks)
    return trainer(
        context,
        max_steps=steps,
        precision="bf16-mixed" if mixed else "32-true",
        accumulate_grad_batches=accumulation,
    )


def _unchanged(batch: Any) -> Any:
    return batch
