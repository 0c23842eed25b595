"""The display of a running sweep: a live table in a terminal, plain lines elsewhere."""

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines import foreign_text
from pipelines.configuration import STAGES
from sweeps.plan.graph import Plan, StageRun
from sweeps.plan.names import cell_of
from sweeps.store.stage_runs import Store, StoredRun

if TYPE_CHECKING:
    from sweeps.execute.local import Outcome

PLAIN_INTERVAL = 15.0
"""Seconds between progress lines if there is no terminal."""


class Display:
    """Follows one call of `execute`; everything shown is read from the store."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or foreign_text.console()
        self._live: Live | None = None
        self._running: list[str] = []
        self._last_line = 0.0
        self._printed_steps: dict[str, int] = {}
        """Signature of an RL stage run -> the step that was printed last."""

    def start(self, plan: Plan, store: Store, outcome: "Outcome") -> None:
        """Print the plan and start to follow it."""
        self._plan, self._store, self._outcome = plan, store, outcome
        self._start_time = time.time()
        self.console.print(plan_table(plan, set(outcome.skipped)))
        missing = len(plan.runs) - len(outcome.skipped)
        if not missing:
            self.console.print(f"Nothing to do: all {len(plan.runs)} stage runs are in {store.root}")
            return
        self.console.print(f"{missing} stage runs to do in {store.root}; starting workers ...")
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4)
            self._live.start()

    def started(self, run: StageRun) -> None:
        """Report that a worker has started on `run`."""
        if not self._live and run.stage != "evaluate":
            self.console.print(f"[{self._clock()}] start  {title(run)}")

    def ended(self, run: StageRun, outcome: "Outcome") -> None:
        """Report that the worker of `run` has ended."""
        if run.signature in outcome.failed:
            self.console.print(f"[{self._clock()}] FAILED {title(run)}: {outcome.failed[run.signature]}", markup=False)
        elif not self._live or run.stage != "evaluate":
            result = self._store.run(run.stage, run.signature).readable_result or {}
            self.console.print(
                f"[{self._clock()}] done   {title(run)}  {clock(result.get('seconds', 0.0))}  "
                f"{_metrics(result.get('metrics', {}))}",
                markup=False,
            )

    def refresh(self, running: list[str]) -> None:
        """Show the progress of the running stage runs; called several times a second."""
        self._running = running  # for the live table, which is drawn by another thread
        if not self._live:
            self._print_rl_steps()
        if not self._live and time.time() - self._last_line > PLAIN_INTERVAL:
            self._last_line = time.time()
            parts = [f"{title(run)} {self._progress(run)}" for run in self._current()]
            self.console.print(f"[{self._clock()}] {self._counts()}; " + "; ".join(parts), markup=False)

    def _print_rl_steps(self) -> None:
        """Print a line for the newest step of each running RL stage, whose steps are slow enough for that."""
        for run in self._current():
            row = self._store.run(run.stage, run.signature).last_row() if run.stage == "grpo" else {}
            if row and self._printed_steps.get(run.signature) != row["step"]:
                self._printed_steps[run.signature] = row["step"]
                self.console.print(
                    f"[{self._clock()}] {title(run)} step {row['step']}/{run.steps} {_metrics(row)}", markup=False
                )

    def stopping(self, running: list[str]) -> None:
        """Report that the user asked to stop."""
        self.console.print(
            f"Stopping {len(running)} stage runs (Ctrl-C again stops them at once). Finished work is kept; "
            "run the same command again to resume."
        )

    def stopped(self, running: list[str]) -> None:
        """Report how many of the stopped stage runs have saved their state."""
        runs = [self._store.run(self._plan.runs[s].stage, s) for s in running]
        # A worker that was killed has not recorded its end, and its state is that of an earlier attempt.
        saved = sum(
            run.is_done or (run.readable_state.get("status") == "interrupted" and (run.work / "resume").exists())
            for run in runs
        )
        self.console.print(f"Stopped; {saved} of {len(running)} stage runs have saved their progress.")

    def stop(self, outcome: "Outcome") -> None:
        """End the live view and print the summary."""
        if self._live:
            self._live.stop()
            self._live = None
        if outcome.seconds:
            busy = outcome.stage_seconds / outcome.seconds
            self.console.print(
                f"{len(outcome.done)} stage runs done in {clock(outcome.seconds)} "
                f"({busy:.1f} at a time), {len(outcome.skipped)} were done before, "
                f"{len(outcome.failed)} failed, {len(outcome.blocked)} blocked"
            )
        for signature, error in outcome.failed.items():
            self.console.print(f"FAILED {title(self._plan.runs[signature])}: {error}", markup=False)

    def _current(self) -> list[StageRun]:
        return [self._plan.runs[s] for s in self._running]

    def _clock(self) -> str:
        return clock(time.time() - self._start_time)

    def _counts(self) -> str:
        finished = len(self._outcome.done) + len(self._outcome.skipped)
        return f"{finished}/{len(self._plan.runs)} stage runs"

    def _progress(self, run: StageRun) -> str:
        stored = self._store.run(run.stage, run.signature)
        row, left = stored.last_row(), self._time_left(stored, run)
        parts = (f"step {row.get('step', 0)}/{run.steps}", _metrics(row), left and f"{left} left")
        return "  ".join(part for part in parts if part)

    def _render(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("stage", "cell", "step", "", "now", "left"):
            table.add_column(column, no_wrap=True)
        # One row per running stage run.
        for run in self._current():
            stored = self._store.run(run.stage, run.signature)
            row = stored.last_row()
            step = int(row.get("step", 0))
            table.add_row(
                run.stage,
                cell_of(run.labels),
                f"{step}/{run.steps}" if step else "starting",
                ProgressBar(run.steps, step, width=20),
                Text(_metrics(row)),
                self._time_left(stored, run),
            )
        # Above them, the progress of the whole plan.
        finished = len(self._outcome.done) + len(self._outcome.skipped)
        header = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        header.add_row(
            Text(f"{self._clock()}  {self._counts()}", style="bold"),
            ProgressBar(len(self._plan.runs), finished, width=40),
        )
        return Group(header, table)

    @staticmethod
    def _time_left(stored: StoredRun, run: StageRun) -> str:
        left = stored.time_left(run.steps)
        return "" if left is None else clock(left)


def title(run: StageRun) -> str:
    """Stage and cell: `grpo nano/ce/seed1`; with the checkpoint that an evaluation measures, and a control's label."""
    control = f" {run.labels['control']}" if "control" in run.labels else ""
    if run.stage == "evaluate" and run.parent:
        return f"evaluate {cell_of(run.labels)} {run.parent[0]} {run.checkpoint}{control}"
    return f"{run.stage} {cell_of(run.labels)}{control}"


