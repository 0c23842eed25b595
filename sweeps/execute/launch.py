"""From composed cells to work: plan, record the sweep, and hand the graph to an executor.

Both launchers end here, and so does `shaping-sweeps retry`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.console import Console

from pipelines.configuration import STAGES, TOKEN_STAGES, TRAINING_STAGES
from pipelines.configuration.cell import Cell, unsupported
from pipelines.configuration.compute import micro_batch
from pipelines.errors import StageFailure, UserError, require
from sweeps.compose.launchers import SlurmLauncherConfig, resources
from sweeps.execute.display import Display, plan_table, title
from sweeps.execute.local import execute
from sweeps.execute.slurm import Submission, submit
from sweeps.monitor.launched_sweeps import record
from sweeps.monitor.slurm_queue import is_here
from sweeps.plan.graph import Plan
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store

Jobs = Sequence[Sequence[str]]


def launch_locally(cells: list[Cell], jobs: Jobs, workers: int, only: set[str] | None = None) -> None:
    """Run what is missing on this machine, or of it what `only` names; returns when all is done.

    Raises `UserError` before anything is written, and `StageFailure` in the end where something failed.
    """
    require(workers >= 0, "hydra.launcher.workers", workers, fix="it must be 1 or more, or 0 for one a GPU or a core")
    graph, store = prepared(cells)
    record(store, graph, jobs, cells[0].sweep.name, "local", {"workers": workers})
    outcome = execute(
        graph.part(only) if only else graph, store, cells[0].tracking, display=Display(), workers=workers
    )
    if outcome.failed:
        raise StageFailure(
            f"{len(outcome.failed)} stage runs failed and {len(outcome.blocked)} wait for them; the logs are "
            "named above, and the same command runs again only what is missing"
        )


def launch_on_slurm(cells: list[Cell], jobs: Jobs, options: SlurmLauncherConfig, only: set[str] | None = None) -> None:
    """Submit what is missing, or of it what `only` names; returns at once.

    Raises `UserError` before anything is written, and for what Slurm refuses, after the rest was submitted.
    """
    _check(options)
    for cell in cells:
        check_ranks(cell, {stage: ranks(options, stage) for stage in TOKEN_STAGES})
    graph, store = prepared(cells)
    record(store, graph, jobs, cells[0].sweep.name, "slurm", asdict(options))
    submission = submit(graph.part(only) if only else graph, store, cells[0].tracking, options)
    _tell(graph, store, submission)
    if submission.refused:
        lines = [
            f"{words}; not submitted: {', '.join(title(graph.runs[s]) for s in signatures[:3])}"
            + (f" and {len(signatures) - 3} more" if len(signatures) > 3 else "")
            for words, signatures in submission.refused.items()
        ]
        waiting = f"; {len(submission.blocked)} stage runs wait for those" if submission.blocked else ""
        raise UserError("hydra.launcher: " + "\n".join(lines) + waiting)


def ranks(options: SlurmLauncherConfig, stage: str) -> int:
    """Tasks of one job of a stage."""
    asked = resources(options, stage)
    return int(asked["nodes"] * asked["tasks"])


def check_ranks(cell: Cell, counts: Mapping[str, int]) -> None:
    """Raise `UserError` where a stage's batch cannot be shared out among so many ranks."""
    for stage in TRAINING_STAGES[: TRAINING_STAGES.index(cell.until) + 1]:
        if stage in counts:
            micro_batch(getattr(cell, stage), cell.compute, counts[stage])


def _check(options: SlurmLauncherConfig) -> None:
    for prefix, part in (("", options), *((f"{s}.", getattr(options, s)) for s in STAGES)):
        for name in ("nodes", "tasks", "cpus", "time", "mem_gb"):
            value = getattr(part, name)
            require(value is None or value > 0, f"hydra.launcher.{prefix}{name}", value, fix="it must be above 0")
        require(
            part.gpus is None or part.gpus >= 0, f"hydra.launcher.{prefix}gpus", part.gpus, fix="it must be 0 or more"
        )
    asked = resources(options, "grpo")
    require(
        asked["nodes"] * asked["tasks"] == 1,
        "hydra.launcher.grpo.tasks",
        f"{asked['nodes'] * asked['tasks']} on {asked['nodes']} nodes",
        fix="grpo works in one task so far, so more can be planned and not launched; set hydra.launcher.grpo.nodes=1 and "
        "hydra.launcher.grpo.gpus=1",
    )
    for name in ("at_once", "requeues", "signal_seconds"):
        value = getattr(options, name)
        require(value >= 0, f"hydra.launcher.{name}", value, fix="it must be 0 or more")
    if not is_here():
        raise UserError("hydra/launcher=slurm: there is no sbatch on this machine; log in to one of the cluster")


def prepared(cells: list[Cell]) -> tuple[Plan, Store]:
    """The plan of cells and their store; raises `UserError` for what cannot be run, before anything is written."""
    stores = {cell.store for cell in cells}
    if len(stores) > 1:
        raise UserError(f"store={','.join(sorted(stores))}: one command writes to one store")
    reasons = dict.fromkeys(reason for cell in cells if (reason := unsupported(cell)))
    if reasons:
        raise UserError("\n".join(reasons))
    return plan(cells), Store.create(stores.pop())


def _tell(graph: Plan, store: Store, submission: Submission) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(plan_table(graph, set(submission.done)))
    arrays = submission.arrays
    named = f" as {len(arrays)} job arrays ({', '.join(arrays[:8])}{', ...' if len(arrays) > 8 else ''})"
    console.print(
        f"{len(submission.submitted)} stage runs submitted{named if arrays else ''}, "
        f"{len(submission.attached)} were queued or running already, {len(submission.done)} are done in {store.root}"
    )
    if submission.submitted or submission.attached:
        console.print("Nothing has to stay alive here; shaping-sweeps status --watch shows how it goes")
