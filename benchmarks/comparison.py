"""How every benchmark measures: both sides in one run, in turns, medians; rows in a table and as JSON.

sides = timed({"ours": ours, "peer": peer})
rows.append(Row("forward and backward", sides["ours"], sides["peer"], "s", bar=1.05))
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
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One comparison: less is better on both sides, and `bar` is the largest ratio that still holds (None: no bar)."""

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


def timed(sides: Mapping[str, Callable[[], object]], rounds: int = 5, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of a call of each side, in turns."""

    def clocked(call: Callable[[], object]) -> Callable[[], float]:
        def seconds() -> float:
            began = time.perf_counter()
            call()
            return time.perf_counter() - began

        return seconds

    found = in_turns({name: clocked(call) for name, call in sides.items()}, rounds, warm_up)
    return {name: statistics.median(values) for name, values in found.items()}


def in_turns(sides: Mapping[str, Callable[[], float]], rounds: int = 5, warm_up: int = 1) -> dict[str, list[float]]:
    """What each side measures of itself. They take turns, so that a slow minute of the machine meets all alike."""
    for call in sides.values():
        for _ in range(warm_up):
            call()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        order = list(sides.items())
        for name, call in order if turn % 2 == 0 else reversed(order):
            found[name].append(call())
    return found


def peak_memory(call: Callable[[], object]) -> float:
    """MiB of memory that a call adds to this process at its highest point (Linux; sampled every millisecond).

    What an allocator has kept from before and gives again is not seen: measure in a process that has done little else.
    """
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

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
    """Print the rows, write them to the file of `--json`, and return the exit code: 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
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
    sys.exit("This is how the benchmarks measure; run one of them: python -m benchmarks.objective")
