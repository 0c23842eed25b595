"""Pre-training and mid-training: one Lightning module, whose objective is the shaped one.

Pre-training warms up and then holds its rate; mid-training starts at that rate and decays. Both read rows in an order
that is a function of the seed alone (`pipelines.data.corpus`), so two objectives with one seed see the same tokens in
the same order, and so does any number of ranks.
"""

import logging
import math
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from pipelines.configuration.budgets import MidtrainConfig, PretrainConfig
from pipelines.configuration.compute import ComputeConfig, micro_batch
from pipelines.data.corpus import Corpus
from pipelines.data.training_order import training_order
from pipelines.errors import Interrupted, StageFailure
from pipelines.ledger import Ledger
from pipelines.training import parallel
from pipelines.training.expert_balance import ExpertBalance
from pipelines.training.throughput import Speed, step_operations
from pipelines.training.trainer_state import SAVE_SECONDS, every, load_tensors, save_tensors, saved_state, saved_steps
from shaping.loss import CHUNK_BYTES, linear_shaped_cross_entropy, shaped_cross_entropy
from shaping.objective import Objective
from shaping.statistics import TokenStatistics

LEDGER_ROWS = 100
"""Rows that a stage run writes, about; statistics are computed for those steps only."""

HISTORY = 128
"""Steps whose losses and gradient norms a new one is compared with; the method and number are OLMo's."""

