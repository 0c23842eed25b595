"""`shaping-sweeps retry | dismiss`: launch again what failed or was stopped, or give it up."""

import contextlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace

from pipelines.errors import UserError
from sweeps.commands.shared_arguments import Filters, StorePath, app
from sweeps.compose.config_files import CONFIG_DIR_VARIABLE
from sweeps.compose.launcher_options import SlurmLauncherConfig
from sweeps.monitor.launched_sweeps import SweepRecord
from sweeps.monitor.status import Row, rows
from sweeps.store.stage_runs import Store

DISMISSIBLE = ("failed", "interrupted", "cancelled")
"""Statuses of stage runs that ended without a result."""


@app.command()
def dismiss(filters: Filters = None, store: StorePath = "store") -> None:
    """Give up what failed, was stopped or was cancelled, and what waits for it; launching its cell brings it back."""
    if not filters:
        raise UserError("dismiss: name what is not wanted any more, such as status=failed or 'nano/*/seed3:grpo'")
    opened = Store.open(store)
    selected = [row for row in rows(opened, filters) if row.status in DISMISSIBLE]
    dismissed = 0
    for row in selected:
        stored = opened.run(row.stage, row.signature)
        # With the lease no worker can be starting on it at this moment.
        if lease := stored.claim():
            with lease:
                stored.write_state("dismissed")
            dismissed += 1
    print(f"{dismissed} stage runs dismissed; launching a cell that needs them runs them again")


@app.command()
def retry(filters: Filters = None, store: StorePath = "store") -> None:
    """Run again what failed, was stopped or was cancelled, and what waits for it, as the sweep was launched."""
    opened = Store.open(store)
    all_rows = {row.signature: row for row in rows(opened)}
    selected = {
        row.signature
        for row in rows(opened, filters or [])
        if row.status in ("failed", "interrupted", "cancelled", "blocked")
    }
    if not selected:
        print("Nothing to retry: none of the selected stage runs failed, was stopped or was cancelled")
        return
    launch_again(opened, selected, all_rows)


def launch_again(opened: Store, selected: set[str], all_rows: Mapping[str, Row]) -> None:
    """Launch stage runs with what they need and what needs them, as their newest sweep was launched.

    Raises `UserError` at the end for those that cannot be launched from here.
    """
    from sweeps.monitor.launched_sweeps import records

    # What is left to launch, less with each sweep.
    remaining = _with_dependencies(selected, all_rows) | (selected - all_rows.keys())
    problems = []
    # A stage run that several sweeps need is launched as in the newest one.
    for sweep in reversed(records(opened)):
        signatures = remaining & set(sweep.runs)
        if not signatures:
            continue
        remaining -= signatures
        # The ranks of torchrun cannot be started from here.
        if sweep.launcher == "torchrun":
            words = shlex.join(sweep.options["words"])
            problems.append(
                f"{len(signatures)} stage runs were started by torchrun with {sweep.options['ranks']} ranks; start it "
                f"again: torchrun ... --no-python shaping-torchrun {words}"
            )
        else:
            _launch(sweep, opened, signatures)
    if remaining:
        problems.append(
            f"{len(remaining)} stage runs ({', '.join(sorted(remaining)[:3])}, ...): no recorded sweep needs them; run "
            "their cell with shaping-run"
        )
    if problems:
        raise UserError("\n".join(problems))


def _with_dependencies(selected: set[str], all_rows: Mapping[str, Row]) -> set[str]:
    """Returns the selected stage runs with what they need and what needs them, except what is done."""
    unfinished = {signature for signature, row in all_rows.items() if row.status != "done"}
    needs = {signature: needed_by(signature, all_rows) for signature in unfinished}
    waiting = {signature for signature in unfinished if needs[signature] & selected}
    return waiting | {needed for signature in selected for needed in needs[signature] & unfinished}


def needed_by(signature: str, all_rows: Mapping[str, Row]) -> set[str]:
    """Returns a stage run and all that it needs, directly or through others."""
    needed: set[str] = set()
    waiting = [signature]
    while waiting:
        current = waiting.pop()
        if current in all_rows and current not in needed:
            needed.add(current)
            waiting += all_rows[current].needs
    return needed


def _launch(sweep: SweepRecord, store: Store, signatures: set[str]) -> None:
    from omegaconf import OmegaConf

    from sweeps.compose.cells import compose_jobs
    from sweeps.execute.launch import launch_locally, launch_on_slurm

    # Options in the overrides may be those of the launch's own folder.
    if sweep.config_dir:
        os.environ[CONFIG_DIR_VARIABLE] = sweep.config_dir
    # Paths in the overrides are relative to where the sweep was launched.
    with contextlib.chdir(sweep.folder if os.path.isdir(sweep.folder) else "."):
        cells = [replace(cell, store=str(store.root)) for cell in compose_jobs(sweep.jobs)]
        if sweep.launcher == "slurm":
            options = OmegaConf.to_object(OmegaConf.merge(SlurmLauncherConfig, sweep.options))
            assert isinstance(options, SlurmLauncherConfig)
            launch_on_slurm(cells, sweep.jobs, options=options, only=signatures)
        else:
            launch_locally(cells, sweep.jobs, workers=int(sweep.options["workers"]), only=signatures)