def plan_table(plan: Plan, done: set[str]) -> Table:
    """Number of stage runs by stage: all that the cells need, distinct ones, done ones and missing ones."""
    # A stage run that several cells share counts once for each of them in `needed`, and once in `distinct`.
    needed = Counter(plan.runs[s].stage for signatures in plan.cells.values() for s in signatures)
    distinct = Counter(run.stage for run in plan.runs.values())
    finished = Counter(plan.runs[s].stage for s in done)
    table = Table(title=f"Plan: {len(plan.cells)} cells", box=None, padding=(0, 2, 0, 0), title_justify="left")
    for column in ("stage", "asked for", "stage runs", "done", "to do"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in STAGES:
        if needed[stage]:
            counts = (needed[stage], distinct[stage], finished[stage], distinct[stage] - finished[stage])
            table.add_row(stage, *map(str, counts))
    return table


def _metrics(row: dict[str, Any]) -> str:
    """The most important numbers of a ledger row or a result."""
    formats = {
        "loss": "loss {:.3f}",
        "perplexity": "ppl {:.2f}",
        "entropy": "entropy {:.2f}",
        "reward": "reward {:.2f}",
        "held_out_reward": "held out {:.2f}",
        "response_length": "length {:.0f}",
        "kl_start": "KL {:.3f}",
        "groups_mixed": "mixed {:.0%}",
        "tokens_per_second": "{:,.0f} tok/s",
    }
    return "  ".join(text.format(row[key]) for key, text in formats.items() if isinstance(row.get(key), int | float))


def amount(count: float) -> str:
    """A number of bytes as text: `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"


def clock(seconds: float) -> str:
    """A duration as text: `2:05`, `1:00:00`."""
    minutes, seconds_left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"
