"""How well the cost model predicts finished stage runs: the share of a device's peak that each of them reached, and the
error of the times that other stage runs predict."""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipelines.configuration import TOKEN_STAGES
from pipelines.configuration.grpo import GRPOConfig
from pipelines.errors import UserError
from sweeps.plan.cost import DEVICES, Assumptions, Rate, Work, work
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import Store, StoredRun


@dataclass(frozen=True)
class Timed:
    """A finished stage run: the work that the cost model counts, and the time that it took."""

    model: str
    stage: str
    work: Work
    device_seconds: float

    def share_of_peak(self, device: str) -> float:
        """Returns the share of a device's peak that the stage run reached."""
        return (self.work.training + self.work.sampling) / self.device_seconds / DEVICES[device]

    def error(self, rate: Rate) -> float:
        """Returns |predicted / measured - 1| of the time that `rate` predicts."""
        return abs(rate.seconds(self.work) / self.device_seconds - 1)


@dataclass(frozen=True)
class Group:
    """The stage runs of one stage of one model. Errors are |predicted / measured - 1| of their times."""

    model: str
    stage: str
    runs: int
    device_seconds: float
    """The median."""
    share: float | None
    """Median share of the device's peak; None for `grpo`, which trains and samples at different shares."""
    error: float | None
    """Median error where one half of the model's stage runs predicts the other half; None where it cannot."""
    worst: float | None
    """The largest of those errors."""
    error_from_other_models: float | None
    """Median error where other models' stage runs predict; None where there are none."""


def measured(store: Store, signatures: Iterable[str]) -> Assumptions:
    """Returns the lengths and groups that the RL stages among these stage runs had, as means over their steps.

    Returns the default assumptions where there are none.
    """
    selected = set(signatures)
    prompts, responses, mixed = list[float](), list[float](), list[float]()
    for run in store.runs():
        if run.stage == "grpo" and run.signature in selected:
            config = GRPOConfig(**run.spec["config"]["grpo"])
            for row in run.readable_ledger():
                # The row of step 0 has held-out prompts only.
                if "prompt_length" in row:
                    prompts.append(row["prompt_length"])
                    responses.append(row["response_length"] / config.response_limit(row["step"]))
                    mixed.append(row["groups_mixed"])
    if not prompts:
        return Assumptions()
    return Assumptions(statistics.fmean(prompts), statistics.fmean(responses), statistics.fmean(mixed))


def timed(store: Store, signatures: Iterable[str], assumptions: Assumptions) -> list[Timed]:
    """Returns the finished ones of these stage runs with their work and times."""
    stored = {run.signature: run for run in store.runs()}
    # The work of a stage run depends on the model, which is in the specs of its ancestors.
    graph = Plan()
    for run in stored.values():
        graph.add(_planned(run))
    runs = []
    for signature in signatures:
        # The spec of a stage run may be broken.
        if signature not in stored:
            continue
        run = stored[signature]
        if (result := run.readable_result) and result["seconds"] > 0:
            runs.append(
                Timed(
                    model=run.spec["labels"]["model"],
                    stage=run.stage,
                    work=work(graph, graph.runs[signature], assumptions),
                    device_seconds=result["seconds"] * result["ranks"],
                )
            )
    return runs


def _planned(run: StoredRun) -> StageRun:
    spec = run.spec
    budget = spec["config"].get(run.stage, {})
    return StageRun(
        stage=run.stage,
        signature=run.signature,
        version=spec["version"],
        config=spec["config"],
        parent=spec["parent"] and (spec["parent"]["stage"], spec["parent"]["signature"]),
        checkpoint=spec["checkpoint"],
        steps=budget["tokens"] // budget["batch_tokens"] if "tokens" in budget else 0,
        labels=spec["labels"],
    )


def fit(runs: list[Timed], device: str) -> Rate:
    """Returns the shares of a device's peak that predict these stage runs: medians of the token stages for training and
    of evaluations for sampling. Raises `UserError` if one of the two is missing."""
    training = [run.share_of_peak(device) for run in runs if run.stage in TOKEN_STAGES]
    sampling = [run.share_of_peak(device) for run in runs if run.stage == "evaluate"]
    for shares, name in ((training, "pre-training or mid-training"), (sampling, "evaluation")):
        if not shares:
            raise UserError(f"none of the selected stage runs is a finished {name}, so the cost cannot be calibrated")
    return Rate(device, statistics.median(training), statistics.median(sampling))


def groups(runs: list[Timed], device: str) -> Iterator[Group]:
    """Yields, by model and stage, what was measured and how well other stage runs predict it."""
    for model in dict.fromkeys(run.model for run in runs):
        of_model = [run for run in runs if run.model == model]
        # Each half is predicted with the rate of the other half.
        halves = of_model[::2], of_model[1::2]
        rates = [_rate(half, device) for half in reversed(halves)]
        rate_of_others = _rate([run for run in runs if run.model != model], device)
        for stage in dict.fromkeys(run.stage for run in of_model):
            group = [run for run in of_model if run.stage == stage]
            errors = [
                run.error(rate)
                for half, rate in zip(halves, rates, strict=True)
                for run in half
                if rate and run.stage == stage
            ]
            yield Group(
                model=model,
                stage=stage,
                runs=len(group),
                device_seconds=statistics.median(run.device_seconds for run in group),
                share=None if stage == "grpo" else statistics.median(run.share_of_peak(device) for run in group),
                error=statistics.median(errors) if errors else None,
                worst=max(errors, default=None),
                error_from_other_models=(
                    statistics.median(run.error(rate_of_others) for run in group) if rate_of_others else None
                ),
            )


def _rate(runs: list[Timed], device: str) -> Rate | None:
    try:
        return fit(runs, device)
    except UserError:
        return None
