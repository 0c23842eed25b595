"""`shaping-sweeps status | logs | cancel`: the progress of stage runs, what they print, and how to stop them."""

import json
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from pipelines.configuration import STAGES
from pipelines.errors import UserError
from sweeps.commands.shared_arguments import AsJson, Filters, StorePath, app, complete_cells, console
from sweeps.execute.display import clock
from sweeps.monitor.sparklines import curve_text
from sweeps.monitor.status import ORDER, TROUBLE, Row, rows
from sweeps.store.leases import Owner, holder
from sweeps.store.stage_runs import Store, StoredRun

LISTED = 40
"""Most stage runs that `status` lists without `--all`."""
WATCH_SECONDS = 2.0
FOLLOW_SECONDS = 0.3


@app.command()
def status(
    filters: Filters = None,
    *,
    store: StorePath = "store",
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep the table up to date until Ctrl-C.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List every stage run, finished ones too.")] = False,
) -> int:
    """Show the status of stage runs, failures first. Exits with 1 if something failed."""
    opened = Store.open(store)
    selected = rows(opened, filters or [])
    if as_json:
        print(json.dumps([row.to_json() for row in selected], indent=1))
    elif watch:
        selected = _watch(opened, filters or [], every)
    else:
        print("\n".join(_status_lines(selected, every)))
    return int(any(row.status in TROUBLE for row in selected))


def _watch(store: Store, filters: list[str], every: bool) -> list[Row]:
    """Show the status until no stage run is queued or running; returns the last rows."""
    with Live(get_renderable=lambda: "", console=console(), screen=False) as live:
        while True:
            selected = rows(store, filters)
            lines = [*_status_lines(selected, every), *_curve_lines(store, selected)]
            live.update(Text("\n".join(lines)), refresh=True)
            if not any(_is_active(row) for row in selected):
                return selected
            time.sleep(WATCH_SECONDS)


def _is_active(row: Row) -> bool:
    return row.status in ("running", "queued")


def _status_lines(selected: list[Row], every: bool) -> Iterator[str]:
    # A table of stages and statuses.
    counts = Counter((row.stage, row.status) for row in selected)
    statuses = [word for word in ORDER if any(status == word for _, status in counts)]
    yield "{:10}".format("stage") + "".join(f"{word:>13}" for word in statuses)
    for stage in [s for s in STAGES if any(row.stage == s for row in selected)]:
        yield f"{stage:10}" + "".join(f"{counts[stage, word] or '':>13}" for word in statuses)
    # Then the stage runs that are neither done nor missing.
    of_interest = [row for row in selected if row.status not in ("done", "missing", "dismissed")]
    listed = selected if every else of_interest[:LISTED]
    if listed:
        yield ""
    for row in listed:
        yield from _row_lines(row)
    if len(of_interest) > len(listed):
        yield f"... and {len(of_interest) - len(listed)} more; --all lists all of them"


def _curve_lines(store: Store, selected: list[Row]) -> Iterator[str]:
    """The losses and rewards of what is running, as sparklines of the end of their ledgers."""
    running = [row for row in selected if row.status == "running"][:LISTED]
    texts = [(row, curve_text(row.stage, store.run(row.stage, row.signature).newest_rows())) for row in running]
    if any(text for _, text in texts):
        yield ""
    for row, text in texts:
        if text:
            yield f"{text}  {row.title}"


def _row_lines(row: Row) -> Iterator[str]:
    parts = [f"{row.status:12}{row.signature}  {row.title}"]
    if row.step is not None and row.steps:
        parts.append(f"step {row.step}/{row.steps}")
    if row.rate:
        parts.append(f"{row.rate:,.0f} tok/s")
    if row.left is not None:
        parts.append(f"{clock(row.left)} left")
    if row.seconds is not None:
        parts.append(clock(row.seconds))
    if row.job and _is_active(row):
        parts.append(f"job {row.job}")
    yield "  ".join(parts)
    if row.error and row.status != "done":
        yield f"            {row.error}" + (f"; log: {row.log}" if row.log else "")
    if row.note:
        yield f"            {row.note}"


@app.command()
def logs(
    which: Annotated[
        str, typer.Argument(help="CELL, CELL:STAGE or a signature; globs.", autocompletion=complete_cells)
    ],
    store: StorePath = "store",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing as the logs grow.")] = False,
) -> None:
    """Print the logs of the newest attempts of one cell, or of one of its stages."""
    started = [row for row in rows(Store.open(store), [which]) if row.log]
    if not started:
        raise UserError(f"{which}: none of its stage runs has started, so there is no log")
    files = [(row, path) for row in started for path in _log_files(row)]
    # A log may have been deleted, or be on another machine.
    if lost := [row for row in started if not _log_files(row)]:
        message = f"{lost[0].title}: its log {lost[0].log} does not exist any more"
        if len(lost) == len(started):
            raise UserError(f"{message}; shaping-sweeps show {lost[0].signature} prints what the store has")
        print(message, file=sys.stderr)
    ends = {}
    for row, path in files:
        if path.stat().st_size:
            print(f"==> {row.title} {path} <==")
        ends[path] = _print_from(path, 0)
    while follow:
        time.sleep(FOLLOW_SECONDS)
        # Asked before the last lines are read, so that none is missed.
        is_finished = not any(_is_active(row) for row in rows(Store.open(store), [which]))
        ends = {path: _print_from(path, end) for path, end in ends.items()}
        if is_finished:
            return


def _log_files(row: Row) -> list[Path]:
    """Returns the existing files of what a stage run printed and logged."""
    log = Path(str(row.log))
    return [path for path in (log.with_suffix(".out"), log) if path.exists()]


def _print_from(path: Path, start: int) -> int:
    """Print a file from byte `start` on; returns where it ends."""
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    # A progress bar overwrites its line, and here becomes lines.
    sys.stdout.write(re.sub(r"\r+\n?", "\n", content.decode(errors="replace")))
    sys.stdout.flush()
    return start + len(content)


@app.command()
def cancel(filters: Filters = None, store: StorePath = "store") -> int:
    """Stop the selected stage runs that are queued or running; their progress is kept."""
    from sweeps.monitor.slurm_queue import slurm

    if not filters:
        raise UserError("cancel: name what to stop, such as sweep=nano or 'nano/*:grpo'; '*' stops everything")
    opened = Store.open(store)
    active = [row for row in rows(opened, filters) if _is_active(row)]
    if jobs := sorted({row.job for row in active if row.job}):
        slurm(["scancel", *jobs])
    stopped, unreachable = 0, []
    for row in active:
        stored = opened.run(row.stage, row.signature)
        owner = _running_owner(stored)
        if row.job:
            stopped += 1
            # A queued job has no process that could record that it was cancelled.
            if row.status == "queued":
                stored.write_state("cancelled")
        elif owner and owner.host == socket.gethostname():
            stopped += 1
            os.kill(owner.pid, signal.SIGTERM)
        elif owner:
            unreachable.append(f"{row.title}: it runs on {owner.host}; stop it there")
    print(f"{stopped} stage runs stopped; shaping-sweeps retry resumes them")
    for message in unreachable:
        print(message, file=sys.stderr)
    return int(bool(unreachable))


def _running_owner(stored: StoredRun) -> Owner | None:
    """Returns the process that is running a stage run; None if there is none any more."""
    lease = holder(stored.folder)
    return lease.owner if lease and lease.alive else None
