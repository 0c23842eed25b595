"""`shaping-sweeps plan`: the stage runs that a command line needs, what they cost, and why they are not done yet."""

import json
import math
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.configuration import TOKEN_STAGES
from pipelines.configuration.cell import Cell
from pipelines.errors import UserError, nearest
from sweeps.commands.shared_arguments import AsJson, Overrides, app, console
from sweeps.compose.launcher_options import LocalLauncherConfig, SlurmLauncherConfig
from sweeps.execute.display import title
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import Store, store_path

if TYPE_CHECKING:
    from sweeps.plan.cost import Assumptions, Rate

WIDEST_LINE = 500
"""Characters of a line of the tree, which rich would crop to the width of the terminal, or of 80 in a pipe."""


@app.command("plan")
def show_plan(
    overrides: Overrides = None,
    *,
    as_json: AsJson = False,
    _multirun: Annotated[bool, typer.Option("-m", "--multirun", hidden=True)] = False,  # as for shaping-run
    why: Annotated[
        str | None, typer.Option("--why", metavar="CELL", help="Say why a cell's stage runs are not in the store.")
    ] = None,
    tree: Annotated[bool, typer.Option(help="Print the tree of stage runs, each below the one it starts from.")] = True,
    device: Annotated[str, typer.Option(help="Device of the cost: h100, h200, a100 or core.")] = "h100",
    mfu: Annotated[float, typer.Option(help="Share of the device's peak that training reaches.")] = 0.4,
    sampling_mfu: Annotated[float, typer.Option(help="Share of the device's peak that sampling reaches.")] = 0.1,
    prompt_tokens: Annotated[float, typer.Option(help="Tokens of a prompt.")] = 200,
    response_share: Annotated[float, typer.Option(help="Length of a response as a share of its limit.")] = 0.5,
    mixed_share: Annotated[
        float, typer.Option(help="Share of RL's groups that are neither all right nor all wrong.")
    ] = 0.5,
    devices: Annotated[int, typer.Option(min=0, help="Devices in use at a time, for the wall time; 0: no limit.")] = 0,
    sbatch: Annotated[bool, typer.Option("--sbatch", help="Print the scripts that would be sent to Slurm.")] = False,
) -> None:
    """Show the stage runs that a command line needs, which are done, and what the others cost. Runs nothing.

    hydra/launcher=slurm and hydra.launcher.* among the overrides set the devices and time limit of a stage run.
    """
    from sweeps.commands.plan_report import PlanReport
    from sweeps.compose.cells import compose_cells, compose_launcher
    from sweeps.plan.cost import Assumptions, Rate, capacity
    from sweeps.plan.planner import plan

    # The launcher's overrides are not part of cells, so they are composed separately.
    launcher_words = [word for word in overrides or [] if word.lstrip("+~").startswith("hydra")]
    cells = compose_cells([word for word in overrides or [] if word not in launcher_words])
    graph = plan(cells)
    root = store_path(cells[0].store)
    store = Store.open(root) if root.is_dir() else None  # planning must not create one
    if why is not None:
        _print_differences(graph, store, why)
        return
    launcher = compose_launcher(launcher_words)
    _check_launcher(launcher, cells, sbatch)
    if sbatch:
        from sweeps.execute.slurm import scripts

        assert isinstance(launcher, SlurmLauncherConfig)
        for script in scripts(graph, launcher, root / "jobs"):
            print(script)
        return
    rate, assumptions = Rate(device, mfu, sampling_mfu), Assumptions(prompt_tokens, response_share, mixed_share)
    _check_cost(rate, assumptions)
    statuses = {signature: _status(store, run) for signature, run in graph.runs.items()}
    report = PlanReport(graph, statuses, rate, capacity(launcher, devices), assumptions)
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
        return
    terminal = console()
    for line in report.lines():
        terminal.print(line)
    if tree:
        terminal.width = WIDEST_LINE
        terminal.print(report.tree())


def _check_launcher(launcher: LocalLauncherConfig | SlurmLauncherConfig, cells: list[Cell], sbatch: bool) -> None:
    """Raises `UserError` for impossible options, where ranks cannot share a batch, and if there are no scripts."""
    if isinstance(launcher, SlurmLauncherConfig):
        from sweeps.execute.launch import check_options, check_ranks, ranks

        check_options(launcher)
        for cell in cells:
            check_ranks(cell, {stage: ranks(launcher, stage) for stage in TOKEN_STAGES})
    elif sbatch:
        raise UserError("--sbatch: only hydra/launcher=slurm has scripts; add it")


def _check_cost(rate: "Rate", assumptions: "Assumptions") -> None:
    """Raises `UserError` for an option of the cost that is out of its range."""
    from sweeps.plan.cost import DEVICES

    if rate.device not in DEVICES:
        raise UserError(f"--device={rate.device}: {nearest(rate.device, DEVICES)}")
    for name, value in (
        ("--mfu", rate.mfu),
        ("--sampling-mfu", rate.sampling_mfu),
        ("--response-share", assumptions.response_share),
        ("--mixed-share", assumptions.mixed_share),
    ):
        if not 0 < value <= 1:
            raise UserError(f"{name}={value}: it is a share, above 0 and at most 1")
    if not 0 <= assumptions.prompt_tokens < math.inf:
        raise UserError(f"--prompt-tokens={assumptions.prompt_tokens}: it is a number of tokens, 0 or more")


def _status(store: Store | None, run: StageRun) -> str:
    return store.run(run.stage, run.signature).status if store else "missing"


def _print_differences(graph: Plan, store: Store | None, cell: str) -> None:
    """Print why stage runs of a cell are not in the store; evaluations only where `cell` names them."""
    name, _, stage = cell.partition(":")
    if name not in graph.cells:
        raise UserError(f"--why={cell}: the command line has no such cell; {nearest(name, graph.cells)}")
    terminal = console()
    for signature in graph.cells[name]:
        run = graph.runs[signature]
        is_selected = run.stage == stage if stage else run.stage != "evaluate"
        # With --why=CELL:evaluate only the evaluations that are missing are of interest.
        if is_selected and not (run.stage == "evaluate" and _status(store, run) == "done"):
            for line in _difference_lines(graph, run, store):
                terminal.print(line)


def _difference_lines(graph: Plan, run: StageRun, store: Store | None) -> list[str]:
    from sweeps.plan.differences import explain

    status = _status(store, run)
    first = f"{title(run)}  {run.signature}: {status}"
    if store is None:
        return [f"{first}; the store does not exist yet"]
    if status == "done":
        return [first]
    nearest_signature, differences = explain(graph, run, store)
    if nearest_signature is None:
        return [f"{first}; the store has no {run.stage} stage run"]
    if not differences:
        return [f"{first}; the store has its spec"]
    return [
        f"{first}; the most similar in the store is {nearest_signature}",
        *(f"    {key}: {planned!r} here, {stored!r} there" for key, (planned, stored) in differences.items()),
    ]