Budget = PretrainConfig | MidtrainConfig
Keep = Callable[[PreTrainedModel, int, dict[str, Tensor] | None], None]
"""Keeps a milestone: the model, its step, and its gathered weights where it is sharded."""


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
        if empty := [name for name, size in sizes.items() if not size]:
            raise StageFailure(
                f"{budget.key}.sequence_length={budget.sequence_length}: {empty[0]} has no row that long; shorten the "
                "rows or take more data"
            )
        count = budget.steps * (budget.batch_tokens // budget.sequence_length)
        self._order = training_order([seed, len(budget.key)], count, budget.mixture, sizes, corpus.sharded)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Tensor:
        source, row = self._order[index]
        return torch.from_numpy(self._rows[source][row].astype(np.int64))


class _Share(Dataset[Tensor]):
    """One rank's rows from a step on: of every batch an equal, consecutive part."""

    def __init__(self, rows: Rows, first_step: int, batch: int, rank: int, ranks: int) -> None:
        self._rows, self._first, self._batch = rows, first_step * batch, batch
        self._share = batch // ranks
        self._offset = rank * self._share

    def __len__(self) -> int:
        return (len(self._rows) - self._first) // self._batch * self._share

    def __getitem__(self, index: int) -> Tensor:
        step, place = divmod(index, self._share)
        return self._rows[self._first + step * self._batch + self._offset + place]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A micro-batch [rows, length + 1] at once; the loader asks for it so."""
        return torch.stack([self[index] for index in indices])


def _as_it_is(batch: Any) -> Any:
    return batch


class CausalLoss(nn.Module):
    """A causal language model with its objective; `forward` gives the loss, so that FSDP has the output layer there.

    Where the logits of a batch would take more than a chunk of the fused loss, they are never held.
    """

    def __init__(self, model: PreTrainedModel, objective: Objective, document_token: int | None = None) -> None:
        """`document_token` begins every document; where it is given, tokens attend to their own document alone."""
        super().__init__()
        self.model, self.objective, self._document_token = model, objective, document_token

    def forward(self, batch: Tensor, statistics: bool = False) -> tuple[Tensor, TokenStatistics | None]:
        """Loss and, if asked for, statistics of a batch [B, length + 1]."""
        inputs, targets = batch[:, :-1], batch[:, 1:]
        places = {}
        if self._document_token is not None:
            # positions that begin anew are how transformers knows packed documents, whatever attends to them
            places["position_ids"] = positions_in_documents(inputs, self._document_token)
        model: Any = self.model
        if inputs.numel() * model.config.vocab_size * 4 <= CHUNK_BYTES:
            logits = model(input_ids=inputs, **places).logits
            if not statistics:
                return shaped_cross_entropy(logits, targets, self.objective), None
            return shaped_cross_entropy(logits, targets, self.objective, return_stats=True)
        hidden = model.model(input_ids=inputs, **places).last_hidden_state
        weight = model.lm_head.weight
        if not statistics:
            return linear_shaped_cross_entropy(hidden, weight, targets, self.objective), None
        return linear_shaped_cross_entropy(hidden, weight, targets, self.objective, return_stats=True)


def positions_in_documents(tokens: Tensor, document_token: int) -> Tensor:
    """Each token's place in its document [B, T]. Documents begin with `document_token`; a row may begin inside one."""
    place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begin = torch.where(tokens == document_token, place, 0).cummax(1).values
    return place - begin


class NextToken(L.LightningModule):
    """A causal language model under one objective and one budget."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        budget: Budget,
        ledger: Ledger,
        keep: Keep,
        resume: Path | None,
        interrupted: Callable[[], bool],
        compute: ComputeConfig,
        accumulation: int,
        tasks: int,
        balance_rate: float,
        document_token: int,
    ) -> None:
        super().__init__()
        documents = budget.attention == "document"
        parallel.prepare(model, compute, budget.precision, documents)
        self.loss = CausalLoss(model.train(), objective, document_token if documents else None)
        self.budget, self.ledger, self._keep, self._compute = budget, ledger, keep, compute
        self._resume, self._interrupted, self._save_is_due = resume, interrupted, every(SAVE_SECONDS)
        self._tasks, self._accumulation, self._sharded = tasks, accumulation, parallel.is_sharded(compute, tasks)
        self._state = saved_state(resume) if resume else None
        self.first: int = self._state["step"] if self._state else 0
        """Steps that earlier attempts have done."""
        self.row: dict[str, float] = {}
        self.last: dict[str, float] = self._state["last"] if self._state else {}
        """The statistics of the newest ledger row."""
        self.skipped: int = self._state["skipped"] if self._state else 0
        """Steps whose update was left out."""
        self._history: deque[tuple[float, float]] = deque(self._state["history"] if self._state else [], HISTORY)
        self._losses: list[Tensor] = []
        self._every = max(1, budget.steps // LEDGER_ROWS)
        self._milestones = set(budget.checkpoints())
        self._gradient_norm: Tensor | None = None
        self._skips_now = False
        self._balance = ExpertBalance(model, balance_rate)
        self.speed = Speed(
            step_operations(model, budget.batch_tokens, budget.sequence_length), budget.batch_tokens, tasks
        )

    @property
    def model(self) -> PreTrainedModel:
        """The language model itself."""
        return self.loss.model

    @property
    def done(self) -> int:
        """Optimizer steps done, those of earlier attempts counted."""
        return self.first + self.global_step

    def configure_model(self) -> None:
        """Shard the model where the strategy does."""
        if self._sharded and not hasattr(self.model.lm_head.weight, "full_tensor"):
            mesh = self.device_mesh
            assert mesh is not None
            parallel.shard(self.loss, self.model, mesh, self.budget.precision)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Loss of a micro-batch [B, length + 1]; statistics where a ledger row is due."""
        self.speed.begin()
        with self._balance.counting() if self._balance else nullcontext():
            loss, stats = self.loss(batch, self._is_due())
        if self.budget.spike_sigmas is not None:
            self._losses.append(loss.detach())
        if stats is not None:
            row = {
                "loss": loss.item(),
                "cross_entropy": -stats.target_probability.log().mean().item(),
                "entropy": stats.entropy.mean().item(),
                "head_mass": stats.head_mass.mean().item(),
            }
            self.row = {name: self.row.get(name, 0.0) + value / self._accumulation for name, value in row.items()}
        return loss

    def _over_tasks(self, row: dict[str, float]) -> dict[str, float]:
        """The mean of each number over the tasks, which have equal shares of the batch."""
        if self._tasks == 1:
            return row
        mean = self.trainer.strategy.reduce(torch.tensor(list(row.values()), device=self.device), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return dict(zip(row, mean.tolist(), strict=True))

    def _is_due(self) -> bool:
        step = self.done + 1
        return step == 1 or step % self._every == 0 or step in self._milestones

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and drop the gradients of a step that is to be skipped: the optimizer passes over what has none."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.budget.gradient_clip)
        self._gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        reason = self._reason_to_skip(self._gradient_norm.item())
        self._skips_now = reason is not None
        if reason is None:
            return
        self.skipped += 1
        if self.skipped > self.budget.max_skipped:
            raise FloatingPointError(self._too_many(reason))
        optimizer.zero_grad(set_to_none=True)

    def _reason_to_skip(self, norm: float) -> str | None:
        """Why the step at hand is to be skipped; None where it is a good one."""
        if self.budget.spike_sigmas is None:
            return None if math.isfinite(norm) else f"the gradient's norm is {norm}"
        loss = self._over_tasks({"loss": torch.stack(self._losses).mean().item()})["loss"]
        self._losses = []
        for name, value, before in (
            ("loss", loss, [pair[0] for pair in self._history]),
            ("gradient's norm", norm, [pair[1] for pair in self._history]),
        ):
            if not math.isfinite(value):
                return f"the {name} is {value}"
            if len(before) == HISTORY and value > np.mean(before) + self.budget.spike_sigmas * np.std(before):
                return f"the {name} of {value:.3g} is a spike over {np.mean(before):.3g}"
        self._history.append((loss, norm))
        return None

    def _too_many(self, reason: str) -> str:
        steps = saved_steps(self._resume) if self._resume else []
        last = f"; the last good trainer state is {self._resume}/step-{steps[-1]:06d}" if steps else ""
        return (
            f"{reason} at step {self.done + 1}, after {self.skipped - 1} skipped steps of at most "
            f"{self.budget.key}.max_skipped={self.budget.max_skipped}; lower {self.budget.key}.learning_rate{last}"
        )

    def on_train_batch_end(self, outputs: object, batch: Tensor, batch_idx: int) -> None:
        """After an optimizer step: balance experts, write the row that was due, keep a milestone, save the state.

        Raises `Interrupted` after that where the stage was asked to stop.
        """
        if (batch_idx + 1) % self._accumulation:
            self.speed.end()
            return
        step = self.done
        loads = self._balance.move(self._tasks > 1, keep=self._skips_now) if self._balance else None
        self.speed.step()
        if self.row:
            assert self._gradient_norm is not None
            self.row = self._over_tasks(self.row)
            self.ledger.log(
                {
                    "step": step,
                    "tokens": step * self.budget.batch_tokens,
                    **self.row,
                    "learning_rate": learning_rate(self.budget, step - 1),
                    "gradient_norm": self._gradient_norm.item(),
                    "skipped": self.skipped,
                    **({} if loads is None else self._balance.row(loads)),
                    **self.speed.row(),
                }
            )
            self.last, self.row = self.row, {}
        if step in self._milestones:
            weights = dict(parallel.gathered(self.model)) if self._sharded else None
            if self.trainer.is_global_zero:
                self._keep(self.model, step, weights)
        interrupted = self._anywhere(self._interrupted())
        if self._resume and (interrupted or self._anywhere(self._save_is_due())):
            state = {"last": self.last, "skipped": self.skipped, "history": list(self._history)}
            save_tensors(self._resume, step, self._tensors(), state, self._compute.keep_last)
        self.speed.end()
        if interrupted:
            raise Interrupted(f"told to stop after step {step} of {self.budget.steps}")

    def _anywhere(self, flag: bool) -> bool:
        """Whether it is true on any rank: a signal may reach them at different steps."""
        if self._tasks == 1:
            return flag
        return bool(self.trainer.strategy.reduce_boolean_decision(flag, all=False))

    def _tensors(self) -> dict[str, Tensor]:
        """All that the steps to come depend on, by name: weights, router biases and AdamW's state.

        Rows and rates are functions of the step, and nothing else draws numbers.
        """
        optimizer: Any = self.optimizers()
        return _trainer_tensors(self.model, getattr(optimizer, "optimizer", optimizer))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; weight decay for matrices alone."""
        optimizer = adamw(
            self.model,
            self.budget.learning_rate,
            self.budget.weight_decay,
            (self.budget.adam_beta1, self.budget.adam_beta2),
        )
        if self._state:
            assert self._resume is not None
            load_tensors(self._resume, self._state, _trainer_tensors(self.model, optimizer))
            self._state = None
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(self.budget, self.first + step) / self.budget.learning_rate
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def _trainer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, saved buffers and AdamW's state, which is made where it is not there yet: it is then what the first step
    would make it."""
    tensors = {f"model.{name}": tensor for name, tensor in parallel.held(model).items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        tensors |= {f"optimizer.{name}.{key}": state[key].detach() for key in ("step", "exp_avg", "exp_avg_sq")}
    return tensors


def adamw(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW whose weight decay leaves the norms' scales alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    scales = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def train(
    model: PreTrainedModel,
    objective: Objective,
    budget: Budget,
    corpus: Corpus,
    seed: int,
    ledger: Ledger,
    keep: Keep,
    resume: Path | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    rank: int = 0,
    tasks: int = 1,
    nodes: int = 1,
    compute: ComputeConfig | None = None,
    balance_rate: float = 1e-3,
) -> dict[str, float]:
    """Train `model` in place for the whole budget; returns the last ledger row's statistics and the throughput.

    Goes on from the trainer state in `resume` where there is one, to the same weights, bit for bit on a CPU with as
    many ranks as before, and leaves one there from time to time. Raises `Interrupted`, with the state saved, soon after
    `interrupted()` turns true, and `FloatingPointError` where more steps than may be skipped are not finite or spikes.

    With several `tasks` (processes that Slurm or torchrun started on `nodes` nodes, this one being `rank`) each takes
    an equal share of every batch and gradients are averaged: the same training up to the order of summation. Raises
    `UserError` where a batch cannot be shared out, `StageFailure` where a trainer state does not fit.
    """
    compute = compute or ComputeConfig()
    micro_rows, accumulation = micro_batch(budget, compute, tasks)
    end = corpus.tokenizer.eos_token_id
    module = NextToken(
        model,
        objective,
        budget,
        ledger,
        keep,
        resume,
        interrupted,
        compute,
        accumulation,
        tasks,
        balance_rate,
        end,
    )
    batch = budget.batch_tokens // budget.sequence_length
    share = _Share(Rows(corpus, budget, seed), module.first, batch, rank, tasks)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sharded = parallel.is_sharded(compute, tasks)
    trainer = L.Trainer(
        max_steps=budget.steps - module.first,
        accelerator="auto",
        devices=tasks // nodes,
        num_nodes=nodes,
        strategy=parallel.strategy(compute, tasks, nodes),
        precision="bf16-mixed" if budget.precision == "bfloat16-mixed" and not sharded else "32-true",
        accumulate_grad_batches=accumulation,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
        try:
            if module.first < budget.steps:
                trainer.fit(module, DataLoader(share, batch_size=micro_rows, collate_fn=_as_it_is))
        except torch.OutOfMemoryError as error:
            size = micro_rows * budget.sequence_length
            raise StageFailure(
                f"compute.micro_batch_tokens={size}: the device's memory does not hold that many tokens of this model "
                "at a time; halve it, or take compute.activation_checkpointing=full or compute.strategy=fsdp"
            ) from error
    model.eval()
    return {
        **module.last,
        "steps": budget.steps,
        "tokens": budget.steps * budget.batch_tokens,
        "skipped": module.skipped,
        "tokens_per_second": module.speed.overall,
    }
