"""The GRPO stage from its first step to its last: sample, measure, update, and stop or resume at any step.

The trainer state (weights, optimizer, position in the questions, waiting groups, history) is saved at milestones, every
`SAVE_SECONDS` and when the stage is asked to stop. All random numbers are functions of (seed, step, round), so a run
that was killed resumes bit for bit.
"""

import copy
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from pipelines.configuration.grpo import GRPOConfig
from pipelines.data.questions import Question, contamination, load_questions
from pipelines.data.tokenizer import fitting
from pipelines.errors import Interrupted, UserError
from pipelines.files import replacing
from pipelines.grpo.collapse import collapsed
from pipelines.grpo.collection import Collected, Collector, Questions
from pipelines.grpo.diagnostics import collected_row, divergence_from, entropy_fall, forking_tokens, pass_row
from pipelines.grpo.update import Updater
from pipelines.random_streams import Stream, stream_seed
from pipelines.rollouts import load_engine
from pipelines.stage_context import StageContext
from pipelines.training.optimizer import adamw
from pipelines.training.trainer_state import SAVE_SECONDS, every, load_state, save_state
from pipelines.verifiers import Judge

SHOWN_PROMPTS = 8
"""Held-out prompts whose responses are written to `samples.jsonl` at each measurement."""

LAST_STEPS = 5
"""Final steps over which the result's numbers are averaged."""

LOG_FILES = ("samples.jsonl", "forking.jsonl")


def train_grpo(model: PreTrainedModel, config: GRPOConfig, context: StageContext) -> dict[str, Any]:
    """Train `model` in place for `config.steps` updates and return the metrics of the stage run.

    Writes `samples.jsonl` (responses to the same held-out prompts over the steps) and `forking.jsonl` (forking tokens
    at the first step and at milestones) to the context's folder. Resumes from the context's trainer state if there is
    one; `model` must then still be the start model, from which the divergence is measured.

    Raises `Interrupted` after `context.interrupted()` has become true and the state is saved, and `FloatingPointError`
    if a gradient is not finite.
    """
    with Judge() as judge:
        return _Run(model, config, context, judge=judge).train()


