"""Overhead of the executors, measured with tiny stage runs, and of looking at large stores.

    python -m benchmarks.executors [--json FILE]

Stage runs take no time (`tests/sweeps/fake` replaces the training), so the overhead is all that is measured. The peer
is a limit, with a bar of 1. Without a Slurm (SLURM_CONF) its row is left out, and the output says so.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.comparison import Row, report
from pipelines.files import write_sealed
from pipelines.published import FORMAT
from sweeps.compose.cells import compose_cells
from sweeps.monitor.launched_sweeps import record
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store

REPOSITORY = Path(__file__).parents[1]
FAKE = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'tests/sweeps/fake'}:{REPOSITORY}"}
TINY = ["seed=range(1,84)", "pretrain.milestones=1", "midtrain.milestones=1", "grpo.milestones=1", "tracking=off"]
"""83 cells of 6 stage runs each."""


def spent(*command: str, cwd: Path) -> tuple[float, str]:
    """Wall seconds of a command, including the start of Python, and its output."""
    start = time.perf_counter()
    output = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=FAKE, capture_output=True, text=True, check=True
    ).stdout
    return time.perf_counter() - start, output


def write_store(folder: Path, count: int) -> None:
    """Write a store of `count` finished stage runs, with the record of the sweep that needs them."""
    store = Store.create(folder / "store")
    seeds = count // 11
    jobs = [[f"seed={seed}"] for seed in range(1, seeds + 1)]
    graph = plan(compose_cells([f"seed=range(1,{seeds + 1})"]))
    # Every stage run as if it had finished at its first attempt.
    for run in graph.runs.values():
        path = store.run(run.stage, run.signature).folder
        path.mkdir(parents=True)
        write_sealed(path / "spec.json", run.spec)
        attempts = [{"started": 1.0, "ended": 2.0, "log": "x"}]
        store.run(run.stage, run.signature).write_state("done", attempts=attempts)
        result = {"format": FORMAT, "stage": run.stage, "signature": run.signature, "seconds": 1.0}
        write_sealed(path / "result.json", result | {"metrics": {}, "measurements": [], "files": {}})
    record(store, graph, jobs, name="", launcher="local", options={"workers": 0})


def sweep_rows(folder: Path) -> tuple[list[Row], int]:
    """A local sweep of tiny stage runs, and the same again when all are done; also the number of stage runs."""
    seconds, output = spent("sweeps.commands.run", "-m", *TINY, cwd=folder)
    count = int(output.split(" stage runs done in")[0].split()[-1])
    again, output = spent("sweeps.commands.run", "-m", *TINY, cwd=folder)
    assert "Nothing to do" in output
    rows = [
        Row(f"local: wall seconds per tiny stage run ({count})", seconds / count, 0.1, "s", bar=1.0),
        Row("a sweep with nothing to do", again, 5.0, "s", bar=1.0),
    ]
    return rows, count


def status_rows(folder: Path, size: int, limit: float) -> list[Row]:
    """`shaping-sweeps status` over a store of `size` stage runs, which builds its index at first."""
    folder.mkdir()
    write_store(folder, size)
    time.sleep(2.1)  # recent changes are read every time; this measures a store that does not change
    building, *later = (spent("sweeps.commands.shaping_sweeps", "status", cwd=folder)[0] for _ in range(4))
    return [
        Row(f"status over {size:,} stage runs", statistics.median(later), limit, "s", bar=1.0),
        Row(f"status over {size:,} stage runs, building the index", building, limit, "s"),
    ]


def slurm_row(folder: Path, count: int) -> Row:
    """Submission of a sweep to Slurm."""
    folder.mkdir()
    seconds, output = spent("sweeps.commands.run", "-m", *TINY, "hydra/launcher=slurm", cwd=folder)
    assert f"{count} stage runs submitted" in output
    spent("sweeps.commands.shaping_sweeps", "cancel", "*", cwd=folder)
    return Row(f"Slurm: submission of {count} stage runs", seconds, 30.0, "s", bar=1.0)


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, count = sweep_rows(folder)
        for size, limit in ((1_000, 1.0), (10_000, 3.0)):
            rows += status_rows(folder / str(size), size, limit)
        if shutil.which("sbatch") and os.environ.get("SLURM_CONF"):
            rows.append(slurm_row(folder / "slurm", count))
        else:
            print("No Slurm here (SLURM_CONF is not set), so submission was not measured")
    return report(rows, "Overhead of the executors and of looking at a store (the peer is the limit)")


if __name__ == "__main__":
    sys.exit(main())
