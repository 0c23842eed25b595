"""How near the cost model comes to what stage runs took: the share of a device's peak that each of them reached, and
the error of times that the others predict."""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipelines.configuration.grpo import GRPOConfig
from pipelines.errors import UserError
from sweeps.plan.cost import DEVICES, Assumed, Rate, Work, work
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import Store, StoredRun


@dataclass(frozen=True)
class Timed:
    """A stage run that is done: what the cost model says that it does, and what it took."""

    model: str
    stage: str
    work: Work
    device_seconds: float


@dataclass(frozen=True)
class Group:
    """The stage runs of one stage of one model. Errors are |predicted / measured - 1|."""

    model: str
    stage: str
    runs: int
    device_seconds: float
    """The median."""
    share: float | None
    """Of the device's peak, the median; None for `grpo`, whose time two shares make up."""
    error: float | None
    """Median error of the model's stage runs where one half of them predicts the other; None where it cannot."""
    worst: float | None
    """The largest of those errors."""
    error_from_other_models: float | None
    """Median error where other models' stage runs predict them; None where there are none."""


def measured(store: Store, signatures: Iterable[str]) -> Assumed:
    """What the RL stages among these stage runs say about lengths and groups: means over their steps; what is assumed
    without any."""
    wanted = set(signatures)
    prompts, responses, mixed = list[float](), list[float](), list[float]()
    for run in store.runs():
        if run.stage == "grpo" and run.signature in wanted:
            config = GRPOConfig(**run.spec["config"]["grpo"])
            for row in run.ledger():
                if "prompt_length" in row:  # step 0 is held-out prompts alone
                    prompts.append(row["prompt_length"])
                    responses.append(row["response_length"] / config.response_limit(row["step"]))
                    mixed.append(row["groups_mixed"])
    if not prompts:
        return Assumed()
    return Assumed(statistics.fmean(prompts), statistics.fmean(responses), statistics.fmean(mixed))


def timed(store: Store, signatures: Iterable[str], assumed: Assumed) -> list[Timed]:
    """Those of the stage runs that are done."""
    stored = {run.signature: run for run in store.runs()}
    graph = Plan()
    for run in stored.values():
        graph.add(_planned(run))
    found = []
    for signature in signatures:
        run = stored[signature]
        if (result := run.result) and result["seconds"] > 0:
            seconds = result["seconds"] * result["ranks"]
            found.append(
                Timed(run.spec["labels"]["model"], run.stage, work(graph, graph.runs[signature], assumed), seconds)
            )
    return found


def _planned(run: StoredRun) -> StageRun:
    spec = run.spec
    budget = spec["config"].get(run.stage, {})
    steps = budget["tokens"] // budget["batch_tokens"] if "tokens" in budget else 0
    parent = spec["parent"] and (spec["parent"]["stage"], spec["parent"]["signature"])
    return StageRun(
        run.stage, run.signature, spec["version"], spec["config"], parent, spec["checkpoint"], steps, spec["labels"]
    )


def fit(runs: list[Timed], device: str) -> Rate:
    """The shares of a device's peak that predict these stage runs: medians, of the token stages for training and of
    evaluations for sampling. Raises `UserError` where there are none of either kind."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    for run in runs:
        if run.stage != "grpo":
            operations = run.work.training + run.work.sampling
            shares[run.stage == "evaluate"].append(operations / run.device_seconds / DEVICES[device])
    for is_evaluation, kind in ((False, "pre-training or mid-training"), (True, "evaluation")):
        if not shares[is_evaluation]:
            raise UserError(f"no {kind} among them is done; there is nothing to calibrate the cost model by")
    return Rate(device, statistics.median(shares[False]), statistics.median(shares[True]))


def groups(runs: list[Timed], device: str) -> Iterator[Group]:
    """By model and stage, what was measured and how well others predict it."""
    for model in dict.fromkeys(run.model for run in runs):
        kin = [run for run in runs if run.model == model]
        halves = kin[::2], kin[1::2]
        other_half = [_rate(half, device) for half in reversed(halves)]
        others = _rate([run for run in runs if run.model != model], device)
        for stage in dict.fromkeys(run.stage for run in kin):
            group = [run for run in kin if run.stage == stage]
            errors = [
                _error(run, rate)
                for half, rate in zip(halves, other_half, strict=True)
                for run in half
                if rate and run.stage == stage
            ]
            shares = [(run.work.training + run.work.sampling) / run.device_seconds / DEVICES[device] for run in group]
            yield Group(
                model,
                stage,
                len(group),
                statistics.median(run.device_seconds for run in group),
                None if stage == "grpo" else statistics.median(shares),
                statistics.median(errors) if errors else None,
                max(errors, default=None),
                statistics.median(_error(run, others) for run in group) if others else None,
            )


def _rate(runs: list[Timed], device: str) -> Rate | None:
    try:
        return fit(runs, device)
    except UserError:
        return None


def _error(run: Timed, rate: Rate) -> float:
    return abs(rate.seconds(run.work) / run.device_seconds - 1)
