"""Stored samples: their rows, the votes among their answers, and the metrics that follow from them."""

import gzip
import hashlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.evaluation.samples import Responses, cast_votes, measure, read_rows, sample_rows, write_rows
from pipelines.verifiers import Judge, Verdict


def rows_of(answers: list[list[str | None]], references: list[str], *, verifier: str = "exact") -> list[dict]:
    n = len(answers[0])
    flat = [answer for row in answers for answer in row]
    count = len(flat)
    judged = [(verifier, answer, references[i // n]) for i, answer in enumerate(flat)]
    prompts = [(f"Q: {reference}?", f"{reference}?") for reference in references]
    with Judge(1) as judge:
        verdicts = judge.rewards(judged)
        stopped = [text != "cut" for text in flat]
        responses = Responses([str(a) for a in flat], judged, verdicts, [-1.0] * count, [3] * count, stopped)
        return sample_rows(prompts, responses, judge, first_item=4)


def test_a_row_holds_the_sample_and_its_verdict() -> None:
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
    assert [row["finish"] for row in rows_of([["7", "cut"]], ["7"])] == ["stop", "length"]


def test_questions_vote_each_by_its_own_verifier() -> None:
    """Consecutive questions of one verifier vote together; the votes stay those of their question."""
    answers, verifiers = [["a", "A"], ["b", "b"], ["C", "c"], ["d", "e"]], ["math", "exact", "exact", "math"]
    judge: Any = SimpleNamespace(
        rewards=lambda items: [Verdict(float(a == b or (v == "math" and a.upper() == b.upper()))) for v, a, b in items]
    )
    judged = [(verifier, answer, "x") for verifier, row in zip(verifiers, answers, strict=True) for answer in row]
    texts = [answer for row in answers for answer in row]
    responses = Responses(texts, judged, [Verdict(0.0)] * 8, [-1.0] * 8, [3] * 8, [True] * 8)
    rows = sample_rows([(f"Q{i}", f"{i}?") for i in range(4)], responses, judge, first_item=0)
    assert [row["vote"] for row in rows] == [0, 0, 0, 0, 0, 1, 0, 1]


def test_metrics_do_not_depend_on_the_order_of_the_stored_rows(tmp_path: Path) -> None:
    rows = rows_of([["7", "7", "8", None], ["1", "2", "1", "2"]], ["7", "2"])
    write_rows(tmp_path / "s.jsonl.gz", rows)
    stored = list(read_rows(tmp_path / "s.jsonl.gz"))
    assert stored == rows
    metrics = measure(reversed(stored), [2, 3, 9])
    assert {name: metric.value for name, metric in metrics.items() if name != "sampling_error"} == {
        "avg@4": 0.5,
        "cons@4": pytest.approx((1 + 0.5) / 2),
        "pass@2": pytest.approx((5 / 6 + 5 / 6) / 2),
        "pass@3": 1.0,
        "response_length": 3.0,
    }


def test_equal_rows_are_written_as_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / name, [{"x": 1}])
        time.sleep(0.01)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert gzip.decompress((tmp_path / "a").read_bytes()) == b'{"x": 1}\n'


@pytest.mark.slow
def test_votes_are_equal_if_the_verifier_accepts_one_answer_for_the_other() -> None:
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
    unanswered = rows_of([[None, None]], ["a"])
    assert measure(unanswered, [])["cons@2"].value == 0


@pytest.mark.parametrize(("reward", "votes"), [(0.5, [0, 0]), (0.49, [0, 1])])
def test_answers_are_equal_from_half_a_reward_on(reward: float, votes: list[int]) -> None:
    judge: Any = SimpleNamespace(rewards=lambda items: [Verdict(reward) for _ in items])
    assert cast_votes([["a", "b"]], "math", judge) == [votes]
