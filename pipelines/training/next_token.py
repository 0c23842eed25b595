"""The Lightning module of pre-training and mid-training, whose loss is the shaped objective."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.configuration.budgets import MidtrainConfig, PretrainConfig
from pipelines.errors import Interrupted, StageFailure
from pipelines.models.causal_lm import parameter_count
from pipelines.rollouts.architectures import short_cuts
from pipelines.stage_context import StageContext
from pipelines.training import parallel
from pipelines.training.causal_loss import CausalLoss
from pipelines.training.expert_balance import ExpertBalance
from pipelines.training.optimizer import adamw, learning_rate
from pipelines.training.step_filter import StepFilter
from pipelines.training.throughput import Speed, device_name, step_operations
from pipelines.training.trainer_state import (
    SAVE_SECONDS,
    every,
    load_tensors,
    save_tensors,
    saved_state,
    saved_steps,
    trainer_tensors,
)
from pipelines.training.weight_stream import save_milestone
from shaping.objective import Objective
from shaping.statistics import TokenStatistics

LEDGER_ROWS = 100
"""Approximate number of rows that a stage run writes; statistics are only computed for those steps."""

Budget = PretrainConfig | MidtrainConfig

LEDGER_STATISTICS: dict[str, Callable[[TokenStatistics], Tensor]] = {
    "cross_entropy": lambda statistics: -statistics.target_log_probability.mean(),
    "entropy": lambda statistics: statistics.entropy.mean(),
    "head_mass": lambda statistics: statistics.head_mass.mean(),
}
"""Column of the ledger -> its value from the statistics [B, T] of a micro-batch. To add a metric, add an entry; the
ledger, W&B and the display's status pick it up."""


