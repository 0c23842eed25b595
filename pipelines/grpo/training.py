"""The GRPO stage from its first step to its last: collect, measure, update, and be able to stop anywhere.

The trainer's state - weights, optimizer, place in the questions, waiting groups, history - is saved at milestones,
every so often and when the stage is asked to stop. Everything random is a function of (seed, step, round), so a run
that was killed goes on bit for bit.
"""

import copy
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from pipelines.configuration.grpo import GRPOConfig
from pipelines.data.corpus import Corpus
from pipelines.data.questions import Question, contamination, load_questions
from pipelines.errors import Interrupted, UserError
from pipelines.grpo.collapse import collapsed
from pipelines.grpo.collection import Collector, Questions
from pipelines.grpo.diagnostics import collected_row, divergence_from, entropy_fall, forking_tokens, pass_row
from pipelines.grpo.update import Updater
from pipelines.ledger import Ledger
from pipelines.rollouts import Engine, TransformersEngine
from pipelines.training.optimizer import adamw
from pipelines.training.trainer_state import SAVE_SECONDS, every, load_state, save_state
from pipelines.verifiers import Judge

SHOWN = 8
"""Held-out prompts whose responses are shown again and again."""

LAST = 5
"""Final steps over which the result's numbers are averaged."""


def train_grpo(
    model: PreTrainedModel,
    config: GRPOConfig,
    corpus: Corpus,
    seed: int,
    ledger: Ledger,
    keep: Callable[[Any, int], None],
    folder: Path,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train `model` in place for `config.steps` updates and return what sums the run up.

    `keep(model, step)` saves a milestone. `folder` takes `samples.jsonl` (the same held-out prompts over the steps),
    `forking.jsonl` (forking tokens at the first step and at milestones) and, while unfinished, `resume/`. With a state
    in `resume/` the run goes on from it; `model` is then still the start model, to which the divergence is measured.

    Raises `Interrupted` after `interrupted()` has turned true and the state is saved; `FloatingPointError` where a
    gradient is not finite.
    """
    with Judge() as judge:
        return _Run(model, config, corpus, seed, ledger, keep, folder, interrupted, judge).train()


class _Run:
    def __init__(
        self,
        model: PreTrainedModel,
        config: GRPOConfig,
        corpus: Corpus,
        seed: int,
        ledger: Ledger,
        keep: Callable[[Any, int], None],
        folder: Path,
        interrupted: Callable[[], bool],
        judge: Judge,
    ) -> None:
        self.model, self.config, self.corpus, self.seed = model, config, corpus, seed
        self.ledger, self.keep, self.folder, self.interrupted = ledger, keep, folder, interrupted
        self.judge = judge
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = adamw(
            model,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(config.adam_beta1, config.adam_beta2),
        )
        self.asked = [load_questions(task, "rl", corpus) for task in config.tasks]
        self.held_out = self._held_out()
        self.engine = self._engine()
        self.updater = Updater(model, self.optimizer, config, self.reference, self.engine.exact)
        self.step = 0
        self.history: list[dict[str, float]] = []
        """Reward, entropy and length of every step."""
        self.totals: dict[str, Any] = {"skipped": 0, "verifier_failures": 0, "collapsed_at": None, "held_out": []}

    def _held_out(self) -> list[Question]:
        """The same held-out questions for every run, the data sets in turn."""
        sets = [load_questions(task, "validation", self.corpus) for task in self.config.tasks]
        longest = max(map(len, sets))
        mixed = [questions[i] for i in range(longest) for questions in sets if i < len(questions)]
        return mixed[: self.config.held_out_problems]

    def _engine(self) -> Engine:
        if self.config.engine == "transformers":
            return TransformersEngine(self.model)
        from pipelines.rollouts.vllm_engine import VLLMEngine

        prompts = [question.prompt for questions in (*self.asked, self.held_out) for question in questions]
        longest = 1 + max(map(len, self.corpus.tokenizer(prompts, add_special_tokens=False)["input_ids"]))
        limit = max(self.config.response_limit(1), self.config.response_limit(self.config.steps))
        return VLLMEngine(self.model, longest + limit)

    def train(self) -> dict[str, Any]:
        config = self.config
        state = load_state(self.folder / "resume")
        if state:
            self._filter(state["asked"])
        elif (config.pass_rate_low, config.pass_rate_high) != (0.0, 1.0):
            self._filter(self._within_pass_rate())
        self.collector = self._collector()
        if state:
            self._load(state)
        else:
            self._begin()
        due = every(SAVE_SECONDS)
        milestones = config.checkpoints()
        while self.step < config.steps:
            if self.interrupted():
                self._save()
                raise Interrupted(f"after step {self.step} of {config.steps}")
            self.step += 1
            reason = self._one_step(self.step in milestones or self.step == 1)
            if self.step in milestones:
                self.keep(self.model, self.step)
            if reason and config.collapse == "stop":
                for milestone in milestones:
                    if milestone > self.step:
                        self.keep(self.model, milestone)
                break
            if self.step in milestones or due():
                self._save()
        return self._result()

    def _begin(self) -> None:
        for name in ("samples.jsonl", "forking.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        self._measure_held_out()

    def _collector(self) -> Collector:
        questions = Questions(self.asked, self.seed)
        return Collector(self.config, self.engine, self.judge, self.corpus.tokenizer, questions, self.seed)

    def _one_step(self, look_closely: bool) -> str | None:
        """One step; returns why the run has collapsed, if it has."""
        step, config = self.step, self.config
        began = time.time()
        collected = self.collector.collect(step)
        sampled = time.time()
        if look_closely:
            self._append("forking.jsonl", forking_tokens(
                self.model, collected.kept, config, self.corpus.tokenizer, step
            ))  # fmt: skip
        divergence = divergence_from(self.reference, collected.sampled, config, (self.seed, step, 5))
        scored = time.time()
        update = self.updater.update(collected.kept, step)
        if not update["skipped"]:
            self.engine.sync(self.model)
        ended = time.time()
        row = {"step": step, **collected_row(collected), "kl_start": divergence, **update}
        self.history.append({key: row[key] for key in ("reward", "entropy", "response_length")})
        reason = None if config.collapse == "off" else collapsed(self.history, config)
        if reason and self.totals["collapsed_at"] is None:
            self.totals |= {"collapsed_at": step, "collapsed": reason}
        self.totals["skipped"] += update["skipped"]
        self.totals["verifier_failures"] += row["verifier_timeouts"] + row["verifier_errors"]
        tokens = sum(int(group.lengths.sum()) for group in collected.sampled)
        learned = sum(int(group.lengths.sum()) for group in collected.kept)
        held_out = {}
        if config.held_out_every and (step % config.held_out_every == 0 or step == config.steps):
            held_out = self._held_out_row()
        self.ledger.log(
            row
            | {
                "entropy_fall_per_reward": entropy_fall(self.history),
                "collapsed": int(reason is not None),
                "tokens_per_second": tokens / (ended - began),
                "rollout_tokens_per_second": tokens / (sampled - began),
                "update_tokens_per_second": learned / (ended - scored),
                "rollout_seconds": sampled - began,
                "scoring_seconds": scored - sampled,
                "update_seconds": ended - scored,
                **held_out,
            }
        )
        return reason

    def _measure_held_out(self) -> None:
        """Before the first step: where the start model stands, as step 0 of the ledger."""
        if self.config.held_out_every:
            self.ledger.log({"step": 0, **self._held_out_row()})

    def _held_out_row(self) -> dict[str, float]:
        """Mean reward and pass@k on the held-out questions; the same random numbers each time."""
        began = time.time()
        groups = self.collector.sample(self.held_out, self.step, (0, 6))
        score = float(np.mean([group.rewards.mean().item() for group in groups]))
        self.totals["held_out"].append([self.step, score])
        rows = [
            {
                "step": self.step,
                "question": group.question.question,
                "response": group.texts[0],
                "reward": group.rewards[0].item(),
            }
            for group in groups[:SHOWN]
        ]
        self._append("samples.jsonl", rows)
        self.ledger.samples("held_out_samples", rows)
        return {
            "held_out_reward": score,
            **{f"held_out_{key}": value for key, value in pass_row(groups).items()},
            "held_out_seconds": time.time() - began,
        }

    def _within_pass_rate(self) -> list[list[int]]:
        """For each data set, the questions that the start model solves within the bounds, by index."""
        collector = self._collector()
        kept = []
        for task, questions in zip(self.config.tasks, self.asked, strict=True):
            rates = [float(g.rewards.mean()) for g in collector.sample(questions, 1, (self.seed, 0, 7))]
            inside = [
                i for i, rate in enumerate(rates) if self.config.pass_rate_low <= rate <= self.config.pass_rate_high
            ]
            if not inside:
                raise UserError(
                    f"grpo.pass_rate_low={self.config.pass_rate_low}: no question of {task} is solved that often and "
                    f"at most {self.config.pass_rate_high} of the time (mean {np.mean(rates):.2f}); widen the bounds"
                )
            kept.append(inside)
        return kept

    def _filter(self, kept: list[list[int]] | None) -> None:
        self.kept_questions = kept
        if kept is not None:
            self.asked = [[questions[i] for i in chosen] for questions, chosen in zip(self.asked, kept, strict=True)]

    kept_questions: list[list[int]] | None = None

    def _append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        with (self.folder / name).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def _save(self) -> None:
        save_state(
            self.folder / "resume",
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

    def _load(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.collector.load_state_dict(state["collector"])
        self.history, self.totals = state["history"], state["totals"]
        self.engine.sync(self.model)
        for name in ("samples.jsonl", "forking.jsonl"):  # what the killed attempt wrote after its last save
            path = self.folder / name
            if path.exists():
                rows = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
                path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= self.step))

    def _result(self) -> dict[str, Any]:
        last = self.history[-LAST:]
        result: dict[str, Any] = {
            "steps": self.step,
            "reward": float(np.mean([row["reward"] for row in last])),
            "entropy": float(np.mean([row["entropy"] for row in last])),
            "response_length": float(np.mean([row["response_length"] for row in last])),
            "skipped": self.totals["skipped"],
            "verifier_failures": self.totals["verifier_failures"],
            "questions": sum(map(len, self.asked)),
            "contamination": contamination(
                [q for questions in self.asked for q in questions], self.corpus, self._families()
            ),
            "held_out_contamination": contamination(self.held_out, self.corpus, self._families()),
        }
        if self.totals["collapsed_at"] is not None:
            result |= {"collapsed_at": self.totals["collapsed_at"], "collapsed": self.totals["collapsed"]}
        if self.totals["held_out"]:
            result |= {
                "held_out_before": self.totals["held_out"][0][1],
                "held_out_after": self.totals["held_out"][-1][1],
            }
        return result

    def _families(self) -> list[str]:
        """Every family that earlier stages may have trained on."""
        return self.corpus.manifest["content"]["tasks"]
