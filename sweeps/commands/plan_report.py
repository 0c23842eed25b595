"""The output of `shaping-sweeps plan`: a table of stages, the cost, the memory of a rank and the tree; or JSON."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.text import Text
from rich.tree import Tree

from pipelines.configuration import STAGES, TRAINING_STAGES
from sweeps.execute.display import amount, title
from sweeps.plan.cost import Assumptions, Capacity, Estimate, Rate, estimate
from sweeps.plan.device_memory import Shortage, rank_memory, shortage
from sweeps.plan.graph import Plan, StageRun

COUNTED_AS = {"running": "elsewhere", "queued": "elsewhere", "done": "done"}
"""Status of a stage run -> the column of the table that counts it; all others are to do."""


@dataclass(frozen=True)
class PlanReport:
    """A plan, the status of its stage runs, and what the cost depends on."""

    graph: Plan
    statuses: dict[str, str]
    rate: Rate
    capacity: Capacity
    assumptions: Assumptions

    def _estimate(self) -> tuple[dict[str, Estimate], float]:
        """Returns the cost of what is to do by stage, and its hours of wall time."""
        to_do = {s for s, status in self.statuses.items() if status not in COUNTED_AS}
        return estimate(self.graph, to_do, rate=self.rate, capacity=self.capacity, assumptions=self.assumptions)

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain values."""
        stages, hours = self._estimate()
        stage_runs = [
            {"stage_run": s, "stage": run.stage, "title": title(run), "parent": run.parent and run.parent[1],
             "checkpoint": run.checkpoint, "steps": run.steps, "status": self.statuses[s]}
            for s, run in self.graph.runs.items()
        ]  # fmt: skip
        cost = asdict(self.rate) | {
            "wall_hours": hours,
            "assumed": asdict(self.assumptions),
            "stages": {stage: total.to_json() for stage, total in stages.items()},
        }
        shortages = [
            {"stage": run.stage, "model": run.labels["model"], "ranks": self.capacity.devices_of(run)} | asdict(short)
            for run, short in self._shortages()
        ]
        return {"cells": self.graph.cells, "stage_runs": stage_runs, "cost": cost, "does_not_fit": shortages}

    def lines(self) -> Iterator[str]:
        """Yields the lines of the report."""
        stages, hours = self._estimate()
        yield from self._table(stages)
        yield from self._cost_lines(stages, hours)
        yield from self._memory_lines()
        yield from dict.fromkeys(self._shortage_line(run, short) for run, short in self._shortages())

    def _table(self, stages: dict[str, Estimate]) -> Iterator[str]:
        """Yields a row for each stage: how many stage runs cells ask for, how many those are, and the cost to come."""
        # Cells share stage runs, so they ask for more than there are.
        asked = Counter(self.graph.runs[s].stage for signatures in self.graph.cells.values() for s in signatures)
        counts = Counter((run.stage, COUNTED_AS.get(self.statuses[s], "to do")) for s, run in self.graph.runs.items())
        yield f"Plan: {len(self.graph.cells)} cells, {len(self.graph.runs)} stage runs"
        names = ("stage", "asked for", "stage runs", "done", "elsewhere", "to do")
        yield "{:10}{:>11}{:>12}{:>7}{:>11}{:>7}{:>13}{:>14}{:>11}".format(
            *names, "operations", "device-hours", "storage"
        )
        for stage in STAGES:
            if asked[stage]:
                done, elsewhere, to_do = (counts[stage, column] for column in names[3:])
                # Only what is to do has a cost.
                costs = ("", "", "")
                if total := stages.get(stage):
                    operations = total.work.training + total.work.sampling
                    costs = (f"{operations:.2e}", f"{total.device_hours:,.1f}", amount(total.storage))
                yield (
                    f"{stage:10}{asked[stage]:>11}{done + elsewhere + to_do:>12}{done:>7}{elsewhere:>11}{to_do:>7}"
                    f"{costs[0]:>13}{costs[1]:>14}{costs[2]:>11}"
                )

    def _cost_lines(self, stages: dict[str, Estimate], hours: float) -> Iterator[str]:
        if not stages:
            yield "Nothing to do"
            return
        totals, rate, devices = stages.values(), self.rate, self.capacity.devices
        yield (
            f"To do: {sum(total.device_hours for total in totals):,.1f} {rate.device}-hours at {rate.mfu:.0%} of peak "
            f"({rate.sampling_mfu:.0%} for sampling), {hours:,.1f} hours of wall time "
            f"{f'on {devices} devices' if devices else 'with no limit on devices'}, "
            f"{amount(sum(total.storage for total in totals))} of checkpoints; the largest trainer state takes "
            f"{amount(max(total.trainer_states for total in totals))} while its stage runs"
        )
        jobs, runs = sum(total.jobs for total in totals), sum(total.runs for total in totals)
        if jobs > runs:
            yield f"The launcher's time limits make that {jobs} jobs for {runs} stage runs: the others are requeued"
        yield (
            f"Assumed: prompts of {self.assumptions.prompt_tokens:g} tokens, responses of "
            f"{self.assumptions.response_share:.0%} of their limit, {self.assumptions.mixed_share:.0%} of RL's groups "
            "mixed; time in the queue is not counted"
        )

    def _memory_lines(self) -> Iterator[str]:
        """Yields the memory of a rank, once for each way in which the training stages of the plan are computed."""
        # Most stage runs of a sweep have the same line.
        lines = dict[str, None]()
        for run in self.graph.runs.values():
            if run.stage in TRAINING_STAGES:
                ranks = self.capacity.devices_of(run)
                parts = rank_memory(self.graph, run, ranks, device=self.rate.device)
                shown = ", ".join(f"{name} {amount(value)}" for name, value in parts.items())
                lines[f"Memory of a rank, {run.labels['model']} {run.stage}, {ranks} ranks: {shown}"] = None
        yield from lines

    def _shortages(self) -> Iterator[tuple[StageRun, Shortage]]:
        """Yields the stage runs that do not fit on the device; of those with equal memory only the first."""
        seen = set()
        for run in self.graph.runs.values():
            ranks = self.capacity.devices_of(run)
            # Evaluations of one stage's checkpoints share their configuration.
            shared = id(run.config["evaluation"]) if run.stage == "evaluate" else repr(run.config[run.stage])
            key = (run.labels["model"], run.stage, shared, repr(run.compute), ranks)
            if key not in seen:
                seen.add(key)
                if short := shortage(self.graph, run, ranks, device=self.rate.device):
                    yield run, short

    def _shortage_line(self, run: StageRun, short: Shortage) -> str:
        """Returns what does not fit, and what would."""
        ranks = self.capacity.devices_of(run)
        where = "its one rank" if ranks == 1 else f"each of {ranks} ranks"
        start = (
            f"Does not fit: {run.labels['model']} {run.stage} needs {amount(short.needs)} on {where}, and "
            f"{self.rate.device} has {amount(short.usable)} for it; "
        )
        if short.setting is None:
            return start + "choose a larger device" + ("" if run.stage == "evaluate" else " or a smaller model")
        setting = " ".join(f"compute.{key}={value}" for key, value in short.setting.items())
        ways = ([f"{short.ranks} ranks"] if short.ranks != ranks else []) + ([setting] if setting else [])
        return start + f"it takes {amount(short.then)} with {' and '.join(ways)}"

    def tree(self) -> Tree:
        """Returns the tree of stage runs, each below the one that it starts from."""
        tree = Tree("stage runs")
        for run in self.graph.runs.values():
            if run.parent is None:
                self._grow(tree, run)
        return tree

    def _grow(self, tree: Tree, run: StageRun) -> None:
        branch = tree.add(Text(f"{title(run)}  {run.signature}  {self.statuses[run.signature]}"))
        for child in self.graph.children(run.signature):
            # A control is listed below the checkpoint that it measures, not below the one that it is matched to.
            if child.reference != run.signature:
                self._grow(branch, child)
