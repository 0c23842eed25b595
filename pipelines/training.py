"""Pre-training and mid-training: one Lightning module, whose objective is the shaped one.

Pre-training warms up and then holds its rate; mid-training starts at that rate and decays. Both read rows in the
order of `pipelines.data.schedule`, which is a function of the seed alone, so two objectives with one seed see the
same tokens in the same order.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import Qwen3ForCausalLM

from pipelines.cell import MidtrainConfig, PretrainConfig
from pipelines.data import Corpus, schedule
from pipelines.errors import Interrupted
from pipelines.ledger import Ledger
from pipelines.resume import SAVE_SECONDS, every, load_state, save_state
from shaping.loss import shaped_cross_entropy
from shaping.objective import Objective

LEDGER_ROWS = 100
"""Rows that a stage run writes, about; statistics are computed for those steps only."""

Budget = PretrainConfig | MidtrainConfig


def learning_rate(budget: Budget, step: int) -> float:
    """The rate of step 0, 1, ...: warm-up then constant, or the decay from first to final rate."""
    if isinstance(budget, PretrainConfig):
        return budget.learning_rate * min(1.0, (step + 1) / max(1, budget.warmup_steps))
    done = min(1.0, step / max(1, budget.steps - 1))
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "1-sqrt": 1 - math.sqrt(done)}
    return budget.final_learning_rate + (budget.learning_rate - budget.final_learning_rate) * left[budget.decay]


class Rows(Dataset[Tensor]):
    """Training rows [length + 1] int64 in their final order: the loader must not shuffle."""

    def __init__(self, corpus: Corpus, budget: Budget, seed: int) -> None:
        sources = [name for name, weight in budget.mixture.items() if weight > 0]
        self._rows = {name: corpus.rows(name, "train", budget.sequence_length) for name in sources}
        sizes = {name: len(rows) for name, rows in self._rows.items()}
        count = budget.steps * (budget.batch_tokens // budget.sequence_length)
        self._order = schedule([seed, len(budget.key)], count, budget.mixture, sizes)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Tensor:
        source, row = self._order[index]
        return torch.from_numpy(self._rows[source][row].astype(np.int64))


class NextToken(L.LightningModule):
    """A causal language model under one objective and one budget."""

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        objective: Objective,
        budget: Budget,
        ledger: Ledger,
        keep: Callable[[Qwen3ForCausalLM, int], None],
        resume: Path | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.objective, self.budget, self.ledger, self._keep = objective, budget, ledger, keep
        self._resume, self._interrupted, self._save_is_due = resume, interrupted, every(SAVE_SECONDS)
        self._state = load_state(resume) if resume else None
        self.first: int = self._state["step"] if self._state else 0
        """Steps that earlier attempts have done."""
        if self._state:
            self.model.load_state_dict(self._state["model"])
        self.row: dict[str, float] = {}
        self.last: dict[str, float] = {}
        """The statistics of the newest ledger row."""
        self._every = max(1, budget.steps // LEDGER_ROWS)
        self._milestones = set(budget.checkpoints())
        self._gradient_norm: Tensor | None = None
        self._clock = (time.time(), self.first)

    @property
    def done(self) -> int:
        """Optimizer steps done, those of earlier attempts counted."""
        return self.first + self.global_step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Loss of a batch [B, length + 1]; statistics where a ledger row is due."""
        logits = self.model(input_ids=batch[:, :-1]).logits
        if not self._is_due():
            return shaped_cross_entropy(logits, batch[:, 1:], self.objective)
        loss, stats = shaped_cross_entropy(logits, batch[:, 1:], self.objective, return_stats=True)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.done + 1}; lower the learning rate")
        self.row = {
            "loss": loss.item(),
            "cross_entropy": -stats.target_probability.log().mean().item(),
            "entropy": stats.entropy.mean().item(),
            "head_mass": stats.head_mass.mean().item(),
        }
        return loss

    def _is_due(self) -> bool:
        step = self.done + 1
        return step == 1 or step % self._every == 0 or step in self._milestones

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and keep the norm that the ledger shows."""
        self._gradient_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.budget.gradient_clip)

    def on_train_batch_end(self, outputs: object, batch: Tensor, batch_idx: int) -> None:
        """Write the row that was due, keep a milestone, save the trainer state when it is time to.

        Raises `Interrupted` after that where the stage was asked to stop.
        """
        step = self.done
        if self.row:
            before, last = self._clock
            now = time.time()
            assert self._gradient_norm is not None
            self.ledger.log(
                {
                    "step": step,
                    "tokens": step * self.budget.batch_tokens,
                    **self.row,
                    "learning_rate": learning_rate(self.budget, step - 1),
                    "gradient_norm": self._gradient_norm.item(),
                    "tokens_per_second": (step - last) * self.budget.batch_tokens / (now - before),
                }
            )
            self._clock, self.last, self.row = (now, step), self.row, {}
        if step in self._milestones:
            self._keep(self.model, step)
        interrupted = self._interrupted()
        if self._resume and (interrupted or self._save_is_due()):
            save_state(self._resume, self._trainer_state(step))
        if interrupted:
            raise Interrupted(f"told to stop after step {step} of {self.budget.steps}")

    def _trainer_state(self, step: int) -> dict[str, Any]:
        """All that the steps to come depend on; rows are a function of the seed, and nothing else draws numbers."""
        optimizer, rate = self.optimizers(), self.lr_schedulers()
        return {
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": optimizer.optimizer.state_dict(),  # type: ignore[union-attr]
            "rate": rate.state_dict(),  # type: ignore[union-attr]
            "last": self.last,
        }

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; weight decay for matrices alone."""
        optimizer = adamw(
            self.model,
            self.budget.learning_rate,
            self.budget.weight_decay,
            (self.budget.adam_beta1, self.budget.adam_beta2),
        )
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(self.budget, step) / self.budget.learning_rate
        )
        if self._state:
            optimizer.load_state_dict(self._state["optimizer"])
            rate.load_state_dict(self._state["rate"])
            self.last, self._state = self._state["last"], None
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def adamw(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW whose weight decay leaves the norms' scales alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    scales = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def train(
    model: Qwen3ForCausalLM,
    objective: Objective,
    budget: Budget,
    corpus: Corpus,
    seed: int,
    ledger: Ledger,
    keep: Callable[[Qwen3ForCausalLM, int], None],
    resume: Path | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Train `model` in place for the whole budget; returns the last ledger row's statistics and the throughput.

    Goes on from the trainer state in `resume` where there is one, to the same weights, bit for bit on a CPU, and leaves
    one there from time to time. Raises `Interrupted`, with the state saved, soon after `interrupted()` turns true, and
    `FloatingPointError` where the loss stops being finite.
    """
    module = NextToken(model, objective, budget, ledger, keep, resume, interrupted)
    rows, batch = Rows(corpus, budget, seed), budget.batch_tokens // budget.sequence_length
    loader = DataLoader(Subset(rows, range(module.first * batch, len(rows))), batch_size=batch)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = L.Trainer(
        max_steps=budget.steps - module.first,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    began = time.time()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
        if module.first < budget.steps:
            trainer.fit(module, loader)
    model.eval()
    return {
        **module.last,
        "steps": budget.steps,
        "tokens": budget.steps * budget.batch_tokens,
        "tokens_per_second": (budget.steps - module.first) * budget.batch_tokens / (time.time() - began),
    }
