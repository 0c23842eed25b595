"""`shaping-sweeps plan | sizes | calibrate`: what a sweep runs and costs, how large models are, how near costs come."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from pipelines.configuration import STAGES, TOKEN_STAGES
from pipelines.errors import UserError, nearest
from sweeps.commands.application import AsJson, Filters, Overrides, StorePath, app, console
from sweeps.compose.launchers import SlurmLauncherConfig
from sweeps.execute.display import amount, title
from sweeps.monitor.status import rows
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import Store, store_path

if TYPE_CHECKING:
    from sweeps.plan.cost import Assumed, Rate


@app.command("plan")
def show_plan(
    overrides: Overrides = None,
    as_json: AsJson = False,
    why: Annotated[
        str | None, typer.Option("--why", metavar="CELL", help="Say why a cell's stage runs are not in the store.")
    ] = None,
    tree: Annotated[bool, typer.Option(help="Print the tree of who starts from whom.")] = True,
    device: Annotated[str, typer.Option(help="What the cost is counted on: h100, h200, a100, core.")] = "h100",
    mfu: Annotated[float, typer.Option(help="Share of the device's peak that training reaches.")] = 0.4,
    sampling_mfu: Annotated[float, typer.Option(help="The same for sampling.")] = 0.1,
    prompt_tokens: Annotated[float, typer.Option(help="Tokens of a prompt.")] = 200,
    response_share: Annotated[float, typer.Option(help="Length of a response as a share of its limit.")] = 0.5,
    mixed_share: Annotated[float, typer.Option(help="Share of RL's groups that are not all right or all wrong.")] = 0.5,
    devices: Annotated[int, typer.Option(min=0, help="Devices at once, for the wall time; 0: no limit.")] = 0,
    sbatch: Annotated[bool, typer.Option("--sbatch", help="Print the scripts that Slurm would be sent.")] = False,
) -> None:
    """Show the stage runs that a command line needs, what is done of them, and what the rest costs; runs nothing.

    hydra/launcher=slurm and hydra.launcher.* among the overrides give the devices of a stage run and its time limit.
    """
    from sweeps.compose.cells import compose_cells, compose_launcher
    from sweeps.plan import cost
    from sweeps.plan.planner import plan

    words = [o for o in overrides or [] if o not in ("-m", "--multirun")]
    ours = [o for o in words if not o.lstrip("+~").startswith("hydra")]
    cells = compose_cells(ours)
    graph = plan(cells)
    root = store_path(cells[0].store)
    store = Store.open(root) if root.is_dir() else None
    if why is not None:
        _why(graph, store, why)
        return
    launcher = compose_launcher([o for o in words if o not in ours])
    if isinstance(launcher, SlurmLauncherConfig):
        from sweeps.execute.launch import check_ranks, ranks

        for cell in cells:
            check_ranks(cell, {stage: ranks(launcher, stage) for stage in TOKEN_STAGES})
    if sbatch:
        from sweeps.execute.slurm import scripts

        if not isinstance(launcher, SlurmLauncherConfig):
            raise UserError("--sbatch: there are scripts for hydra/launcher=slurm alone; add that")
        for script in scripts(graph, launcher, root / "jobs"):
            print(script)
        return
    rate = cost.Rate(device, mfu, sampling_mfu)
    assumed = cost.Assumed(prompt_tokens, response_share, mixed_share)
    _check(rate, assumed)
    statuses = {s: _status(store, run) for s, run in graph.runs.items()}
    missing = {s for s, status in statuses.items() if status not in ("done", "running", "queued")}
    room = cost.room(launcher, devices)
    stages, hours = cost.estimate(graph, missing, rate, room, assumed)
    if as_json:
        listed = [
            {"stage_run": s, "stage": run.stage, "title": title(run), "parent": run.parent and run.parent[1],
             "checkpoint": run.checkpoint, "steps": run.steps, "status": statuses[s]}
            for s, run in graph.runs.items()
        ]  # fmt: skip
        figures = {
            "device": device, "mfu": mfu, "sampling_mfu": sampling_mfu, "wall_hours": hours, "assumed": asdict(assumed),
            "stages": {stage: found.to_json() for stage, found in stages.items()},
        }  # fmt: skip
        print(json.dumps({"cells": graph.cells, "stage_runs": listed, "cost": figures}, indent=1))
        return
    terminal = console()
    for line in _plan_lines(graph, statuses, stages):
        terminal.print(line)
    for line in _cost_lines(stages, hours, rate, room.devices, assumed):
        terminal.print(line)
    for line in _memory_lines(graph, room):
        terminal.print(line)
    if tree:
        root_of_tree = Tree("stage runs")
        for run in graph.runs.values():
            if run.parent is None:
                _grow(root_of_tree, graph, statuses, run)
        terminal.print(root_of_tree)


def _check(rate: "Rate", assumed: "Assumed") -> None:
    """Raises `UserError` for an option of the cost that is out of its range."""
    from sweeps.plan import cost

    if rate.device not in cost.DEVICES:
        raise UserError(f"--device={rate.device}: {nearest(rate.device, cost.DEVICES)}")
    for name, value in (
        ("--mfu", rate.mfu),
        ("--sampling-mfu", rate.sampling_mfu),
        ("--response-share", assumed.response_share),
        ("--mixed-share", assumed.mixed_share),
    ):
        if not 0 < value <= 1:
            raise UserError(f"{name}={value}: it is a share, above 0 and at most 1")
    if not 0 <= assumed.prompt_tokens < math.inf:
        raise UserError(f"--prompt-tokens={assumed.prompt_tokens}: it is a number of tokens, 0 or more")


def _status(store: Store | None, run: StageRun) -> str:
    return store.run(run.stage, run.signature).status if store else "missing"


def _grow(tree: Tree, graph: Plan, statuses: dict[str, str], run: StageRun) -> None:
    branch = tree.add(Text(f"{title(run)}  {run.signature}  {statuses[run.signature]}"))
    for child in graph.children(run.signature):
        if child.reference != run.signature:  # a control stands under the checkpoint that it measures
            _grow(branch, graph, statuses, child)


def _plan_lines(graph: Plan, statuses: dict[str, str], stages: dict[str, Any]) -> Iterator[str]:
    """A table: how many stage runs the cells name, how many those are, where they stand, what the rest costs."""
    asked = Counter(graph.runs[s].stage for signatures in graph.cells.values() for s in signatures)
    where = Counter(
        (run.stage, {"running": "elsewhere", "queued": "elsewhere", "done": "done"}.get(statuses[s], "to do"))
        for s, run in graph.runs.items()
    )
    yield f"Plan: {len(graph.cells)} cells, {len(graph.runs)} stage runs"
    names = ("stage", "asked for", "stage runs", "done", "elsewhere", "to do", "operations", "device-hours", "storage")
    yield "{:10}{:>11}{:>12}{:>7}{:>11}{:>7}{:>13}{:>14}{:>11}".format(*names)
    for stage in STAGES:
        if asked[stage]:
            counts = [where[stage, kind] for kind in ("done", "elsewhere", "to do")]
            found = stages.get(stage)
            costs = ("", "", "")
            if found:
                operations = found.work.training + found.work.sampling
                costs = (f"{operations:.2e}", f"{found.device_hours:,.1f}", amount(found.storage))
            unique = sum(counts)
            yield (
                f"{stage:10}{asked[stage]:>11}{unique:>12}{counts[0]:>7}{counts[1]:>11}{counts[2]:>7}"
                f"{costs[0]:>13}{costs[1]:>14}{costs[2]:>11}"
            )


def _cost_lines(stages: dict[str, Any], hours: float, rate: Any, devices: int, assumed: Any) -> Iterator[str]:
    if not stages:
        yield "Nothing to do"
        return
    total = sum(found.device_hours for found in stages.values())
    stored = sum(found.storage for found in stages.values())
    state = max(found.trainer_states for found in stages.values())
    jobs, runs = (sum(getattr(found, name) for found in stages.values()) for name in ("jobs", "runs"))
    yield (
        f"To do: {total:,.1f} {rate.device}-hours at {rate.mfu:.0%} of peak ({rate.sampling_mfu:.0%} for sampling), "
        f"{hours:,.1f} hours of wall time {f'on {devices} at once' if devices else 'with a device for all'}, "
        f"{amount(stored)} of checkpoints, {amount(state)} for the largest trainer state while it is at work"
    )
    if jobs > runs:
        yield f"With the launcher's time limits that is {jobs} jobs for {runs} stage runs: the rest are requeues"
    yield (
        f"Assumed: prompts of {assumed.prompt_tokens:g} tokens, responses of {assumed.response_share:.0%} of their "
        f"limit, {assumed.mixed_share:.0%} of RL's groups mixed; time in the queue is not counted"
    )


def _memory_lines(graph: Plan, room: Any) -> Iterator[str]:
    """Memory of a rank while it trains, once for each way in which the plan's token stages are computed."""
    from sweeps.plan.cost import rank_memory

    told = set()
    for run in graph.runs.values():
        if run.stage not in TOKEN_STAGES:
            continue
        ranks = room.per_run.get(run.stage, 1)
        parts = rank_memory(graph, run, ranks)
        line = f"{run.labels['model']} {run.stage}, {ranks} ranks: " + ", ".join(
            f"{name} {amount(value)}" for name, value in parts.items()
        )
        if line not in told:
            told.add(line)
            yield f"Memory of a rank, {line}"


