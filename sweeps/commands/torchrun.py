"""One cell by the ranks that torchrun started: `torchrun --nproc-per-node 8 --no-python shaping-torchrun model=1B ...`.

Rank 0 holds leases, writes and publishes as a Slurm job's first task does; all ranks share the work of every stage.
"""

import os
import signal
import sys
import time
from pathlib import Path

from pipelines.configuration import TOKEN_STAGES
from pipelines.errors import Interrupted, UserError
from sweeps.commands.exit_codes import exit_codes
from sweeps.compose.cells import compose_cells
from sweeps.compose.config_files import without_config_dir
from sweeps.compose.expansion import expand
from sweeps.execute.launch import check_ranks, prepared, sweep_names
from sweeps.execute.quick_exit import quick_exit
from sweeps.execute.worker import Task, noting_signals, perform
from sweeps.monitor.launched_sweeps import record
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import store_path


def torchrun_task(store: Path) -> Task:
    """This process as torchrun's environment variables describe it."""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    job = "-".join(os.environ.get(name, "0") for name in names)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Task(
        job=job,
        log=store / "jobs" / f"{job}_{rank}_log.err",
        rank=rank,
        tasks=ranks,
        nodes=ranks // int(os.environ["LOCAL_WORLD_SIZE"]),  # every node has as many ranks as this one
    )


def run(overrides: list[str]) -> None:
    """Do what is missing of the cells that `overrides` name, training first; returns when this rank is done."""
    if "WORLD_SIZE" not in os.environ:
        raise UserError(
            "start it with torchrun --nproc-per-node N --no-python shaping-torchrun ..., or use shaping-run"
        )
    # Refuse cells that cannot be divided among the ranks before anything is written.
    cells = compose_cells(overrides)
    root = store_path(cells[0].store)
    task = torchrun_task(root)
    for cell in cells:
        check_ranks(cell, dict.fromkeys(TOKEN_STAGES, task.tasks))
    # Rank 0 creates the store and records the launch; the others wait for the store.
    if task.rank == 0:
        graph, store = prepared(cells)
        options = {"ranks": task.tasks, "words": overrides}
        name = sweep_names(cells)
        record(store, graph, expand(overrides), name=name, launcher="torchrun", options=options)
    else:
        graph = plan(cells)
        while not (root / "STORE.json").exists():
            time.sleep(0.1)
    with noting_signals() as signals:
        for stage_run in sorted(graph.runs.values(), key=lambda r: r.stage == "evaluate"):
            if signals.should_stop():
                break
            try:
                perform(root, stage_run.spec, cells[0].tracking, task=task, signals=signals)
            except Interrupted:
                if not signals.should_stop():  # another rank was asked to stop
                    raise
    if signals.should_stop():
        number = signals.received[0]
        if not task.rank:
            print(f"stopped by {signal.Signals(number).name}; the same command resumes", file=sys.stderr)
        sys.exit(128 + number)


def main() -> None:
    """Run the command line; exit codes are those of `sweeps.commands.exit_codes`."""
    with quick_exit(), exit_codes("shaping-torchrun"):
        words = without_config_dir(sys.argv[1:])
        run([word for word in words if word not in ("-m", "--multirun")])


if __name__ == "__main__":
    main()
