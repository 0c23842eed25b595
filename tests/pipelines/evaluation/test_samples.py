"""Stored samples: everything follows from them, votes are the verifier's, and a kill costs one piece."""

import gzip
import hashlib
import json
import threading
import time
from pathlib import Path

import pytest

from pipelines.errors import Interrupted
from pipelines.evaluation.piece_cache import Pieces, Share, cut
from pipelines.evaluation.samples import cast_votes, measure, read_rows, sample_rows, write_rows
from pipelines.verifiers import Judge
from tests.forked import forked


def rows_of(answers: list[list[str | None]], golds: list[str], verifier: str = "exact") -> list[dict]:
    n = len(answers[0])
    flat = [answer for row in answers for answer in row]
    judged = [(verifier, answer, golds[i // n]) for i, answer in enumerate(flat)]
    count = len(flat)
    with Judge(1) as judge:
        asked = [(f"Q: {gold}?", f"{gold}?") for gold in golds]
        return sample_rows(asked, [str(a) for a in flat], judged, judge, [-1.0] * count, [3] * count, [True] * count, 4)


def test_a_row_says_what_was_sampled() -> None:
    first, second, *_ = rows_of([["7", None], ["8", "9"]], ["7", "9"])
    assert first == {
        "item": 4,
        "prompt": hashlib.sha256(b"Q: 7?").hexdigest()[:16],
        "question": "7?",
        "response": "7",
        "answer": "7",
        "vote": 0,
        "reward": 1.0,
        "log_prob": -1.0,
        "length": 3,
        "finish": "stop",
    }
    assert (second["vote"], second["reward"]) == (None, 0.0)


def test_metrics_follow_from_the_file_in_any_order(tmp_path: Path) -> None:
    rows = rows_of([["7", "7", "8", None], ["1", "2", "1", "2"]], ["7", "2"])
    write_rows(tmp_path / "s.jsonl.gz", rows)
    stored = list(read_rows(tmp_path / "s.jsonl.gz"))
    assert stored == rows
    found = measure(reversed(stored), [2, 3, 9])
    assert {name: value.value for name, value in found.items() if name != "sampling_error"} == {
        "avg@4": 0.5,
        "cons@4": pytest.approx((1 + 0.5) / 2),
        "pass@2": pytest.approx((5 / 6 + 5 / 6) / 2),
        "pass@3": 1.0,
        "response_length": 3.0,
    }


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / name, [{"x": 1}])
        time.sleep(0.01)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert gzip.decompress((tmp_path / "a").read_bytes()) == b'{"x": 1}\n'


@pytest.mark.slow
def test_votes_are_equal_where_the_verifier_says_so() -> None:
    answers = [["0.5", "1/2", "3", "$\\frac12$", None, "0.50"], ["$x+1$", "$1+x$", "$y$", "$x$", "$x+1$", "$y$"]]
    with Judge(1) as judge:
        half, terms = cast_votes(answers, "math", judge)
        assert cast_votes(answers, "code", judge) == [[None] * 6] * 2
    assert [half[i] == half[0] for i in (1, 2, 3, 5)] == [True, False, True, True]
    assert half[4] is None
    assert terms[0] == terms[1] == terms[4] != terms[2] == terms[5] != terms[3]


def test_programs_do_not_vote() -> None:
    rows = [{**row, "vote": None} for row in rows_of([["a", "b"]], ["a"])]
    assert "cons@2" not in measure(rows, [])
    nothing = rows_of([[None, None]], ["a"])
    assert measure(nothing, [])["cons@2"].value == 0


# Pieces


def slow_piece(items: range) -> list[dict]:
    time.sleep(0.2)
    return [{"item": item} for item in items]


def measure_slowly(root: str) -> None:
    Pieces(Path(root), {"checkpoint": "c"}).rows("b", {}, cut(20, 2), slow_piece)


def test_a_kill_costs_the_piece_at_work(tmp_path: Path) -> None:
    process = forked.Process(target=measure_slowly, args=(str(tmp_path),))
    process.start()
    while len(list(tmp_path.glob("*/0*.jsonl.gz"))) < 3:
        time.sleep(0.01)
    process.kill()
    process.join()
    kept = len(list(tmp_path.glob("*/0*.jsonl.gz")))
    made: list[range] = []

    def make(items: range) -> list[dict]:
        made.append(items)
        return [{"item": item} for item in items]

    rows = Pieces(tmp_path, {"checkpoint": "c"}).rows("b", {}, cut(20, 2), make)
    assert [row["item"] for row in rows] == list(range(20))
    assert made == [range(i, i + 2) for i in range(2 * kept, 20, 2)]


def test_another_checkpoint_or_setting_is_measured_anew(tmp_path: Path) -> None:
    calls = []
    for identity, own in (({"c": 1}, {"b": 1}), ({"c": 1}, {"b": 1}), ({"c": 2}, {"b": 1}), ({"c": 1}, {"b": 2})):
        Pieces(tmp_path, identity).rows("b", own, [range(1)], lambda _: calls.append(1) or [])  # type: ignore[func-returns-value]
    assert len(calls) == 3


def test_processes_share_the_pieces_out(tmp_path: Path) -> None:
    made: list[tuple[int, int]] = []
    found: dict[int, list[int]] = {}

    def work(rank: int) -> None:
        def make(items: range) -> list[dict]:
            made.append((items.start, rank))
            return [{"item": items.start}]

        rows = Pieces(tmp_path, {}, Share(rank, 3)).rows("b", {}, cut(7, 1), make)
        found[rank] = [row["item"] for row in rows]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(made) == [(i, i % 3) for i in range(7)]
    assert found == {rank: list(range(7)) for rank in range(3)}


def test_a_stop_is_obeyed_between_two_pieces(tmp_path: Path) -> None:
    done: list[int] = []
    pieces = Pieces(tmp_path, {}, Share(interrupted=lambda: len(done) == 2))
    with pytest.raises(Interrupted):
        pieces.rows("b", {}, cut(5, 1), lambda items: done.append(items.start) or [])  # type: ignore[func-returns-value]
    assert done == [0, 1]
    assert json.dumps(sorted(p.name for p in tmp_path.glob("*/*"))).count("jsonl.gz") == 2