class _Run:
    """One training run."""

    def __init__(self, model: PreTrainedModel, config: GRPOConfig, context: StageContext, *, judge: Judge) -> None:
        self.model, self.config, self.context, self.judge = model, config, context, judge
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = adamw(
            model,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(config.adam_beta1, config.adam_beta2),
        )
        self.too_long = 0
        """Questions that are not asked because the model has no positions for their prompt and an answer."""
        self.questions = self._load_questions("rl")
        """The training questions of each task."""
        self.kept_questions: list[list[int]] | None = None
        """The indices of those within the bounds on the pass rate, by task; None without bounds."""
        self.held_out = self._held_out_questions()
        self.engine = load_engine(config.engine, model, self._longest_sequence)
        self.collector = self._new_collector()
        self.updater = Updater(model, self.optimizer, config, reference=self.reference, exact_sampler=self.engine.exact)
        self.step = 0
        """Steps taken."""
        self.history: list[dict[str, float]] = []
        """Reward, entropy and length of every step."""
        self.totals: dict[str, Any] = {"skipped": 0, "verifier_failures": 0, "collapsed_at": None, "held_out": []}

    def _load_questions(self, split: str) -> list[list[Question]]:
        """The questions of each task, without those whose prompt would have to be cut. Counts these in `too_long`."""
        tokenizer, length = self.context.corpus.tokenizer, self.model.config.max_position_embeddings
        sets = []
        for task in self.config.tasks:
            questions = load_questions(task, split, self.context.corpus)
            prompts = tokenizer([question.prompt for question in questions])["input_ids"]
            fit = [fitting(prompt, length=length, limit=self.config.max_new_tokens) == prompt for prompt in prompts]
            if not any(fit):
                raise UserError(
                    f"grpo.tasks={task}: no question of the split {split!r} fits into the model's {length} tokens with "
                    "an answer; train on longer rows with midtrain.sequence_length"
                )
            sets.append(list(itertools.compress(questions, fit)))
            self.too_long += fit.count(False)
        return sets

    def _held_out_questions(self) -> list[Question]:
        """The first `grpo.held_out_problems` validation questions, one of each task in turn."""
        sets = self._load_questions("validation")
        longest = max(map(len, sets))
        in_turn = [questions[i] for i in range(longest) for questions in sets if i < len(questions)]
        return in_turn[: self.config.held_out_problems]

    def _longest_sequence(self) -> int:
        """Tokens of the longest prompt, with its end-of-text token, and the longest response together."""
        prompts = [question.prompt for questions in (*self.questions, self.held_out) for question in questions]
        longest = 1 + max(map(len, self.context.corpus.tokenizer(prompts, add_special_tokens=False)["input_ids"]))
        return longest + max(self.config.response_limit(1), self.config.response_limit(self.config.steps))

    def _new_collector(self) -> Collector:
        seed = self.context.seed
        return Collector(
            self.config,
            self.engine,
            self.judge,
            tokenizer=self.context.corpus.tokenizer,
            questions=Questions(self.questions, seed),
            seed=seed,
        )

    def train(self) -> dict[str, Any]:
        config, context = self.config, self.context
        # After this, `step` steps have been taken: those of the trainer state, or none.
        state = load_state(context.resume)
        if state:
            self._load(state)
        else:
            self._begin()
        save_is_due = every(SAVE_SECONDS)
        milestones = config.checkpoints()
        while self.step < config.steps:
            if context.interrupted():
                self._save()
                raise Interrupted(f"after step {self.step} of {config.steps}")
            # Milestones are saved before the trainer state, so a resumed run has every milestone up to its step.
            self.step += 1
            collapse = self._one_step(inspect=self.step in milestones or self.step == 1)
            if self.step in milestones:
                context.save_milestone(self.model, self.step)
            if collapse and config.collapse == "stop":
                # The later milestones are then this model, so that what depends on them can run.
                for milestone in milestones:
                    if milestone > self.step:
                        context.save_milestone(self.model, milestone)
                break
            if self.step in milestones or save_is_due():
                self._save()
        return self._result()

    def _begin(self) -> None:
        """Prepare the first step of a new run: bounds on the pass rate, and the start model on held-out questions."""
        config, context = self.config, self.context
        for name in LOG_FILES:
            (context.folder / name).unlink(missing_ok=True)
        if (config.pass_rate_low, config.pass_rate_high) != (0.0, 1.0):
            self._keep_questions(self._within_pass_rate())
        context.log(
            "GRPO: %d questions of %s and %d held out, %d prompts x %d samples per step, engine %s, steps 1 to %d",
            sum(map(len, self.questions)),
            ", ".join(config.tasks),
            len(self.held_out),
            config.prompts,
            config.samples,
            config.engine,
            config.steps,
        )
        if config.held_out_every:
            context.ledger.log({"step": 0, **self._held_out_row()})

    def _one_step(self, *, inspect: bool) -> str | None:
        """Run one step, with forking tokens if `inspect`; returns what has collapsed, if anything."""
        step, config, context = self.step, self.config, self.context
        # Sample and verify.
        began = time.time()
        collected = self.collector.collect(step)
        sampled = time.time()
        # Measure before the update: the groups are from this policy, and the divergence estimate needs that.
        if inspect:
            rows = forking_tokens(self.model, collected.kept, config, tokenizer=context.corpus.tokenizer, step=step)
            self._append("forking.jsonl", rows)
        seed = stream_seed(Stream.DIVERGENCE, context.seed, step)
        divergence = divergence_from(self.reference, collected.sampled, config, seed=seed)
        scored = time.time()
        # Update the weights, and give the engine the new ones.
        update = self.updater.update(collected.kept, step)
        if not update["skipped"]:
            self.engine.sync(self.model)
        ended = time.time()

        row = {"step": step, **collected_row(collected), "kl_start": divergence, **update}
        collapse = self._record(row)
        held_out = {}
        if config.held_out_every and (step % config.held_out_every == 0 or step == config.steps):
            held_out = self._held_out_row()
        tokens, learned = _response_tokens(collected)
        context.ledger.log(
            row
            | {
                "entropy_fall_per_reward": entropy_fall(self.history),
                "collapsed": int(collapse is not None),
                "tokens_per_second": tokens / (ended - began),
                "rollout_tokens_per_second": tokens / (sampled - began),
                "update_tokens_per_second": learned / (ended - scored),
                "rollout_seconds": sampled - began,
                "scoring_seconds": scored - sampled,
                "update_seconds": ended - scored,
                **held_out,
            }
        )
        return collapse

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

    def _held_out_row(self) -> dict[str, float]:
        """Mean reward and pass@k on the held-out questions, sampled with the same random numbers each time."""
        began = time.time()
        groups = self.collector.sample(self.held_out, step=self.step, seed=stream_seed(Stream.HELD_OUT))
        score = float(np.mean([group.rewards.mean().item() for group in groups]))
        self.totals["held_out"].append([self.step, score])
        rows = [
            {
                "step": self.step,
                "question": group.question.question,
                "response": group.texts[0],
                "reward": group.rewards[0].item(),
            }
            for group in groups[:SHOWN_PROMPTS]
        ]
        self._append("samples.jsonl", rows)
        self.context.ledger.samples("held_out_samples", rows)
        return {
            "held_out_reward": score,
            **{f"held_out_{key}": value for key, value in pass_row(groups).items()},
            "held_out_seconds": time.time() - began,
        }

    def _within_pass_rate(self) -> list[list[int]]:
        """For each task, the indices of the questions whose pass rate under the start model is within the bounds."""
        low, high = self.config.pass_rate_low, self.config.pass_rate_high
        kept = []
        for index, (task, questions) in enumerate(zip(self.config.tasks, self.questions, strict=True)):
            seed = stream_seed(Stream.PASS_RATE, self.context.seed, index)
            groups = self.collector.sample(questions, step=1, seed=seed)
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

    def _keep_questions(self, kept: list[list[int]] | None) -> None:
        """Train only on the questions with these indices; None keeps all."""
        self.kept_questions = kept
        if kept is not None:
            pairs = zip(self.questions, kept, strict=True)
            self.questions = [[questions[i] for i in indices] for questions, indices in pairs]
            self.collector = self._new_collector()

    def _append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        with (self.context.folder / name).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def _save(self) -> None:
        save_state(
            self.context.resume,
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "collector": self.collector.state_dict(),
                "asked": self.kept_questions,
                "history": self.history,
                "totals": self.totals,
            },
        )
        self.context.log("trainer state saved after step %d", self.step)

    def _load(self, state: dict[str, Any]) -> None:
        self._keep_questions(state["asked"])
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.collector.load_state_dict(state["collector"])
        self.history, self.totals = state["history"], state["totals"]
        self.engine.sync(self.model)
        # Drop the rows, and the half-written line, that a killed attempt wrote after its last save.
        for name in LOG_FILES:
            path = self.context.folder / name
            if path.exists():
                rows = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
                with replacing(path) as temporary:
                    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= self.step))
        self.context.log("GRPO: resuming after step %d of %d", self.step, self.config.steps)

    def _result(self) -> dict[str, Any]:
        """The metrics of the stage run."""
        corpus, totals = self.context.corpus, self.totals
        last = self.history[-LAST_STEPS:]
        # Any family of the corpus may have been in the training data of earlier stages.
        families = corpus.manifest["content"]["tasks"]
        result: dict[str, Any] = {
            "steps": self.step,
            "reward": float(np.mean([row["reward"] for row in last])),
            "entropy": float(np.mean([row["entropy"] for row in last])),
            "response_length": float(np.mean([row["response_length"] for row in last])),
            "skipped": totals["skipped"],
            "verifier_failures": totals["verifier_failures"],
            "questions": sum(map(len, self.questions)),
            "questions_too_long": self.too_long,
            "contamination": contamination(
                [question for questions in self.questions for question in questions], corpus, families
            ),
            "held_out_contamination": contamination(self.held_out, corpus, families),
        }
        if totals["collapsed_at"] is not None:
            result |= {"collapsed_at": totals["collapsed_at"], "collapsed": totals["collapsed"]}
        if totals["held_out"]:
            result |= {"held_out_before": totals["held_out"][0][1], "held_out_after": totals["held_out"][-1][1]}
        if result["contamination"] is None:
            self.context.log(
                "contamination is not measured with token shards; shaping-sweeps contamination searches them"
            )
        self.context.log(
            "GRPO: ended after step %d with reward %.3f and entropy %.3f nats (mean of the last %d steps)",
            self.step,
            result["reward"],
            result["entropy"],
            len(last),
        )
        return result


def _response_tokens(collected: Collected) -> tuple[int, int]:
    """Response tokens that the step sampled, and those that it learned from."""
    sampled, kept = (
        sum(int(group.lengths.sum()) for group in groups) for groups in (collected.sampled, collected.kept)
    )
    return sampled, kept
