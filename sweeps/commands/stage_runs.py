"""`shaping-sweeps status | logs | cancel | retry`: where stage runs stand, and what to do about it."""

import json
import os
import shlex
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from pipelines.configuration import STAGES
from pipelines.errors import UserError
from pipelines.files import write_json
from sweeps.commands.application import AsJson, Filters, StorePath, app, cells_beside, console
from sweeps.compose.launchers import SlurmLauncherConfig
from sweeps.execute.display import clock
from sweeps.monitor.status import ORDER, TROUBLE, Row, rows
from sweeps.store.stage_runs import Store, StoredRun

SHOWN = 40
"""Stage runs that `status` lists, unless it is told to list all."""
WATCH_SECONDS = 2.0
FOLLOW_SECONDS = 0.3


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
        with Live(get_renderable=lambda: "", refresh_per_second=4, console=console(), screen=False) as live:
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
    for stage in [s for s in STAGES if any(row.stage == s for row in found)]:
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
    which: Annotated[str, typer.Argument(help="CELL, CELL:STAGE or a signature; globs.", autocompletion=cells_beside)],
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
    from sweeps.monitor.slurm_queue import slurm

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
    from sweeps.store.leases import holder

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
    from sweeps.compose.cells import compose_jobs
    from sweeps.execute.launch import launch_locally, launch_on_slurm
    from sweeps.monitor.launched_sweeps import records

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
    by_hand = []
    for sweep in reversed(records(opened)):
        mine = wanted & set(sweep.runs)
        if not mine:
            continue
        wanted -= mine
        if sweep.launcher == "torchrun":  # its ranks are not ours to start
            words = shlex.join(sweep.options["words"])
            by_hand.append(
                f"{len(mine)} stage runs are torchrun's, with {sweep.options['ranks']} ranks; start it again: "
                f"torchrun ... --no-python shaping-torchrun {words}"
            )
            continue
        cells = [replace(cell, store=str(opened.root)) for cell in compose_jobs(sweep.jobs)]
        if sweep.launcher == "slurm":
            from omegaconf import OmegaConf

            options = OmegaConf.to_object(OmegaConf.merge(SlurmLauncherConfig, sweep.options))
            assert isinstance(options, SlurmLauncherConfig)
            launch_on_slurm(cells, sweep.jobs, options=options, only=mine)
        else:
            launch_locally(cells, sweep.jobs, workers=int(sweep.options["workers"]), only=mine)
    if wanted:
        by_hand.append(
            f"{len(wanted)} stage runs ({', '.join(sorted(wanted)[:3])}, ...): no recorded sweep needs them; run their "
            "cell with shaping-run"
        )
    if by_hand:
        raise UserError("\n".join(by_hand))


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
