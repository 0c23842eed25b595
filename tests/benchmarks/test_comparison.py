"""The functions that benchmarks measure and report with; speed itself is not tested."""

import json
import mmap
import time
from pathlib import Path

import pytest

from benchmarks.comparison import Row, peak_memory, report, timed


def test_a_row_is_judged_by_its_ratio() -> None:
    row = Row("time", 1.04, 1.0, "s", 1.05)
    assert row.ratio == pytest.approx(1.04)
    assert row.holds
    assert Row("time", 1.06, 1.0, "s", 1.05).holds is False
    assert Row("time", 1.06, 1.0, "s").holds is None


def test_sides_alternate_and_swap_who_is_first() -> None:
    calls: list[str] = []
    seconds = timed({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, warm_up=1)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert set(seconds) == {"a", "b"}
    assert all(value >= 0 for value in seconds.values())


def test_peak_memory_counts_memory_that_is_freed_again() -> None:
    def call() -> None:
        # Memory from the kernel: an allocator may reuse memory from earlier tests.
        with mmap.mmap(-1, 64 * 2**20) as mapped:
            for page in range(0, len(mapped), mmap.PAGESIZE):
                mapped[page] = 1
            time.sleep(0.2)  # lets the sampling thread run, on a busy machine too

    assert 60 < peak_memory(call) < 130


def test_a_report_prints_a_table_writes_a_file_and_returns_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row("fast", 1.0, 2.0, "s", 1.0), Row("slow", 3.0, 2.0, "s", 1.0), Row("no bar", 3.0, 2.0, "MiB")]
    path = tmp_path / "rows.json"
    assert report(rows, "Title", ["--json", str(path)]) == 1
    assert report(rows[:1], "Title", []) == 0
    assert "NO" in capsys.readouterr().out
    names = ["name", "ours", "peer", "unit", "bar", "ratio", "holds"]
    assert [list(row) for row in json.loads(path.read_text())] == [names] * 3
    assert [row["holds"] for row in json.loads(path.read_text())] == [True, False, None]
