"""The time to read a study: ten thousand stage runs to all tables, and the command on a nano study.

    python -m benchmarks.analysis [--json FILE]

The bars are absolute, so the peer's column is the limit. The large store has real files with invented numbers: ledgers
of 1,000 lines, hard-linked from a few, since only opening and reading them matters. "Cold" is without the cache of an
earlier reading, "warm" with it; the kernel's page cache is warm in both. Every time is of a new process; for the large
store it is from the first read to the last table, without imports, which have a separate row.
"""

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.comparison import Row, report, seconds_of
from pipelines.configuration.objective import ObjectiveConfig
from pipelines.files import sha256, write_sealed
from pipelines.published import FORMAT
from sweeps.compose.cells import compose_cells
from sweeps.plan.graph import Plan, StageRun
from sweeps.plan.planner import plan

SEEDS = 10
STAGE_RUNS = 10_000
LEDGER_LINES = 1000
REPORT_CELLS = 500

READ = """
import json, resource, sys, time
began = time.perf_counter()
from analysis.study import read_stored
from analysis.table_builder import build_tables
from analysis.table_files import csv
from sweeps.store.stage_runs import Store
imported = time.perf_counter()
store = Store.open(sys.argv[1])
study = read_stored(store)
tables = build_tables(study, sys.argv[1])
done = time.perf_counter()
size = sum(len(csv(table)) for table in tables)
written = time.perf_counter()
if len(sys.argv) > 2:
    len(study.curves)
assert "torch" not in sys.modules
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([imported - began, done - imported, time.perf_counter() - written, peak, len(tables), size]))
"""


def write_run(root: Path, run: StageRun, ledgers: list[Path]) -> None:
    """Write a finished stage run with invented numbers."""
    folder = root / run.stage / run.signature
    folder.mkdir(parents=True)
    spec = {**run.spec, "environment": {"shaping": "0.1.0"}}
    write_sealed(folder / "spec.json", spec)
    number = int(run.signature, 16)
    # Pseudo-random values from the signature, for every metric of every benchmark.
    measurements = []
    if run.stage == "evaluate":
        metrics = {"text": ["perplexity", "entropy", "head_mass", "tail_mass"], "choice": ["accuracy"],
                   "sampled": ["avg@8", "cons@8", "pass@4", "response_length"]}  # fmt: skip
        for name, benchmark in run.config["evaluation"]["benchmarks"].items():
            for metric in metrics[benchmark["kind"]]:
                number = (number * 6364136223846793005 + 1442695040888963407) % 2**64
                row = {"benchmark": name, "group": benchmark["group"], "metric": metric, "value": number / 2**64}
                measurements.append({**row, "stderr": 0.01, "n": 64})
    counted = {"parameters": 366_384} if run.stage == "pretrain" else {}
    result = {"format": FORMAT, "signature": run.signature, "stage": run.stage, "seconds": 1.0, "metrics": counted}
    ledger = ledgers[int(run.signature, 16) % len(ledgers)]
    os.link(ledger, folder / "ledger.jsonl")
    files = {"ledger.jsonl": sha256(ledger)}
    write_sealed(folder / "result.json", {**result, "measurements": measurements, "files": files})


def make_store(root: Path, graph: Plan) -> None:
    """Write a store with every stage run of the plan."""
    (root / "cache").mkdir(parents=True)
    (root / "STORE.json").write_text(json.dumps({"format": FORMAT}))
    # A few different ledgers, which all stage runs share as hard links.
    ledgers = []
    for number in range(8):
        path = root / "cache" / f"ledger-{number}.jsonl"
        rows = ({"step": s, "tokens": 512 * s, "loss": 3 / s, "cross_entropy": 3 / s, "entropy": 2 + number / s,
                 "reward": s / 1000, "response_length": 30 - s / 100, "learning_rate": 0.004, "gradient_norm": 0.5,
                 "tokens_per_second": 11000.5, "time": 1.7e9 + s} for s in range(1, LEDGER_LINES + 1))  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        ledgers.append(path)
    for run in graph.runs.values():
        write_run(root, run, ledgers)


def many_cells(count: int, seeds: int) -> Plan:
    """The plan of `count` nano cells: the five settings and a fine grid of the knobs, `seeds` seeds each."""
    named = [cell for name in ("ce", "precision", "diversity") for cell in compose_cells([f"objective={name}"])]
    objectives = [cell.objective for cell in named]
    objectives += [
        ObjectiveConfig("custom", round(-0.5 + 0.05 * i, 2), 0.0, -0.1 * j, 16) for j in range(1, 9) for i in range(31)
    ]
    return plan(
        dataclasses.replace(named[0], objective=objective, seed=seed)
        for objective in objectives[: count // seeds]
        for seed in range(1, seeds + 1)
    )


def read(root: Path, *more: str) -> list[float]:
    """Seconds of imports, of reading and tables, of curves; MiB at the peak; the number of tables and their bytes."""
    command = [sys.executable, "-c", READ, str(root), *more]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def reproduce(folder: Path, *arguments: str) -> float:
    """Seconds of `reproduce-paper-tables` as a process, imports included."""
    command = [sys.executable, "-m", "analysis.reproduce", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return seconds_of(lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment))


def large_store_rows(root: Path) -> list[Row]:
    """A store of ten thousand stage runs: cold, warm, and with the curves of its ledgers."""
    graph = many_cells(STAGE_RUNS * SEEDS // 110 // SEEDS * SEEDS + SEEDS, SEEDS)
    make_store(root, graph)
    size = f"{len(graph.runs):,} stage runs"
    cold = read(root)
    warm = [read(root) for _ in range(3)]
    curves = read(root, "curves")
    return [
        Row(f"{size} to {cold[4]} tables, cold", cold[1], 10, "s", 1),
        Row(f"{size} to {cold[4]} tables, warm", statistics.median(reading[1] for reading in warm), 2, "s", 1),
        Row("memory at the peak, curves included", curves[3], 2048, "MiB", 1),
        Row("imports", warm[0][0], 5, "s"),
        Row("curves of all its ledgers, thinned", curves[2], 10, "s"),
    ]


def command_rows(nano: Path, many: Path) -> list[Row]:
    """The whole command on the nano sweep, with and without earlier results, and on hundreds of cells."""
    make_store(nano / "store", plan(compose_cells(["+sweep=nano"])))
    reproduce(nano)  # the first call builds and caches the page's drawing library
    with_results, without_results = [], []
    for _ in range(3):
        with_results.append(reproduce(nano))
        shutil.rmtree(nano / "results")
        without_results.append(reproduce(nano))
    make_store(many / "store", many_cells(REPORT_CELLS, 5))
    seconds = reproduce(many, "sweep=null")
    page = (many / "results" / "nano" / "report.html").stat().st_size / 2**20
    return [
        Row("the command on a nano store, no results yet", statistics.median(without_results), 5, "s", 1),
        Row("the same, with earlier results", statistics.median(with_results), 5, "s", 1),
        Row(f"report of {REPORT_CELLS} cells", page, 5, "MiB", 1),
        Row(f"the command on {REPORT_CELLS} cells", seconds, 60, "s"),
    ]


def main() -> int:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*large_store_rows(folder / "large"), *command_rows(folder / "nano", folder / "many")]
    return report(rows, "Reading a study")


if __name__ == "__main__":
    sys.exit(main())
