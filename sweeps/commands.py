"""`shaping-sweeps`: look at a plan and at what the store holds of it."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from pipelines.errors import StageFailure, UserError
from sweeps.composition import compose_cells
from sweeps.display import plan_table, title
from sweeps.plan import Plan, StageRun, plan
from sweeps.sentences import sentence
from sweeps.store import Store, StoredRun
from sweeps.sync import send_artifacts, send_runs

app = typer.Typer(
    help="Look at sweeps: what a command line plans, and what the store holds of it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="As typed to shaping-run: +sweep=nano, objective=ce,precision, store=PATH.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main() -> None:
    """Run the command line; exits with 0, with 1 for failures, 2 for a user's mistake."""
    try:
        app(standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("SHAPING_DEBUG"):
            raise
        message = error.format_message() if isinstance(error, typer.BadParameter) else None
        print(f"shaping-sweeps: {message or getattr(error, 'message', None) or sentence(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def _plan(overrides: Sequence[str] | None) -> tuple[Plan, Store | None]:
    cells = compose_cells([o for o in overrides or [] if o != "-m"])
    root = cells[0].store
    return plan(cells), Store.open(root) if os.path.isdir(root) else None


def _status(store: Store | None, run: StageRun) -> str:
    return store.run(run.stage, run.signature).status if store else "missing"


@app.command("plan")
def show_plan(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show the stage runs that a command line needs, as a tree of who starts from whom; runs nothing."""
    graph, store = _plan(overrides)
    if as_json:
        rows = [
            {"stage_run": s, "stage": run.stage, "title": title(run), "parent": run.parent and run.parent[1],
             "checkpoint": run.checkpoint, "steps": run.steps, "status": _status(store, run)}
            for s, run in graph.runs.items()
        ]  # fmt: skip
        print(json.dumps({"cells": graph.cells, "stage_runs": rows}, indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(plan_table(graph, {s for s, run in graph.runs.items() if _status(store, run) == "done"}))
    tree = Tree("stage runs")
    for run in graph.runs.values():
        if run.parent is None:
            _grow(tree, graph, store, run)
    console.print(tree)


def _grow(tree: Tree, graph: Plan, store: Store | None, run: StageRun) -> None:
    branch = tree.add(f"{title(run)}  {run.signature}  {_status(store, run)}")
    for child in graph.children(run.signature):
        _grow(branch, graph, store, child)


@app.command()
def status(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show each planned stage run with its status, attempts, seconds and log."""
    graph, store = _plan(overrides)
    rows: list[dict[str, Any]] = []
    for signature, run in graph.runs.items():
        stored = store.run(run.stage, signature) if store else None
        attempts = stored.state.get("attempts", []) if stored else []
        seconds = (stored.result or {}).get("seconds") if stored else None
        rows.append(
            {
                "stage_run": signature,
                "what": title(run),
                "status": _status(store, run),
                "attempts": len(attempts),
                "seconds": seconds,
                "error": attempts[-1].get("error") if attempts else None,
                "log": attempts[-1]["log"] if attempts else None,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(box=None)
    for column in ("stage run", "what", "status", "attempts", "seconds"):
        table.add_column(column, justify="right" if column in ("attempts", "seconds") else "left")
    for row in rows:
        seconds = f"{row['seconds']:.0f}" if row["seconds"] is not None else ""
        table.add_row(row["stage_run"], row["what"], row["status"], str(row["attempts"]), seconds)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for row in rows:
        if row["status"] == "failed":
            console.print(f"FAILED {row['what']}: {row['error']}; log: {row['log']}", markup=False)


@app.command()
def show(
    signature: Annotated[str, typer.Argument(help="A stage run's signature, or the beginning of one.")],
    store: Annotated[str, typer.Option(help="Folder of stage runs.")] = "store",
) -> None:
    """Show one stage run: its configuration, state and results."""
    run = find(Store.open(store), signature)
    print(json.dumps({"folder": str(run.folder), **run.spec, "state": run.state, "result": run.result}, indent=1))


@app.command()
def sync(
    store: Annotated[str, typer.Option(help="Folder of stage runs.")] = "store",
    project: Annotated[str | None, typer.Option(help="W&B project; that of the runs where none is named.")] = None,
    entity: Annotated[str | None, typer.Option(help="W&B user or team.")] = None,
    artifacts: Annotated[bool, typer.Option(help="Send specs, results, ledgers and samples as artifacts too.")] = False,
    checkpoints: Annotated[bool, typer.Option(help="Put checkpoints into the artifacts; they are large.")] = False,
) -> None:
    """Send offline W&B runs, and on request the stage runs' files with their lineage; the same command goes on."""
    console = Console(highlight=False, soft_wrap=True)
    opened = Store.open(store)
    sent = send_runs(opened, project, entity, lambda line: console.print(line, markup=False))
    console.print(f"{len(sent.runs)} runs sent, {sent.already} were sent before, {len(sent.failed)} wait")
    if sent.failed:
        raise StageFailure(f"sync: {len(sent.failed)} runs were not sent ({sent.error}); the same command goes on")
    if artifacts or checkpoints:
        names = send_artifacts(
            opened, project or "shaping", entity, checkpoints, lambda line: console.print(line, markup=False)
        )
        console.print(f"{len(names)} artifacts sent")


def find(store: Store, signature: str) -> StoredRun:
    """The one stored stage run whose signature begins so; raises `UserError` for none or several."""
    found = [run for run in store.runs() if run.signature.startswith(signature)]
    if len(found) != 1:
        count = f"{len(found)} stage runs begin so; type more of it" if found else "no stage run begins so"
        raise UserError(f"{signature}: {count}; shaping-sweeps status lists them")
    return found[0]


if __name__ == "__main__":
    main()
