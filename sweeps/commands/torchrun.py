"""One cell by the ranks that torchrun started: `torchrun --nproc-per-node 8 --no-python shaping-torchrun model=1B ...`.

Rank 0 holds leases, writes and publishes as a Slurm job's first task does; the others take their share of pre-training,
mid-training and evaluations. RL works in rank 0 alone.
"""

import os
import sys
import time

from submitit import JobEnvironment

from pipelines.configuration import TOKEN_STAGES
from pipelines.errors import UserError
from sweeps.commands.exit_codes import exit_codes
from sweeps.compose.cells import compose_cells, expand
from sweeps.execute.launch import check_ranks, prepared
from sweeps.execute.quick_exit import quick_exit
from sweeps.execute.worker import perform
from sweeps.monitor.launched_sweeps import record
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store, place

SHARED_STAGES = (*TOKEN_STAGES, "evaluate")
"""Stages whose work all ranks share."""


class TorchrunJobEnvironment(JobEnvironment):
    """What torchrun tells a process, by submitit's names."""

    _env = {  # noqa: RUF012  (submitit's own type)
        "num_tasks": "WORLD_SIZE",
        "node": "GROUP_RANK",
        "global_rank": "RANK",
        "local_rank": "LOCAL_RANK",
    }

    @property
    def job_id(self) -> str:
        """A name that all ranks of this start share, and no other start has."""
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
        return "-".join(os.environ.get(name, "0") for name in names)

    @property
    def num_nodes(self) -> int:
        """Nodes, each with as many ranks as this one."""
        return int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])


def run(overrides: list[str]) -> None:
    """Do what is missing of the cells that `overrides` name, training first; returns when this rank is done."""
    if "WORLD_SIZE" not in os.environ:
        raise UserError(
            "start it with torchrun --nproc-per-node N --no-python shaping-torchrun ..., or use shaping-run"
        )
    cells = compose_cells(overrides)
    environment = TorchrunJobEnvironment()
    for cell in cells:
        check_ranks(cell, dict.fromkeys(TOKEN_STAGES, environment.num_tasks))
    if environment.global_rank == 0:
        graph, store = prepared(cells)
        options = {"ranks": environment.num_tasks, "words": overrides}
        record(store, graph, expand(overrides), cells[0].sweep.name, "torchrun", options)
    else:
        graph = plan(cells)
        while not (place(cells[0].store) / "STORE.json").exists():
            time.sleep(0.1)
        store = Store.open(cells[0].store)
    os.environ.setdefault("SUBMITIT_FOLDER", str(store.root / "jobs"))
    for stage_run in sorted(graph.runs.values(), key=lambda r: r.stage == "evaluate"):
        if environment.global_rank == 0 or stage_run.stage in SHARED_STAGES:
            perform(store.root, stage_run.spec, cells[0].tracking, task=task)


def main() -> None:
    """Run the command line; exit codes are those of `sweeps.commands.exit_codes`."""
    with quick_exit(), exit_codes("shaping-torchrun"):
        run([argument for argument in sys.argv[1:] if argument not in ("-m", "--multirun")])


if __name__ == "__main__":
    main()
