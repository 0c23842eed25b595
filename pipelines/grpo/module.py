"""The Lightning module of RL: one batch is the number of a step, which samples, measures, updates and records.

Its optimisation is manual, because a step has any number of optimizer steps. Sharded or not, the policy is trained on
the strategies of pre-training; `pipelines.grpo.sharing` divides the work among ranks.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from pipelines.configuration.grpo import GRPOConfig
from pipelines.errors import Interrupted, UserError
from pipelines.files import replacing
from pipelines.grpo.asked import Asked
from pipelines.grpo.collapse import collapsed
from pipelines.grpo.collection import Collected, Collector, Group, Questions, empty_waiting
from pipelines.grpo.communicator import Communicator
from pipelines.grpo.diagnostics import collected_row, divergence_from, entropy_fall, forking_tokens, pass_row
from pipelines.grpo.policy import Policy, Reference
from pipelines.grpo.update import Updater
from pipelines.models.causal_lm import parameter_count
from pipelines.random_streams import Stream, stream_seed
from pipelines.rollouts import Engine, load_engine
from pipelines.rollouts.architectures import positions
from pipelines.rollouts.engine import IN_RL
from pipelines.stage_context import StageContext
from pipelines.training import parallel
from pipelines.training.optimizer import adamw
from pipelines.training.throughput import device_name
from pipelines.training.trainer_state import (
    SAVE_SECONDS,
    every,
    load_tensors,
    save_tensors,
    saved_state,
    trainer_tensors,
)
from pipelines.training.weight_stream import save_milestone, weight_stream
from pipelines.verifiers import Judge

SHOWN_PROMPTS = 8
"""Held-out prompts whose responses are written to `samples.jsonl` at each measurement."""

SAMPLES, FORKING = "samples.jsonl", "forking.jsonl"


class GRPO(L.LightningModule):
    """A policy that is trained on the rewards of its own responses. `training_step` takes the number of a step."""

    def __init__(self, model: PreTrainedModel, config: GRPOConfig, context: StageContext, *, judge: Judge) -> None:
        """`model` is the start model, also where a trainer state will replace its weights."""
        super().__init__()
        self.automatic_optimization = False
        self.config, self.context, self._judge = config, context, judge
        self.seed = context.seed if config.seed is None else config.seed
        """Of the run's random numbers."""
        self.asked = Asked(config, context.corpus, positions(model))
        parallel.prepare(model, context.compute, precision=config.precision, documents=False)
        self.policy = Policy(model.train(), config.precision)
        self._sharded = parallel.is_sharded(context.compute, context.ranks.tasks)
        self._reference: Reference | None = None
        if config.start_divergence or config.kl_weight:
            self._reference = Reference(self.policy, resident=config.kl_weight > 0)
        self._state = saved_state(context.resume)
        self._save_is_due = every(SAVE_SECONDS)
        self._saved_step: int | None = None

        # What a trainer state restores.
        self.step: int = self._state["step"] if self._state else 0
        """Steps taken, including those of earlier attempts."""
        self.history: list[dict[str, float]] = self._state["history"] if self._state else []
        """Reward, entropy and length of every step."""
        none: dict[str, Any] = {"skipped": 0, "verifier_failures": 0, "collapsed_at": None, "held_out": []}
        self.totals: dict[str, Any] = self._state["totals"] if self._state else none
        self.asked.keep(self._state["asked"] if self._state else None)
        self._unfinished: dict[str, Any] | None = None
        """The ledger row of the newest step until its held-out part is measured and it is logged."""
        if self._state and self._state["unfinished"] is not None:
            self._unfinished = dict(self._state["unfinished"])

        # What needs the device, and so exists from `on_train_start` on.
        self._communicator: Communicator
        self._engine: Engine
        self._collector: Collector
        self._updater: Updater
        self._optimizer: torch.optim.Optimizer

    @property
    def model(self) -> PreTrainedModel:
        """The language model."""
        return self.policy.model

    @property
    def next_step(self) -> int:
        """The first step for `training_step`: the newest one again if it was interrupted while it was measured."""
        return self.step + (self._unfinished is None)

    # Lightning's hooks

    def configure_model(self) -> None:
        """Shard policy and reference if the strategy does so."""
        if self._sharded and not self.policy.is_sharded:
            mesh = self.device_mesh
            assert mesh is not None
            self.policy.shard(mesh)
            if self._reference is not None:
                self._reference.shard(mesh)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, restored from the trainer state if there is one."""
        config = self.config
        self._optimizer = adamw(
            self.model,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(config.adam_beta1, config.adam_beta2),
        )
        self._waiting: dict[str, Tensor] = {}
        if self._state:
            self._waiting = empty_waiting(self._state["collector"])
            tensors = trainer_tensors(self.model, self._optimizer) | self._waiting
            load_tensors(self.context.resume, self._state, tensors)
        return self._optimizer

    def on_train_start(self) -> None:
        """Prepare the engine, and the first step of a new run or the next one of a resumed run."""
        config, ranks = self.config, self.context.ranks
        self._communicator = Communicator(ranks.rank, ranks.tasks, self.device)
        shared, routed = self.context.compute.tensor_parallel, config.routing_replay
        wanted = replace(IN_RL, tensor_parallel=shared, routed_experts=routed)
        setting = None if wanted == IN_RL else wanted  # engines of plugins need not take one
        self._engine = self._communicator.together(
            lambda: load_engine(
                config.engine, self.model, self.asked.longest_sequence, sharded=self._sharded, setting=setting
            )
        )
        self._hand_over()
        self._collector = self._new_collector()
        self._updater = Updater(
            self.policy,
            self._optimizer,
            config,
            reference=None if self._reference is None else self._reference.policy,
            exact_sampler=self._engine.exact and config.precision == "float32",
            communicator=self._communicator,
            micro_batch_tokens=self.context.compute.micro_batch_tokens,
            backward=self._backward,
        )
        self._resume() if self._state else self._begin()

    def training_step(self, step: int, batch_idx: int) -> None:
        """Take one step, save what is due after it, and stop the trainer after a collapse that ends the run.

        Raises `Interrupted`, with the state saved, if the stage was asked to stop before the step or in its rollouts.
        """
        config, context = self.config, self.context
        milestones = config.checkpoints()
        try:
            if self._communicator.any(context.interrupted()):
                raise Interrupted
            # A resumed run may have taken the step and not measured it.
            if self._unfinished is None:
                self._unfinished = self._one_step(step, inspect=step in milestones or step == 1)
            row = self._unfinished
            if config.held_out_every and (step % config.held_out_every == 0 or step == config.steps):
                row = row | self._held_out_row()
        except Interrupted:
            self._save()
            raise Interrupted(f"after step {self.step} of {config.steps}") from None
        context.ledger.log(row)
        self._unfinished = None
        stop = bool(row["collapsed"]) and config.collapse == "stop"
        # Milestones are saved before the trainer state, so a resumed run has every milestone up to its step.
        # If the run ends here, the later milestones are this model, so that what depends on them can run.
        for milestone in milestones:
            if milestone == step or (stop and milestone > step):
                save_milestone(context, self.model, milestone, sharded=self._sharded)
        if stop:
            self.trainer.should_stop = True
        elif self._communicator.any(step in milestones or self._save_is_due()):
            self._save()

    def on_train_end(self) -> None:
        """Release the engine."""
        self._engine.close()

    # A step

    def _begin(self) -> None:
        """Prepare the first step of a new run: bounds on the pass rate, and the start model on held-out questions."""
        config, context = self.config, self.context
        if not context.ranks.rank:
            for name in (SAMPLES, FORKING):
                (context.folder / name).unlink(missing_ok=True)
        if (config.pass_rate_low, config.pass_rate_high) != (0.0, 1.0):
            self.asked.keep(self._within_pass_rate())
            self._collector = self._new_collector()
        context.log(
            "GRPO: %d questions of %s and %d held out, %d prompts x %d samples per step, engine %s, steps 1 to %d",
            sum(map(len, self.asked.training)),
            ", ".join(config.tasks),
            len(self.asked.held_out),
            config.prompts,
            config.samples,
            config.engine,
            config.steps,
        )
        self._log_model()
        if config.held_out_every:
            context.ledger.log({"step": 0, **self._held_out_row()})

    def _log_model(self) -> None:
        compute, ranks = self.context.compute, self.context.ranks
        model = f"{parameter_count(self.model):,} parameters in {self.config.precision}"
        devices = f"{ranks.tasks} x {device_name(self.device)}, nodes: {ranks.nodes}, strategy: {compute.strategy}"
        self.context.log("GRPO: %s on %s", model, devices)

    def _one_step(self, step: int, *, inspect: bool) -> dict[str, Any]:
        """Run one step, with forking tokens if `inspect`; returns its ledger row."""
        # Sample and verify.
        began = time.time()
        with self._sampling():
            collected = self._collector.collect(step)
        self.step = step
        sampled = time.time()
        # Measure before the update: the groups are from this policy, and the divergence estimate needs that.
        if inspect:
            self._log_forking_tokens(collected)
        divergence = self._divergence(collected)
        scored = time.time()
        # Update the weights, and give the engine the new ones.
        update = self._updater.update(collected.kept, step)
        if not update["skipped"]:
            self._hand_over()
        ended = time.time()

        row = {"step": step, **collected_row(collected, self._communicator), "kl_start": divergence, **update}
        collapse = self._record(row)
        tokens, learned = _response_tokens(collected)
        return row | {
            "entropy_fall_per_reward": entropy_fall(self.history),
            "collapsed": int(collapse is not None),
            "tokens_per_second": tokens / (ended - began),
            "rollout_tokens_per_second": tokens / (sampled - began),
            "update_tokens_per_second": learned / (ended - scored),
            "rollout_seconds": sampled - began,
            "scoring_seconds": scored - sampled,
            "update_seconds": ended - scored,
        }

    def _log_forking_tokens(self, collected: Collected) -> None:
        rows = forking_tokens(
            self.policy,
            collected.kept,
            self.config,
            tokenizer=self.context.corpus.tokenizer,
            step=self.step,
            division=self._updater.division,
        )
        self._append(FORKING, rows)

    def _divergence(self, collected: Collected) -> float:
        """The divergence from the start model, estimated on groups that this step has sampled; NaN if not measured."""
        if self._reference is None or not self.config.start_divergence:
            return float("nan")
        seed = stream_seed(Stream.DIVERGENCE, self.seed, self.step)
        with self._reference.on(self.device) as reference:
            return divergence_from(
                reference, collected.sampled, self.config, seed=seed, division=self._updater.division
            )

    def _record(self, row: dict[str, Any]) -> str | None:
        """Add a step's row to the history and the totals; returns what has collapsed, if anything."""
        self.history.append({key: row[key] for key in ("reward", "entropy", "response_length")})
        self.totals["skipped"] += row["skipped"]
        self.totals["verifier_failures"] += row["verifier_timeouts"] + row["verifier_errors"] + row["verifier_too_long"]
        collapse = None if self.config.collapse == "off" else collapsed(self.history, self.config)
        if collapse and self.totals["collapsed_at"] is None:
            self.totals |= {"collapsed_at": self.step, "collapsed": collapse}
            self.context.log("step %d: collapse of %s (grpo.collapse=%s)", self.step, collapse, self.config.collapse)
        return collapse

    def _backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradient; with the last one, average the gradients over the ranks."""
        module: Any = self.trainer.strategy.model
        if self.policy.is_sharded:
            policy: Any = self.policy
            policy.set_requires_gradient_sync(last)
        alone = isinstance(module, DistributedDataParallel) and not last
        with module.no_sync() if alone else nullcontext():
            self.manual_backward(loss)

    # Sampling

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """The engine has the device's memory inside this context."""
        self._engine.wake()
        yield
        self._engine.sleep()

    def _hand_over(self) -> None:
        """Give the engine the newest weights."""
        self._engine.wake()
        self._engine.take(weight_stream(self.model, checkpoint_names=self._engine.checkpoint_names))
        self._engine.sleep()

    def _new_collector(self) -> Collector:
        seed = self.seed
        return Collector(
            self.config,
            self._engine,
            self._judge,
            tokenizer=self.context.corpus.tokenizer,
            prompts=self.context.corpus.prompts,
            questions=Questions(self.asked.training, seed),
            seed=seed,
            communicator=self._communicator,
            interrupted=self.context.interrupted,
        )

    def _held_out_row(self) -> dict[str, float]:
        """Mean reward and pass@k on the held-out questions, sampled with the same random numbers each time."""
        began = time.time()
        with self._sampling():
            groups = self._collector.sample(self.asked.held_out, step=self.step, seed=stream_seed(Stream.HELD_OUT))
        score = float(np.mean([group.rewards.mean().item() for group in groups]))
        self.totals["held_out"].append([self.step, score])
        shown = groups[:SHOWN_PROMPTS]
        # Only one rank has a response; the others have an empty one.
        responses = self._communicator.objects([self._first_response(group) for group in shown])
        rows = [
            {
                "step": self.step,
                "question": group.question.question,
                "response": responses[group.owners[0]][i]["response"],
                "reward": group.rewards[0].item(),
            }
            for i, group in enumerate(shown)
        ]
        self.context.ledger.samples("held_out_samples", rows)
        self._append(
            SAMPLES,
            [row | responses[group.owners[0]][i] for i, (row, group) in enumerate(zip(rows, shown, strict=True))],
        )
        return {
            "held_out_reward": score,
            **{f"held_out_{key}": value for key, value in pass_row(groups).items()},
            "held_out_seconds": time.time() - began,
        }

    def _first_response(self, group: Group) -> dict[str, Any]:
        """The text of a group's first response, and by token its text and log-probability."""
        return {
            "response": group.texts[0],
            "tokens": self.context.corpus.tokenizer.batch_decode(
                [[token] for token in group.responses[0]], skip_special_tokens=True
            ),
            "log_probs": [round(value, 4) for value in group.log_probs[0].tolist()],
        }

    def _within_pass_rate(self) -> list[list[int]]:
        """For each task, the indices of the questions whose pass rate under the start model is within the bounds."""
        low, high = self.config.pass_rate_low, self.config.pass_rate_high
        kept = []
        for index, (task, questions) in enumerate(zip(self.config.tasks, self.asked.training, strict=True)):
            seed = stream_seed(Stream.PASS_RATE, self.seed, index)
            with self._sampling():
                groups = self._collector.sample(questions, step=1, seed=seed)
            rates = [float(group.rewards.mean()) for group in groups]
            inside = [i for i, rate in enumerate(rates) if low <= rate <= high]
            if not inside:
                raise UserError(
                    f"grpo.pass_rate_low={low}: no question of {task} has a pass rate between {low} and {high} "
                    f"(mean {np.mean(rates):.2f}); widen the bounds"
                )
            self.context.log("%s: %d of %d questions are within the pass rates", task, len(inside), len(questions))
            kept.append(inside)
        return kept

    # Files

    def _append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        if self.context.ranks.rank:
            return
        with (self.context.folder / name).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def _save(self) -> None:
        """Save the trainer state after `step` steps; all ranks together."""
        if self._saved_step == self.step:  # if the newest step is unfinished there, a resumed run measures it again
            return
        tensors = trainer_tensors(self.model, self._optimizer) | self._collector.tensors()
        state = {
            "collector": self._collector.state_dict(),
            "asked": self.asked.kept,
            "history": self.history,
            "totals": self.totals,
            # As pairs, which keep their order: a row starts with its main numbers.
            "unfinished": None if self._unfinished is None else list(self._unfinished.items()),
        }
        save_tensors(self.context.resume, self.step, tensors, state=state, keep_last=self.context.compute.keep_last)
        self._saved_step = self.step
        self.context.log("trainer state saved after step %d", self.step)

    def _resume(self) -> None:
        """Restore the collector and the logs; `configure_optimizers` has read the tensors."""
        state = self._state
        assert state is not None
        self._state = None
        self._collector.load_state_dict(state["collector"], self._waiting)
        self._saved_step = self.step
        # Drop the rows, and the half-written line, that a killed attempt wrote after its last save.
        last = {SAMPLES: self.step if self._unfinished is None else self.step - 1, FORKING: self.step}
        for name, step in last.items() if not self.context.ranks.rank else ():
            path = self.context.folder / name
            if path.exists():
                rows = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
                with replacing(path) as temporary:
                    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))
        self.context.log("GRPO: resuming after step %d of %d", self.step, self.config.steps)
        self._log_model()


def _response_tokens(collected: Collected) -> tuple[int, int]:
    """Response tokens that the step sampled, and those that it learned from."""
    sampled, kept = (
        sum(int(group.lengths.sum()) for group in groups) for groups in (collected.sampled, collected.kept)
    )
    return sampled, kept
