"""Launches composed cells: plan them, record the sweep, and hand the graph to an executor.

Used by both launchers and by `shaping-sweeps retry`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pipelines import foreign_text
from pipelines.configuration import STAGES, TOKEN_STAGES
from pipelines.configuration.cell import Cell, unsupported
from pipelines.configuration.compute import micro_batch
from pipelines.data.prepared_sources import outdated
from pipelines.errors import StageFailure, UserError, require
from sweeps.compose.launcher_options import SlurmLauncherConfig, resources
from sweeps.execute.display import Display, plan_table, title
from sweeps.execute.local import execute
from sweeps.execute.slurm import OWN_PARAMETERS, Submission, submit
from sweeps.monitor.launched_sweeps import record
from sweeps.monitor.slurm_queue import is_slurm_installed, slurm
from sweeps.plan.graph import Plan
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store, store_path

Jobs = Sequence[Sequence[str]]


def launch_locally(cells: list[Cell], jobs: Jobs, *, workers: int, only: set[str] | None = None) -> None:
    """Run the missing stage runs on this machine, or those of `only`; returns when all are done.

    Raises `UserError` before anything is written, and `StageFailure` at the end if a stage run failed.
    """
    require(workers >= 0, "hydra.launcher.workers", workers, fix="it must be 1 or more, or 0 for one per GPU or core")
    graph, store = prepared(cells)
    record(store, graph, jobs, name=sweep_names(cells), launcher="local", options={"workers": workers})
    outcome = execute(graph.part(only) if only else graph, store, cells[0].tracking, display=Display(), workers=workers)
    if outcome.failed:
        raise StageFailure(
            f"{len(outcome.failed)} stage runs failed and {len(outcome.blocked)} wait for them; the logs are "
            "named above, and the same command runs only what is missing"
        )


def launch_on_slurm(
    cells: list[Cell], jobs: Jobs, *, options: SlurmLauncherConfig, only: set[str] | None = None
) -> None:
    """Submit the missing stage runs, or those of `only`; returns at once.

    Raises `UserError` before anything is written, and for what Slurm refuses after everything else was submitted.
    """
    # All mistakes are reported before the first write.
    check_options(options)
    if not is_slurm_installed():
        raise UserError(
            "hydra/launcher=slurm: sbatch is not installed on this machine; log in to a machine of the cluster"
        )
    for cell in cells:
        check_ranks(cell, {stage: ranks(options, stage) for stage in TOKEN_STAGES})
    slurm(["scontrol", "show", "config"])  # a Slurm that does not answer ends the command here
    graph, store = prepared(cells)
    record(store, graph, jobs, name=sweep_names(cells), launcher="slurm", options=asdict(options))
    submission = submit(graph.part(only) if only else graph, store, cells[0].tracking, options=options)
    _print(graph, store, submission)
    # One line for each message of Slurm, with the first three stage runs that it is about.
    if submission.refused:
        lines = [
            f"{message}; not submitted: {', '.join(title(graph.runs[s]) for s in signatures[:3])}"
            + (f" and {len(signatures) - 3} more" if len(signatures) > 3 else "")
            for message, signatures in submission.refused.items()
        ]
        waiting = f"; {len(submission.blocked)} stage runs wait for those" if submission.blocked else ""
        raise UserError("hydra.launcher: " + "\n".join(lines) + waiting)


def sweep_names(cells: list[Cell]) -> str:
    """Returns the names of the sweeps that the cells are of, separated by commas; empty for typed overrides."""
    return ",".join(dict.fromkeys(cell.sweep.name for cell in cells if cell.sweep.name))


def ranks(options: SlurmLauncherConfig, stage: str) -> int:
    """Number of tasks of one job of a stage."""
    requested = resources(options, stage)
    return int(requested["nodes"] * requested["tasks"])


def check_ranks(cell: Cell, counts: Mapping[str, int]) -> None:
    """Raise `UserError` if the batch of a stage cannot be divided among `counts[stage]` ranks."""
    for stage in cell.stages:
        if stage in counts:
            micro_batch(getattr(cell, stage), cell.compute, counts[stage])


def check_options(options: SlurmLauncherConfig) -> None:
    """Raise `UserError` for impossible options."""
    # The options of all jobs, then those of single stages.
    for prefix, part in (("", options), *((f"{s}.", getattr(options, s)) for s in STAGES)):
        for name in ("nodes", "tasks", "cpus", "time", "mem_gb", "mem_per_cpu_gb"):
            value = getattr(part, name)
            require(value is None or value > 0, f"hydra.launcher.{prefix}{name}", value, fix="it must be above 0")
        require(
            part.gpus is None or part.gpus >= 0, f"hydra.launcher.{prefix}gpus", part.gpus, fix="it must be 0 or more"
        )
        require(
            part.mem_gb is None or part.mem_per_cpu_gb is None,
            f"hydra.launcher.{prefix}mem_gb",
            f"{part.mem_gb} and hydra.launcher.{prefix}mem_per_cpu_gb={part.mem_per_cpu_gb}",
            fix="Slurm takes only one of them; leave one out",
        )
        for key in part.extra:
            require(
                key.replace("_", "-") not in OWN_PARAMETERS,
                f"hydra.launcher.{prefix}extra.{key}",
                part.extra[key],
                fix=f"the launcher sets it from {OWN_PARAMETERS.get(key.replace('_', '-'))}; leave it out",
            )
    for stage in STAGES:
        minutes = resources(options, stage)["time"]
        require(
            minutes * 60 > options.signal_seconds,
            "hydra.launcher.time",
            f"{minutes} and hydra.launcher.signal_seconds={options.signal_seconds}",
            fix=f"a {stage} job would be asked to save its state before it starts; set hydra.launcher.signal_seconds "
            f"below {minutes * 60}, or a longer time",
        )
    for name in ("at_once", "requeues", "signal_seconds"):
        value = getattr(options, name)
        require(value >= 0, f"hydra.launcher.{name}", value, fix="it must be 0 or more")


def prepared(cells: list[Cell]) -> tuple[Plan, Store]:
    """The plan of the cells, and their store; raises `UserError` for cells that cannot be run."""
    stores = {cell.store for cell in cells}
    if len({store_path(store).resolve() for store in stores}) > 1:
        raise UserError(f"store={','.join(sorted(stores))}: a command can write to only one store")
    reasons = dict.fromkeys(reason for cell in cells if (reason := unsupported(cell)))
    # Cells of a sweep share their data, and comparing files with what shards were made of may take a while.
    for data in {repr(cell.data): cell.data for cell in cells}.values():
        if reason := outdated(data):
            reasons.setdefault(reason)
    if reasons:
        raise UserError("\n".join(reasons))
    return plan(cells), Store.create(stores.pop())


def _print(graph: Plan, store: Store, submission: Submission) -> None:
    """Print what was submitted."""
    console = foreign_text.console()
    console.print(plan_table(graph, set(submission.done)))
    arrays = submission.arrays
    named = f" as {len(arrays)} job arrays ({', '.join(arrays[:8])}{', ...' if len(arrays) > 8 else ''})"
    console.print(
        f"{len(submission.submitted)} stage runs submitted{named if arrays else ''}, "
        f"{len(submission.attached)} were queued or running already, {len(submission.done)} are done in {store.root}"
    )
    if submission.submitted or submission.attached:
        console.print(
            "The jobs need nothing from this command any more; shaping-sweeps status --watch shows their progress"
        )