@app.command()
def sizes(
    names: Annotated[list[str] | None, typer.Argument(help="Models of conf/model; all of them by default.")] = None,
    vocabulary: Annotated[int, typer.Option(min=0, help="Entries of the vocabulary; 0: 151,936, the paper's.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show how many parameters each model has: in all, outside the embeddings, and met by one token."""
    from pipelines.models.sizes import active_body_parameters, body_parameters, parameters
    from sweeps.compose.cells import compose_cell
    from sweeps.compose.config_files import options_of

    known = options_of("model")
    for name in names or []:
        if name not in known:
            raise UserError(f"{name}: there is no such model; {nearest(name, known)}")
    entries = vocabulary or 151_936
    found: list[dict[str, Any]] = []
    for name in names or known:
        model = asdict(compose_cell([f"model={name}"]).model)
        found.append(
            {
                "model": name,
                "parameters": parameters(model, entries),
                "without_embeddings": body_parameters(model),
                "active_without_embeddings": active_body_parameters(model),
            }
        )
    found.sort(key=lambda row: row["parameters"])
    if as_json:
        print(json.dumps({"vocabulary": entries, "models": found}, indent=1))
        return
    print(f"{'model':12}{'parameters':>16}{'no embeddings':>16}{'of them active':>16}   (vocabulary {entries:,})")
    for row in found:
        print(
            f"{row['model']:12}{row['parameters']:>16,}{row['without_embeddings']:>16,}"
            f"{row['active_without_embeddings']:>16,}"
        )


@app.command()
def calibrate(
    filters: Filters = None,
    store: StorePath = "store",
    device: Annotated[str, typer.Option(help="What the stage runs ran on: h100, h200, a100, core.")] = "core",
    as_json: AsJson = False,
) -> None:
    """Show how near the cost model comes to the seconds that done stage runs took, and the shares to give to `plan`."""
    from sweeps.plan.calibration import fit, groups, measured, timed
    from sweeps.plan.cost import DEVICES

    if device not in DEVICES:
        raise UserError(f"--device={device}: {nearest(device, DEVICES)}")
    opened = Store.open(store)
    done = [row.signature for row in rows(opened, filters or ()) if row.status == "done"]
    assumed = measured(opened, done)
    runs = timed(opened, done, assumed)
    rate, found = fit(runs, device), list(groups(runs, device))
    if as_json:
        shares = {"device": device, "mfu": rate.mfu, "sampling_mfu": rate.sampling_mfu, "assumed": asdict(assumed)}
        print(json.dumps(shares | {"groups": [asdict(group) for group in found]}, indent=1))
        return
    print(
        f"{'model':12}{'stage':10}{'runs':>6}{'seconds':>11}{'of peak':>9}{'error':>8}{'worst':>8}{'other models':>14}"
    )
    for group in found:
        shown = (f"{'' if v is None else f'{v:.1%}':>{width}}" for v, width in (
            (group.share, 9), (group.error, 8), (group.worst, 8), (group.error_from_other_models, 14)))  # fmt: skip
        print(f"{group.model:12}{group.stage:10}{group.runs:>6}{group.device_seconds:>11.1f}{''.join(shown)}")
    print(
        "seconds: median on one device; error: of times predicted by the model's other stage runs (median, worst), "
        "and by other models'"
    )
    print(
        f"shaping-sweeps plan ... --device {device} --mfu {rate.mfu:.3g} --sampling-mfu {rate.sampling_mfu:.3g} "
        f"--prompt-tokens {assumed.prompt_tokens:.3g} --response-share {assumed.response_share:.3g} "
        f"--mixed-share {assumed.mixed_share:.3g}"
    )


def _why(graph: Plan, store: Store | None, cell: str) -> None:
    """Print, for each training stage of the cell, why it is not in the store."""
    from sweeps.plan.differences import explain

    name, _, stage = cell.partition(":")
    if name not in graph.cells:
        raise UserError(f"--why={cell}: the command line has no such cell; {nearest(name, graph.cells)}")
    terminal = console()
    for signature in graph.cells[name]:
        run = graph.runs[signature]
        if stage and run.stage != stage:
            continue
        status = _status(store, run)
        if run.stage == "evaluate" and (status == "done" or not stage):
            continue
        if status == "done" or store is None:
            terminal.print(f"{title(run)}  {signature}: {status}" + ("" if store else ", there is no store yet"))
            continue
        other, different = explain(graph, run, store)
        if other is None:
            terminal.print(f"{title(run)}  {signature}: {status}; the store has no {run.stage} at all")
        elif not different:
            terminal.print(f"{title(run)}  {signature}: {status}; the store has its spec")
        else:
            terminal.print(f"{title(run)}  {signature}: {status}; the nearest in the store is {other}")
            for key, (mine, theirs) in different.items():
                terminal.print(f"    {key}: {mine!r} here, {theirs!r} there")
