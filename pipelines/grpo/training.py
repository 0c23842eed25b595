"""The GRPO stage from its first step to its last: the trainer, its steps, and the result.

The trainer state (weights, optimizer, position in the questions, waiting groups, history) is saved at milestones, every
`SAVE_SECONDS` and when the stage is asked to stop. All random numbers are functions of (seed, step, round), so a run
that was killed resumes bit for bit.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from pipelines.configuration.grpo import GRPOConfig
from pipelines.data.questions import contamination
from pipelines.errors import Interrupted, StageFailure
from pipelines.evaluation.learning import area, price
from pipelines.files import replacing
from pipelines.grpo.module import GRPO
from pipelines.stage_context import StageContext
from pipelines.training.trainer import trainer, without_noise
from pipelines.verifiers import Judge

REASON_SECONDS = 5.0
"""How long a rank that has lost its connection looks for the reason of another one's failure."""

LAST_STEPS = 5
"""Final steps over which the result's numbers are averaged."""


def train_grpo(model: PreTrainedModel, config: GRPOConfig, context: StageContext) -> dict[str, Any]:
    """Train `model` in place for `config.steps` updates and return the metrics of the stage run.

    Writes `samples.jsonl` (responses to the same held-out prompts over the steps) and `forking.jsonl` (forking tokens
    at the first step and at milestones) to the context's folder. Resumes from the context's trainer state if there is
    one; `model` must then still be the start model, from which the divergence is measured. Several ranks share sampling
    and updates.

    Raises `Interrupted` after `context.interrupted()` has become true and the state is saved, `FloatingPointError` if a
    gradient is not finite, and `StageFailure` if another rank has failed or the device's memory does not do.
    """
    with Judge(context.verifier_workers) as judge:
        module = GRPO(model, config, context, judge=judge)
        # One epoch whose batches are the numbers of the steps: steps without an update count too.
        steps: Any = range(module.next_step, config.steps + 1)
        with without_noise(), _sharing_failures(context):
            try:
                trainer(context, max_epochs=1).fit(module, DataLoader(steps, batch_size=None))
            except torch.OutOfMemoryError as error:
                tokens = context.compute.micro_batch_tokens or config.micro_batch_tokens
                raise StageFailure(
                    f"compute.micro_batch_tokens={tokens}: the device's memory does not hold that many tokens of this "
                    "model at a time; halve it, or set compute.activation_checkpointing=full or compute.strategy=fsdp"
                ) from error
    model.eval()
    return _result(module, context)


@contextmanager
def _sharing_failures(context: StageContext) -> Iterator[None]:
    """Raise the reason of the rank that failed first on all ranks; those that it leaves only see a lost connection."""
    rank = context.ranks.rank
    try:
        yield
    except Exception as error:
        if context.ranks.tasks == 1 or isinstance(error, Interrupted):
            raise
        # A lost connection is a RuntimeError; its cause is on another rank, which writes it down before it ends.
        deadline = time.monotonic() + REASON_SECONDS
        while type(error).__module__ in ("builtins", "torch.distributed") and isinstance(error, RuntimeError):
            if reasons := [path.read_text() for path in context.folder.glob("failed-rank-*")]:
                raise StageFailure(reasons[0]) from error
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        with replacing(context.folder / f"failed-rank-{rank}") as temporary:
            temporary.write_text(f"rank {rank}: {error}")
        raise


def _held_out_result(held_out: list[list[float]], history: list[dict[str, float]]) -> dict[str, float]:
    """What the [step, reward] pairs on held-out problems say of the run, and the entropy that its gain cost."""
    steps, rewards = (list(column) for column in zip(*held_out, strict=True))
    result = {"held_out_before": rewards[0], "held_out_after": rewards[-1]}
    first, last = (np.mean([row["entropy"] for row in rows]) for rows in (history[:LAST_STEPS], history[-LAST_STEPS:]))
    result["entropy_spent"] = float(first - last)
    if len(steps) > 1:
        result["held_out_area"] = area(steps, rewards)
    if (paid := price(result["entropy_spent"], rewards[-1] - rewards[0])) is not None:
        result["entropy_spent_per_reward"] = paid
    return result


def _result(module: GRPO, context: StageContext) -> dict[str, Any]:
    """The metrics of the stage run."""
    corpus, totals, asked = context.corpus, module.totals, module.asked
    last = module.history[-LAST_STEPS:]
    # Any family of the corpus may have been in the training data of earlier stages.
    families = corpus.manifest["content"]["tasks"]
    questions = [question for questions in asked.training for question in questions]
    result: dict[str, Any] = {
        "steps": module.step,
        "reward": float(np.mean([row["reward"] for row in last])),
        "entropy": float(np.mean([row["entropy"] for row in last])),
        "response_length": float(np.mean([row["response_length"] for row in last])),
        "skipped": totals["skipped"],
        "verifier_failures": totals["verifier_failures"],
        "questions": len(questions),
        "questions_too_long": asked.too_long,
        "contamination": contamination(questions, corpus, families),
        "held_out_contamination": contamination(asked.held_out, corpus, families),
    }
    if totals["collapsed_at"] is not None:
        result |= {"collapsed_at": totals["collapsed_at"], "collapsed": totals["collapsed"]}
    if totals["held_out"]:
        result |= _held_out_result(totals["held_out"], module.history)
    if result["contamination"] is None:
        context.log("contamination is not measured with token shards; shaping-sweeps contamination searches them")
    context.log(
        "GRPO: ended after step %d with reward %.3f and entropy %.3f nats (mean of the last %d steps)",
        module.step,
        result["reward"],
        result["entropy"],
        len(last),
    )
    return result
