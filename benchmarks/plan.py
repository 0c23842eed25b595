"""Composing and planning thousands of cells, against Hydra's own multirun of the same configuration.

    python -m benchmarks.plan [--json FILE]

Seconds are processor time in user mode after imports, each in a new process. Where the peer is a limit, not a program,
the peer's column is the limit and the bar is 1.
"""

import statistics
import subprocess
import sys
import tempfile

from benchmarks.comparison import Row, report

CELLS = {
    # Objectives, seeds and a learning rate of one stage: what a study sweeps over.
    1_000: [
        "objective=ce,precision,diversity,tail_penalty,head_reward",
        "seed=range(1,101)",
        "grpo.learning_rate=1e-4,2e-4",
    ],
    10_000: ["objective.beta=-0.5,-0.25,0.1,0.25,0.5", "seed=range(1,1001)", "midtrain.decay=cosine,linear"],
}
LIMITS = {1_000: 5.0, 10_000: 30.0}
HYDRA_JOBS = 20

OURS = """
import resource, sys
from sweeps.compose.cells import compose_cells
from sweeps.plan.planner import plan
before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
cells = compose_cells(sys.argv[1:])
graph = plan(cells)
print(len(graph.cells), resource.getrusage(resource.RUSAGE_SELF).ru_utime - before)
"""

HYDRA = """
import resource, sys
import hydra
from sweeps.compose import launcher_options
count = 0
def task(config):
    global count
    count += 1
sys.argv[1:] = ["--multirun", "hydra/sweeper=basic", "hydra/launcher=basic", *sys.argv[1:]]
before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")(task)()
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_utime - before)
"""


def seconds(code: str, arguments: list[str], cells: int) -> float:
    """User seconds of a new process after imports; checks that it composed `cells` cells."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, *arguments]
        output = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    composed, user_seconds = output.split()[-2:]
    assert int(composed) == cells, f"{composed} cells instead of {cells}"
    return float(user_seconds)


def main() -> int:
    rows = []
    ours = {}
    for cells, arguments in CELLS.items():
        ours[cells] = statistics.median(seconds(OURS, arguments, cells) for _ in range(3))
        rows.append(Row(f"plan {cells:,} cells (peer: the limit)", ours[cells], LIMITS[cells], "s", bar=1.0))
    # Hydra's own time per job, and ours for as many jobs.
    seeds = [f"seed=range(1,{HYDRA_JOBS + 1})"]
    few = statistics.median(seconds(OURS, seeds, HYDRA_JOBS) for _ in range(3))
    hydra_all = seconds(HYDRA, seeds, HYDRA_JOBS)
    hydra_one = seconds(HYDRA, ["seed=1"], 1)
    rows.append(Row(f"{HYDRA_JOBS} jobs in all, against Hydra's multirun", few, hydra_all, "s"))
    # The cost of one more job is the slope between few and many jobs, without the start.
    per_job = (ours[1_000] - few) / (1_000 - HYDRA_JOBS)
    rows.append(
        Row(
            "one more job, against Hydra's multirun", per_job, (hydra_all - hydra_one) / (HYDRA_JOBS - 1), "s", bar=0.01
        )
    )
    return report(rows, "Composing and planning a sweep")


if __name__ == "__main__":
    sys.exit(main())
