"""Which points of training an evaluation measures: a checkpoint may be the end of one stage and step 0 of the next."""

from typing import NamedTuple

from pipelines.configuration import START, TOKEN_STAGES, TRAINING_STAGES
from sweeps.plan.graph import Plan


def checkpoint_step(checkpoint: str) -> int:
    """`step-000128` -> 128."""
    return int(checkpoint.split("-")[1])


class Place(NamedTuple):
    """A point of training that an evaluation measures."""

    stage: str
    step: int
    tokens: int | None
    """Tokens of the stage so far; None in RL."""


def places(plan: Plan) -> dict[str, list[Place]]:
    """Returns evaluation -> the points of training that it measures.

    The model that RL starts from is also RL's step 0. A start checkpoint is step 0 of the stages that start from it.
    """
    followers: dict[tuple[str, str | None], list[str]] = {}
    for run in plan.runs.values():
        if run.stage in TRAINING_STAGES and run.parent:
            stages = followers.setdefault((run.parent[1], run.checkpoint), [])
            if run.stage not in stages:
                stages.append(run.stage)
    measured: dict[str, list[Place]] = {}
    for run in plan.runs.values():
        if run.stage != "evaluate" or not run.parent or not run.checkpoint:
            continue
        stage, signature = run.parent
        next_stages = followers.get((signature, run.checkpoint), [])
        if stage == START:
            found = [Place(name, 0, 0 if name in TOKEN_STAGES else None) for name in next_stages or [START]]
        else:
            found = [Place(stage, checkpoint_step(run.checkpoint), run.labels.get("tokens"))]
            found += [Place("grpo", 0, None)] if "grpo" in next_stages else []
        measured[run.signature] = found
    return measured