class NextToken(L.LightningModule):
    """A causal language model trained with one objective and one budget."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        budget: Budget,
        *,
        context: StageContext,
        accumulation: int,
        balance_rate: float,
    ) -> None:
        """`accumulation` is the number of micro-batches in a step, `balance_rate` that of `ExpertBalance`."""
        super().__init__()
        documents = budget.attention == "document"
        document_token = context.corpus.document_start if documents else None
        parallel.prepare(model, context.compute, precision=budget.precision, documents=documents)
        # The data's head for all objectives, so that their ledgers can be compared.
        self.loss = CausalLoss(model.train(), objective, document_token, top_k=context.corpus.top_k)
        self.budget, self.context, self._accumulation = budget, context, accumulation
        self._ranks = context.ranks.tasks
        self._sharded = parallel.is_sharded(context.compute, self._ranks)
        self._save_is_due = every(SAVE_SECONDS)
        self._row_interval = max(1, budget.steps // LEDGER_ROWS)
        self._milestones = set(budget.checkpoints())
        self._balance = ExpertBalance(model, balance_rate)
        operations = step_operations(model, budget.batch_tokens, budget.sequence_length)
        if documents and self._sharded and not short_cuts(model).packed:
            raise StageFailure(
                f"{budget.key}.attention=document: layers of {type(model).__name__} carry a state from one document to "
                f"the next, so each document runs by itself, which sharded ranks cannot; set compute.strategy=ddp, or "
                f"{budget.key}.attention=row"
            )
        self.speed = Speed(operations, budget.batch_tokens, self._ranks)

        # What a trainer state restores.
        self._state = saved_state(context.resume)
        self.first_step: int = self._state["step"] if self._state else 0
        """Steps that earlier attempts have done."""
        self.newest_statistics: dict[str, float] = self._state["last"] if self._state else {}
        """The statistics of the newest ledger row."""
        self.step_filter = StepFilter(budget, self._state)

        # Of the current step.
        self._statistics: dict[str, float] = {}
        """Statistics for the ledger row, averaged over the micro-batches; empty if no row is due."""
        self._gradient_norm: Tensor | None = None
        self._is_skipped = False

    @property
    def model(self) -> PreTrainedModel:
        """The language model."""
        return self.loss.model

    @property
    def done(self) -> int:
        """Optimizer steps done, including those of earlier attempts."""
        return self.first_step + self.global_step

    def configure_model(self) -> None:
        """Shard the model if the strategy does so."""
        if self._sharded and not hasattr(self.model.get_output_embeddings().weight, "full_tensor"):
            mesh = self.device_mesh
            assert mesh is not None
            parallel.shard(self.loss, self.model, mesh=mesh, precision=self.budget.precision)

    def on_train_start(self) -> None:
        """Log what is trained, where, and from which step on."""
        budget, compute, ranks = self.budget, self.context.compute, self.context.ranks
        model = f"{parameter_count(self.model):,} parameters in {budget.precision}"
        devices = f"{ranks.tasks} x {device_name(self.device)}, nodes: {ranks.nodes}, strategy: {compute.strategy}"
        self.context.log("%s: %s on %s, micro-batches in a step: %d", budget.key, model, devices, self._accumulation)
        start = f"resuming after step {self.first_step:,}" if self.first_step else "starting at step 1"
        amount = f"{budget.steps:,} steps; {budget.tokens:,} tokens, {budget.batch_tokens:,} in a step"
        self.context.log("%s: %s of %s", budget.key, start, amount)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Loss of a micro-batch [B, length + 1]; with statistics if a ledger row is due."""
        self.speed.begin()
        if self._sharded:
            # Gradients meet once an optimizer step. Copies of the model (DDP) are left to Lightning.
            root: Any = self.loss
            root.set_requires_gradient_sync((batch_idx + 1) % self._accumulation == 0)
        with self._balance.counting() if self._balance else nullcontext():
            loss, statistics = self.loss(batch, self._is_row_due())
        self.step_filter.add_loss(loss)
        # The row averages the micro-batches of the step, each of the same size.
        if statistics is not None:
            row = {"loss": loss.item()}
            row |= {name: compute(statistics).item() for name, compute in LEDGER_STATISTICS.items()}
            self._statistics = {
                name: self._statistics.get(name, 0.0) + value / self._accumulation for name, value in row.items()
            }
        return loss

    def _is_row_due(self) -> bool:
        step = self.done + 1
        return step == 1 or step % self._row_interval == 0 or step in self._milestones

    def _mean_over_ranks(self, row: dict[str, float]) -> dict[str, float]:
        """The mean of each number over the ranks, which have equal shares of the batch."""
        if self._ranks == 1:
            return row
        mean = self.trainer.strategy.reduce(torch.tensor(list(row.values()), device=self.device), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return dict(zip(row, mean.tolist(), strict=True))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients, or drop those of a step to be skipped: the optimizer ignores parameters without one.

        Raises `FloatingPointError` if the budget allows no further skipped step.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.budget.gradient_clip)
        self._gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        # The total norm over all ranks, before clipping, decides on all ranks alike.
        reason = self.step_filter.reason_to_skip(
            self._gradient_norm.item(), lambda loss: self._mean_over_ranks({"loss": loss})["loss"]
        )
        self._is_skipped = reason is not None
        if reason is None:
            return
        if self.step_filter.skipped > self.budget.max_skipped:
            raise FloatingPointError(self._too_many_skipped(reason))
        self.context.log("step %d is skipped: %s", self.done + 1, reason)
        optimizer.zero_grad(set_to_none=True)

    def _too_many_skipped(self, reason: str) -> str:
        steps = saved_steps(self.context.resume)
        newest = f"; the last good trainer state is {self.context.resume}/step-{steps[-1]:06d}" if steps else ""
        return (
            f"{reason} at step {self.done + 1}, after {self.step_filter.skipped - 1} skipped steps of at most "
            f"{self.budget.key}.max_skipped={self.budget.max_skipped}; lower {self.budget.key}.learning_rate{newest}"
        )

    def on_train_batch_end(self, outputs: object, batch: Tensor, batch_idx: int) -> None:
        """After an optimizer step: balance experts, write the ledger row that is due, save a milestone and the state.

        Raises `Interrupted` after that if the stage was asked to stop.
        """
        # A micro-batch that does not end a step.
        if (batch_idx + 1) % self._accumulation:
            self.speed.end()
            return
        step = self.done
        loads = self._balance.move(self._ranks > 1, keep=self._is_skipped) if self._balance else None
        self.speed.step()
        if self._statistics:
            self._log_row(step, loads)
        if step in self._milestones:
            save_milestone(self.context, self.model, step, sharded=self._sharded)
        # The ranks decide together, since saving needs all of them.
        interrupted = self._on_any_rank(self.context.interrupted())
        if interrupted or self._on_any_rank(self._save_is_due()):
            self._save(step)
        self.speed.end()
        if interrupted:
            raise Interrupted(f"asked to stop after step {step} of {self.budget.steps}")

    def _log_row(self, step: int, loads: Tensor | None) -> None:
        """Write the ledger row of `step`; `loads` [layers, experts] are those of `ExpertBalance.move`."""
        assert self._gradient_norm is not None
        self.newest_statistics, self._statistics = self._mean_over_ranks(self._statistics), {}
        self.context.ledger.log(
            {
                "step": step,
                "tokens": step * self.budget.batch_tokens,
                **self.newest_statistics,
                "learning_rate": learning_rate(self.budget, step - 1),
                "gradient_norm": self._gradient_norm.item(),
                "skipped": self.step_filter.skipped,
                **({} if loads is None else self._balance.row(loads)),
                **self.speed.row(),
            }
        )

    def _save(self, step: int) -> None:
        """Save the trainer state after `step`; all ranks together."""
        # Lightning wraps the optimizer.
        optimizer: Any = self.optimizers()
        tensors = trainer_tensors(self.model, getattr(optimizer, "optimizer", optimizer))
        state = {"last": self.newest_statistics, **self.step_filter.state_dict()}
        save_tensors(self.context.resume, step, tensors, state=state, keep_last=self.context.compute.keep_last)
        self.context.log("trainer state saved after step %d of %d", step, self.budget.steps)

    def _on_any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank: a signal may reach the ranks at different steps."""
        if self._ranks == 1:
            return flag
        return bool(self.trainer.strategy.reduce_boolean_decision(flag, all=False))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, restored from the trainer state if there is one, and its learning rate."""
        budget = self.budget
        optimizer = adamw(
            self.model,
            learning_rate=budget.learning_rate,
            weight_decay=budget.weight_decay,
            betas=(budget.adam_beta1, budget.adam_beta2),
        )
        # The model is sharded by now, so each rank reads only its part.
        if self._state:
            load_tensors(self.context.resume, self._state, trainer_tensors(self.model, optimizer))
            self._state = None
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(budget, self.first_step + step) / budget.learning_rate
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
