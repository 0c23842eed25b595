"""Benchmark results in the cache: what is reused, resumed and shared by several processes."""

import gzip
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import Interrupted
from pipelines.evaluation.benchmark_cache import BenchmarkCache
from pipelines.stage_context import Ranks
from tests.forked import forked


def slow_rows(items: range) -> list[dict]:
    time.sleep(0.2)
    return [{"item": item} for item in items]


def measure_slowly(root: str) -> None:
    cache = BenchmarkCache(Path(root), {"checkpoint": "c"})
    cache.rows("b", {}, ranges=cache.ranges(20, most=2), compute=slow_rows)


def test_a_killed_evaluation_resumes_after_its_last_finished_range(tmp_path: Path) -> None:
    process = forked.Process(target=measure_slowly, args=(str(tmp_path),))
    process.start()
    while len(list(tmp_path.glob("*/0*.jsonl.gz"))) < 3:
        time.sleep(0.01)
    process.kill()
    process.join()
    stored = len(list(tmp_path.glob("*/0*.jsonl.gz")))
    computed: list[range] = []

    def compute(items: range) -> list[dict]:
        computed.append(items)
        return [{"item": item} for item in items]

    cache = BenchmarkCache(tmp_path, {"checkpoint": "c"})
    rows = cache.rows("b", {}, ranges=cache.ranges(20, most=2), compute=compute)
    assert [row["item"] for row in rows] == list(range(20))
    assert computed == [range(i, i + 2) for i in range(2 * stored, 20, 2)]


def test_another_checkpoint_or_setting_is_measured_again(tmp_path: Path) -> None:
    calls: list[range] = []

    def compute(items: range) -> list[dict]:
        calls.append(items)
        return []

    for identity, key in (({"c": 1}, {"b": 1}), ({"c": 1}, {"b": 1}), ({"c": 2}, {"b": 1}), ({"c": 1}, {"b": 2})):
        BenchmarkCache(tmp_path, identity).rows("b", key, ranges=[range(1)], compute=compute)
    assert len(calls) == 3


def test_stored_rows_keep_their_folder(tmp_path: Path) -> None:
    """A fixed hash of identity and key: another one would orphan the results of existing stores."""
    key = {"name": "GSM8K", "samples": 2}
    BenchmarkCache(tmp_path, {"parent": "p"}).rows("b", key, ranges=[range(3)], compute=slow_rows)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")] == [
        "0d2560eb68529924/000000-000003.jsonl.gz"
    ]


def test_ranges_are_shared_by_all_processes(tmp_path: Path) -> None:
    cache = BenchmarkCache(tmp_path, {}, Ranks(0, 3))
    assert cache.ranges(7, most=100) == [range(0, 3), range(3, 6), range(6, 7)]
    assert cache.ranges(7, most=0) == [range(i, i + 1) for i in range(7)]
    assert cache.ranges(0, most=5) == []


def test_each_process_computes_its_share_and_gets_all_rows(tmp_path: Path) -> None:
    computed: list[tuple[int, int]] = []
    items_of_rank: dict[int, list[int]] = {}

    def work(rank: int) -> None:
        def compute(items: range) -> list[dict]:
            computed.append((items.start, rank))
            return [{"item": items.start}]

        cache = BenchmarkCache(tmp_path, {}, Ranks(rank, 3))
        rows = cache.rows("b", {}, ranges=cache.ranges(7, most=1), compute=compute)
        items_of_rank[rank] = [row["item"] for row in rows]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(computed) == [(i, i % 3) for i in range(7)]
    assert items_of_rank == {rank: list(range(7)) for rank in range(3)}


def test_a_stop_is_obeyed_between_two_ranges(tmp_path: Path) -> None:
    done: list[int] = []

    def compute(items: range) -> list[dict]:
        done.append(items.start)
        return []

    cache = BenchmarkCache(tmp_path, {}, interrupted=lambda: len(done) == 2)
    with pytest.raises(Interrupted):
        cache.rows("b", {}, ranges=cache.ranges(5, most=1), compute=compute)
    assert done == [0, 1]
    assert len(list(tmp_path.glob("*/*.jsonl.gz"))) == 2


def changed_value(path: Path) -> None:
    """Another number, in a file that is whole for gzip."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b'"item": 3', b'"item": 9')))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-6])


def of_another_range(path: Path) -> None:
    path.write_bytes((path.parent / "000000-000002.jsonl.gz").read_bytes())


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("ranks", [Ranks(), Ranks(0, 2), Ranks(1, 2)])
@pytest.mark.parametrize(
    "damage", [changed_value, cut, of_another_range, folder_in_its_place, lambda path: path.write_bytes(b"[]")]
)
def test_a_changed_range_is_computed_again(tmp_path: Path, damage: Callable[[Path], object], ranks: Ranks) -> None:
    """By whichever process notices it first, also if it is in the share of another."""
    computed: list[range] = []

    def compute(items: range) -> list[dict]:
        computed.append(items)
        return [{"item": item, "text": "a\u2028b"} for item in items]

    ranges = [range(0, 2), range(2, 4), range(4, 6)]
    expected = BenchmarkCache(tmp_path, {}).rows("b", {}, ranges=ranges, compute=compute)
    damage(next(tmp_path.glob("*/000002-000004.jsonl.gz")))
    computed.clear()
    assert BenchmarkCache(tmp_path, {}, ranks).rows("b", {}, ranges=ranges, compute=compute) == expected
    assert computed == [range(2, 4)]
    computed.clear()
    assert BenchmarkCache(tmp_path, {}, ranks).rows("b", {}, ranges=ranges, compute=compute) == expected
    assert computed == []
