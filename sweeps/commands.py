"""`shaping-sweeps`: what a sweep would cost, where each stage run stands, its logs, and the store's upkeep."""

import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from pipelines.errors import StageFailure, UserError, nearest
from sweeps.display import STAGE_ORDER, amount, clock, title
from sweeps.options import SlurmLauncherConfig
from sweeps.plan import Plan, StageRun
from sweeps.status import ORDER, TROUBLE, Row, rows
from sweeps.store import Store, StoredRun, write_json

app = typer.Typer(
    help="Look at sweeps and tend them: what they cost, where they stand, logs, retries, the store.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SHOWN = 40
"""Stage runs that `status` lists, unless it is told to list all."""
WATCH_SECONDS = 2.0
FOLLOW_SECONDS = 0.3


def _complete(incomplete: str) -> list[str]:
    """Cells of the store beside, for the shell's completion."""
    try:
        found = rows(Store.open("store"))
    except (UserError, OSError):
        return []
    words = {row.cell for row in found} | {row.title for row in found}
    return sorted(word for word in words if word.startswith(incomplete))


Overrides = Annotated[
    list[str] | None, typer.Argument(help="As typed to shaping-run: +sweep=nano, objective=ce,precision, store=PATH.")
]
Filters = Annotated[
    list[str] | None,
    typer.Argument(
        help="Which stage runs: globs on CELL or CELL:STAGE ('nano/*/seed1:grpo'), key=value,value (objective, model, "
        "seed, scale, sweep, stage, status), or the beginning of a signature. All must hold.",
        autocompletion=_complete,
    ),
]
StorePath = Annotated[str, typer.Option("--store", help="Folder of stage runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command line; exits with 0, with 1 for failures, 2 for a user's mistake, 130 after Ctrl-C."""
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a pager was closed
        sys.exit(0)
    except Exception as error:
        if os.environ.get("SHAPING_DEBUG"):
            raise
        message = error.format_message() if isinstance(error, typer.BadParameter) else getattr(error, "message", None)
        if message is None:
            from sweeps.sentences import sentence

            message = sentence(error)
        print(f"shaping-sweeps: {message}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) or getattr(error, "exit_code", 1) == 2 else 1)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, markup=False)


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
    devices: Annotated[int, typer.Option(help="Devices at once, for the wall time; 0: no limit.")] = 0,
    sbatch: Annotated[bool, typer.Option("--sbatch", help="Print the scripts that Slurm would be sent.")] = False,
) -> None:
    """Show the stage runs that a command line needs, what is done of them, and what the rest costs; runs nothing.

    hydra/launcher=slurm and hydra.launcher.* among the overrides give the devices of a stage run and its time limit.
    """
    from sweeps import cost
    from sweeps.composition import compose_cells, compose_launcher
    from sweeps.plan import plan

    words = [o for o in overrides or [] if o not in ("-m", "--multirun")]
    ours = [o for o in words if not o.lstrip("+~").startswith("hydra")]
    cells = compose_cells(ours)
    graph = plan(cells)
    root = cells[0].store
    store = Store.open(root) if os.path.isdir(root) else None
    if why is not None:
        _why(graph, store, why)
        return
    launcher = compose_launcher([o for o in words if o not in ours])
    if isinstance(launcher, SlurmLauncherConfig):
        from sweeps.launch import check_ranks, ranks

        for cell in cells:
            check_ranks(cell, {stage: ranks(launcher, stage) for stage in ("pretrain", "midtrain")})
    if sbatch:
        from sweeps.slurm import scripts

        if not isinstance(launcher, SlurmLauncherConfig):
            raise UserError("--sbatch: there are scripts for hydra/launcher=slurm alone; add that")
        for script in scripts(graph, launcher, Path(root) / "jobs"):
            print(script)
        return
    if device not in cost.DEVICES:
        raise UserError(f"--device={device}: {nearest(device, cost.DEVICES)}")
    for name, value in (("--mfu", mfu), ("--sampling-mfu", sampling_mfu)):
        if not 0 < value <= 1:
            raise UserError(f"{name}={value}: it is a share of the peak, above 0 and at most 1")
    statuses = {s: _status(store, run) for s, run in graph.runs.items()}
    missing = {s for s, status in statuses.items() if status not in ("done", "running", "queued")}
    rate = cost.Rate(device, mfu, sampling_mfu)
    room = cost.room(launcher, devices)
    stages, hours = cost.estimate(graph, missing, rate, room)
    if as_json:
        listed = [
            {"stage_run": s, "stage": run.stage, "title": title(run), "parent": run.parent and run.parent[1],
             "checkpoint": run.checkpoint, "steps": run.steps, "status": statuses[s]}
            for s, run in graph.runs.items()
        ]  # fmt: skip
        figures = {
            "device": device, "mfu": mfu, "sampling_mfu": sampling_mfu, "wall_hours": hours,
            "stages": {stage: found.to_json() for stage, found in stages.items()},
        }  # fmt: skip
        print(json.dumps({"cells": graph.cells, "stage_runs": listed, "cost": figures}, indent=1))
        return
    console = _console()
    for line in _plan_lines(graph, statuses, stages):
        console.print(line)
    for line in _cost_lines(stages, hours, rate, room.devices):
        console.print(line)
    for line in _memory_lines(graph, room):
        console.print(line)
    if tree:
        root_of_tree = Tree("stage runs")
        for run in graph.runs.values():
            if run.parent is None:
                _grow(root_of_tree, graph, statuses, run)
        console.print(root_of_tree)


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
    for stage in STAGE_ORDER:
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


def _cost_lines(stages: dict[str, Any], hours: float, rate: Any, devices: int) -> Iterator[str]:
    from sweeps import cost

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
        f"Assumed: prompts of {cost.PROMPT_TOKENS} tokens, responses of {cost.RESPONSE_SHARE:.0%} of their limit, "
        f"{cost.MIXED_SHARE:.0%} of RL's groups mixed; time in the queue is not counted"
    )


def _memory_lines(graph: Plan, room: Any) -> Iterator[str]:
    """Memory of a rank while it trains, once for each way in which the plan's token stages are computed."""
    from sweeps.cost import rank_memory

    told = set()
    for run in graph.runs.values():
        if run.stage not in ("pretrain", "midtrain"):
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
    vocabulary: Annotated[int, typer.Option(help="Entries of the vocabulary; 0: 151,936, the paper's.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show how many parameters each model has: in all, outside the embeddings, and met by one token."""
    from dataclasses import asdict

    from pipelines.sizes import active_body_parameters, body_parameters, parameters
    from sweeps.composition import compose_cell, options_of

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


def _why(graph: Plan, store: Store | None, cell: str) -> None:
    """Print, for each training stage of the cell, why it is not in the store."""
    from sweeps.why import explain

    name, _, stage = cell.partition(":")
    if name not in graph.cells:
        raise UserError(f"--why={cell}: the command line has no such cell; {nearest(name, graph.cells)}")
    console = _console()
    for signature in graph.cells[name]:
        run = graph.runs[signature]
        if stage and run.stage != stage:
            continue
        status = _status(store, run)
        if run.stage == "evaluate" and (status == "done" or not stage):
            continue
        if status == "done" or store is None:
            console.print(f"{title(run)}  {signature}: {status}" + ("" if store else ", there is no store yet"))
            continue
        other, different = explain(graph, run, store)
        if other is None:
            console.print(f"{title(run)}  {signature}: {status}; the store has no {run.stage} at all")
        elif not different:
            console.print(f"{title(run)}  {signature}: {status}; the store has its spec")
        else:
            console.print(f"{title(run)}  {signature}: {status}; the nearest in the store is {other}")
            for key, (mine, theirs) in different.items():
                console.print(f"    {key}: {mine!r} here, {theirs!r} there")


@app.command()
def status(
    filters: Filters = None,
    store: StorePath = "store",
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep it up to date until Ctrl-C.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List every stage run, done ones too.")] = False,
) -> int:
    """Show where stage runs stand, what is in trouble first. Exits with 1 if something failed."""
    opened = Store.open(store)
    if watch:
        with Live(get_renderable=lambda: "", refresh_per_second=4, console=_console(), screen=False) as live:
            while True:
                found = rows(opened, filters or [])
                live.update(Text("\n".join(_status_lines(found, every))), refresh=True)
                if all(row.status not in ("running", "queued") for row in found):
                    return int(any(row.status in TROUBLE for row in found))
                time.sleep(WATCH_SECONDS)
    found = rows(opened, filters or [])
    if as_json:
        print(json.dumps([row.to_json() for row in found], indent=1))
    else:
        print("\n".join(_status_lines(found, every)))
    return int(any(row.status in TROUBLE for row in found))


def _status_lines(found: list[Row], every: bool) -> Iterator[str]:
    counts = Counter((row.stage, row.status) for row in found)
    present = [word for word in ORDER if any(status == word for _, status in counts)]
    yield "{:10}".format("stage") + "".join(f"{word:>13}" for word in present)
    for stage in [s for s in STAGE_ORDER if any(row.stage == s for row in found)]:
        yield f"{stage:10}" + "".join(f"{counts[stage, word] or '':>13}" for word in present)
    listed = found if every else [row for row in found if row.status not in ("done", "missing")][:SHOWN]
    if listed:
        yield ""
    for row in listed:
        parts = [f"{row.status:12}{row.signature}  {row.title}"]
        if row.step is not None and row.steps:
            parts.append(f"step {row.step}/{row.steps}")
        if row.rate:
            parts.append(f"{row.rate:,.0f} tok/s")
        if row.left is not None:
            parts.append(f"{clock(row.left)} left")
        if row.seconds is not None:
            parts.append(clock(row.seconds))
        if row.job and row.status in ("queued", "running"):
            parts.append(f"job {row.job}")
        yield "  ".join(parts)
        if row.error and row.status != "done":
            yield f"            {row.error}" + (f"; log: {row.log}" if row.log else "")
    unlisted = len([row for row in found if row.status not in ("done", "missing")]) - len(listed)
    if not every and unlisted > 0:
        yield f"... and {unlisted} more; --all lists every one"


@app.command()
def logs(
    which: Annotated[str, typer.Argument(help="CELL, CELL:STAGE or a signature; globs.", autocompletion=_complete)],
    store: StorePath = "store",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as the log grows.")] = False,
) -> None:
    """Print the logs of the newest attempts of one cell, or of one of its stages."""
    found = [row for row in rows(Store.open(store), [which]) if row.log]
    if not found:
        raise UserError(f"{which}: none of its stage runs has begun, so there is no log")
    files = [(row, path) for row in found for path in _log_files(Path(str(row.log)))]
    if gone := [row for row in found if not _log_files(Path(str(row.log)))]:
        words = f"{gone[0].title}: its log {gone[0].log} is gone"
        if len(gone) == len(found):
            raise UserError(f"{words}; the ledger in the store remains (shaping-sweeps show {gone[0].signature})")
        print(words, file=sys.stderr)
    places = {}
    for row, path in files:
        if path.stat().st_size:
            print(f"==> {row.title} {path} <==")
        places[path] = _print_from(path, 0)
    while follow:
        time.sleep(FOLLOW_SECONDS)
        for path, place in places.items():
            places[path] = _print_from(path, place)
        current = rows(Store.open(store), [which])
        if all(row.status not in ("running", "queued") for row in current):
            for path, place in places.items():
                _print_from(path, place)
            return


def _log_files(log: Path) -> list[Path]:
    """What a stage run printed and its log proper, as far as they are there."""
    return [path for path in (log.with_suffix(".out"), log) if path.exists()]


def _print_from(path: Path, place: int) -> int:
    """Print what stands in a file after `place`; returns where it ends."""
    with path.open("rb") as file:
        file.seek(place)
        content = file.read()
    sys.stdout.write(content.decode(errors="replace"))
    sys.stdout.flush()
    return place + len(content)


@app.command()
def cancel(filters: Filters = None, store: StorePath = "store") -> int:
    """Stop stage runs that are queued or at work; what they have done is kept. Name which."""
    from sweeps.cluster import slurm

    if not filters:
        raise UserError("cancel: name what to stop, such as sweep=nano or 'nano/*:grpo'; '*' is everything")
    opened = Store.open(store)
    live = [row for row in rows(opened, filters) if row.status in ("queued", "running")]
    jobs = sorted({row.job for row in live if row.job})
    if jobs:
        slurm(["scancel", *jobs])
    stopped = len([row for row in live if row.job])
    out_of_reach: list[str] = []
    for row in live:
        if row.status == "queued" and row.job:
            stored = opened.run(row.stage, row.signature)
            write_json(stored.folder / "state.json", stored.state | {"status": "cancelled"})
        elif not row.job:
            stopped += _signal(opened.run(row.stage, row.signature), row, out_of_reach)
    print(f"{stopped} stage runs stopped; shaping-sweeps retry takes them up again")
    for words in out_of_reach:
        print(words, file=sys.stderr)
    return int(bool(out_of_reach))


def _signal(stored: StoredRun, row: Row, out_of_reach: list[str]) -> int:
    """Ask a local worker to stop; notes why where it cannot be reached."""
    from sweeps.lease import holder

    held = holder(stored.folder)
    if not held or not held.alive or not held.owner:
        return 0
    if held.owner.host != socket.gethostname():
        out_of_reach.append(f"{row.title}: it is at work on {held.owner.host}; stop it there")
        return 0
    os.kill(held.owner.pid, signal.SIGTERM)
    return 1


@app.command()
def retry(filters: Filters = None, store: StorePath = "store") -> None:
    """Run again what failed, was stopped or cancelled, and what hung on it, as the sweep was launched."""
    from sweeps.composition import compose_jobs
    from sweeps.launch import launch_locally, launch_on_slurm
    from sweeps.options import SlurmLauncherConfig
    from sweeps.records import records

    opened = Store.open(store)
    everything = {row.signature: row for row in rows(opened)}
    chosen = {
        row.signature
        for row in rows(opened, filters or [])
        if row.status in ("failed", "interrupted", "cancelled", "blocked")
    }
    if not chosen:
        print("Nothing to retry: nothing that is selected failed, was stopped or was cancelled")
        return
    wanted = {s for s, row in everything.items() if row.status != "done" and _lineage(s, everything) & chosen}
    for signature in chosen:  # and what must be there before
        wanted |= {s for s in _lineage(signature, everything) if everything[s].status != "done"}
    for sweep in reversed(records(opened)):
        mine = wanted & set(sweep.runs)
        if not mine:
            continue
        wanted -= mine
        cells = [replace(cell, store=str(opened.root)) for cell in compose_jobs(sweep.jobs)]
        if sweep.launcher == "slurm":
            from omegaconf import OmegaConf

            options = OmegaConf.to_object(OmegaConf.merge(SlurmLauncherConfig, sweep.options))
            assert isinstance(options, SlurmLauncherConfig)
            launch_on_slurm(cells, sweep.jobs, options, mine)
        else:
            launch_locally(cells, sweep.jobs, int(sweep.options["workers"]), mine)
    if wanted:
        raise UserError(
            f"{len(wanted)} stage runs ({', '.join(sorted(wanted)[:3])}, ...): no recorded sweep needs them; run their "
            "cell with shaping-run"
        )


def _lineage(signature: str, everything: dict[str, Row]) -> set[str]:
    """A stage run and all that it needs, directly or not."""
    found: set[str] = set()
    waiting = [signature]
    while waiting:
        at = waiting.pop()
        if at in everything and at not in found:
            found.add(at)
            waiting += everything[at].needs
    return found


@app.command()
def verify(filters: Filters = None, store: StorePath = "store", as_json: AsJson = False) -> int:
    """Check every published file against its hash and every spec against its signature. Exits with 1 for a fault."""
    from sweeps.tend import faults

    opened = Store.open(store)
    wanted = {row.signature for row in rows(opened, filters)} if filters else None
    found: dict[str, list[str]] = {}
    checked = 0
    for run in opened.runs():
        if wanted is None or run.signature in wanted:
            checked += 1
            if wrong := list(faults(run)):
                found[run.signature] = wrong
    if as_json:
        print(json.dumps({"checked": checked, "faults": found}, indent=1))
    else:
        for sentences in found.values():
            print("\n".join(sentences))
        print(f"{checked} stage runs checked, {len(found)} with faults")
        if found:
            print("Delete the folder of each, and the same sweep makes it again")
    return int(bool(found))


@app.command()
def gc(
    store: StorePath = "store",
    weights: Annotated[
        bool, typer.Option("--weights", help="Also whole stage runs that no named sweep needs.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; otherwise only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Free space: trainer states of stage runs that no named sweep needs, then, with --weights, those stage runs.

    Named sweeps are those launched by +sweep=NAME into this store and those of conf/sweep.
    """
    from sweeps.composition import plan_named_sweeps
    from sweeps.records import needed, records
    from sweeps.tend import remove, rubbish

    opened = Store.open(store)
    keep = needed(sweep for sweep in records(opened) if sweep.name) | plan_named_sweeps()
    items = list(rubbish(opened, keep, weights))
    total = sum(item.bytes for item in items)
    if yes:
        remove(items)
    if as_json:
        listed = [{"path": str(i.path), "bytes": i.bytes, "what": i.what} for i in items]
        print(json.dumps({"removed": yes, "bytes": total, "items": listed}, indent=1))
        return
    for item in items:
        print(f"{amount(item.bytes):>10}  {item.what}  {item.path}")
    print(f"{amount(total)} in {len(items)} places " + ("removed" if yes else "would go; --yes removes it"))


@app.command()
def show(
    signature: Annotated[str, typer.Argument(help="A stage run's signature, or the beginning of one.")],
    store: StorePath = "store",
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
    from sweeps.sync import send_artifacts, send_runs

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


@app.command()
def measure(
    filters: Filters = None,
    store: StorePath = "store",
    k: Annotated[str, typer.Option("--k", help="The k of Pass@k, with commas, or `all`.")] = "1",
    as_json: AsJson = False,
) -> None:
    """Compute Avg@n, Cons@n and Pass@k anew from the samples that evaluations have stored; needs no model."""
    from pipelines.samples import SAMPLES, measure, read_rows

    opened = Store.open(store)
    if k != "all" and not all(part.strip().isdigit() and int(part) > 0 for part in k.split(",")):
        raise UserError(f"--k={k}: name whole numbers above 0, such as --k=1,4,16, or all")
    listed: list[dict[str, Any]] = []
    for row in rows(opened, ["stage=evaluate", *(filters or [])]):
        path = opened.run("evaluate", row.signature).folder / SAMPLES
        if row.status != "done" or not path.exists():
            continue
        samples: dict[str, list[dict[str, Any]]] = {}
        for sample in read_rows(path):
            samples.setdefault(sample["benchmark"], []).append(sample)
        for benchmark, own in samples.items():
            ks = list(range(1, len(own) + 1)) if k == "all" else [int(part) for part in k.split(",")]
            for metric, found in measure(own, ks).items():
                place = {"stage_run": row.signature, "what": row.title, "benchmark": benchmark, "metric": metric}
                listed.append(place | found._asdict())
    if as_json:
        print(json.dumps(listed, indent=1))
        return
    for entry in listed:
        low, high = entry["low"], entry["high"]
        interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
        print(f"{entry['what']}  {entry['benchmark']}  {entry['metric']}  {entry['value']:.4f}{interval}")
    if not listed:
        print("None of the selected evaluations has stored samples")


@app.command()
def contamination(
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("-n", help="Words in a row that must be equal.")] = 13,
    as_json: AsJson = False,
) -> None:
    """Report, for each benchmark of a command line's cells, how many of its items the training mixture has shown.

    Builds the data if they are not in the store; loads torch. Benchmarks whose data set is not here are named.
    """
    from pipelines.cell import STAGES as TRAINED
    from pipelines.contamination import overlap
    from pipelines.data import prepare
    from pipelines.evaluation import evaluation_texts
    from sweeps.composition import compose_cells

    if n < 5:
        raise UserError(f"-n={n}: five words and more; shorter ones stand in any text by chance")
    cell = compose_cells(list(overrides or []))[0]
    corpus = prepare(cell.data, Store.create(cell.store).cache)
    texts, missing = evaluation_texts(cell.evaluation, corpus)
    sources = {s for stage in TRAINED[:2] for s, weight in getattr(cell, stage).mixture.items() if weight > 0}
    report = overlap(texts, corpus.training_texts(sorted(sources)), n)
    if as_json:
        print(json.dumps({"n": n, "benchmarks": report, "missing": missing}, indent=1))
        return
    print(f"{'benchmark':20}{'items':>8}{'too short':>11}{'contaminated':>14}")
    for name, found in report.items():
        share = "" if found["contaminated"] is None else f"{found['contaminated']:.1%}"
        print(f"{name:20}{found['items']:>8}{found['short']:>11}{share:>14}")
    for name, why in missing.items():
        print(f"{name} is missing: {why}")


def find(store: Store, signature: str) -> StoredRun:
    """The one stored stage run whose signature begins so; raises `UserError` for none or several."""
    found = [run for run in store.runs() if run.signature.startswith(signature)]
    if len(found) != 1:
        count = f"{len(found)} stage runs begin so; type more of it" if found else "no stage run begins so"
        raise UserError(f"{signature}: {count}; shaping-sweeps status lists them")
    return found[0]


if __name__ == "__main__":
    main()
