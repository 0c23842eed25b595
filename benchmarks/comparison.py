"""Measuring and reporting for every benchmark: both sides alternate in one run, medians; rows as a table and as JSON.

seconds = timed({"ours": ours, "peer": peer})
rows.append(Row("forward and backward", seconds["ours"], seconds["peer"], "s", bar=1.05))
sys.exit(report(rows, "What this is"))
"""

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One comparison, in which less is better. `bar` is the largest ratio that holds; None means no bar.

    Where the peer is a limit, not a program, `peer` is the limit and `bar` is 1.
    """

    name: str
    ours: float
    peer: float
    unit: str
    bar: float | None = None

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return self.ours / self.peer

    @property
    def holds(self) -> bool | None:
        """Whether the ratio is within the bar; None without one."""
        return None if self.bar is None else self.ratio <= self.bar


def seconds_of(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def timed(sides: Mapping[str, Callable[[], object]], *, rounds: int = 5, warm_up: int = 1) -> dict[str, float]:
    """Median wall seconds of a call of each side; the sides alternate."""
    clocked = {name: partial(seconds_of, call) for name, call in sides.items()}
    seconds = in_turns(clocked, rounds=rounds, warm_up=warm_up)
    return {name: statistics.median(values) for name, values in seconds.items()}


def in_turns(sides: Mapping[str, Callable[[], float]], *, rounds: int = 5, warm_up: int = 1) -> dict[str, list[float]]:
    """The values that each side returns. The sides alternate, so that a slow minute of the machine affects all."""
    for call in sides.values():
        for _ in range(warm_up):
            call()
    measured: dict[str, list[float]] = {name: [] for name in sides}
    # The order is reversed every other round, so that no side is always first.
    for turn in range(rounds):
        order = list(sides.items())
        for name, call in order if turn % 2 == 0 else reversed(order):
            measured[name].append(call())
    return measured


def peak_memory(call: Callable[[], object]) -> float:
    """MiB of memory that a call adds to this process at its peak (Linux; sampled every millisecond).

    Memory that an allocator kept from earlier work and reuses is not counted: measure in a new process.
    """
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    # A second thread samples the resident memory while the call runs.
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(0, peak - before) / 2**20


def report(rows: Sequence[Row], title: str, argv: Sequence[str] | None = None) -> int:
    """Prints the rows, writes them to the file of `--json`, and returns the exit code: 1 if a bar does not hold."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file too")
    path = parser.parse_args(argv).json
    width = max([len(row.name) for row in rows], default=4)
    print(f"{title} ({platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()})")
    print(f"{'':{width}} {'ours':>12} {'peer':>12} {'ratio':>7} {'bar':>6}  holds")
    for row in rows:
        bar, holds = ("", "") if row.bar is None else (f"{row.bar:g}", "yes" if row.holds else "NO")
        amounts = [f"{value:.4g} {row.unit}" for value in (row.ours, row.peer)]
        print(f"{row.name:{width}} {amounts[0]:>12} {amounts[1]:>12} {row.ratio:7.3f} {bar:>6}  {holds}")
    if path:
        lines = [asdict(row) | {"ratio": row.ratio, "holds": row.holds} for row in rows]
        path.write_text(json.dumps(lines, indent=1) + "\n")
    return int(any(row.holds is False for row in rows))


if __name__ == "__main__":
    sys.exit("This module only has the benchmarks' functions; run one of them: python -m benchmarks.objective")
