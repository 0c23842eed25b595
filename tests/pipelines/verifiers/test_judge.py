"""The judge: verifiers that are right, wrong, slow or dying, and the processes that they run in."""

import logging
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.errors import StageFailure
from pipelines.verifiers import VERIFIERS, Judge, Verdict, Verifier, judge

MISBEHAVING = "tests.pipelines.verifiers.misbehaving:verify"


def rewards(name: str, pairs: list[tuple[str, str]], workers: int = 1) -> list[float]:
    """The rewards of (answer, reference) pairs."""
    with Judge(workers) as judge:
        return [verdict.reward for verdict in judge.rewards([(name, *pair) for pair in pairs])]


def test_exact_compares_strings_and_starts_no_process() -> None:
    with Judge() as judge:
        verdicts = judge.rewards([("exact", "7", "7"), ("exact", "7.0", "7"), ("exact", None, "7"), ("exact", "", "")])
        assert not judge._teams
    assert [verdict.reward for verdict in verdicts] == [1, 0, 0, 1]


def test_a_new_verifier_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a worker or in this process; a partial reward is kept, and one above 1 is cut."""
    (tmp_path / "closeness.py").write_text(
        "def verify(answer, reference): return 2.0 - abs(float(answer) - float(reference))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(VERIFIERS, "close", Verifier("closeness:verify"))
    assert rewards("close", [("3", "3"), ("3", "4.5"), ("x", "3")]) == [1, 0.5, 0]
    monkeypatch.setitem(VERIFIERS, "contains", Verifier("operator:contains", in_process=True))
    assert rewards("contains", [("cab", "a"), ("cb", "a")]) == [1, 0]


def test_an_answer_of_the_longest_length_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERIFIERS, "short", Verifier("operator:eq", in_process=True, longest=3))
    with Judge() as judge:
        verdicts = judge.rewards([("short", "777", "777"), ("short", "7777", "7777")])
    assert verdicts == [(1.0, None), (0.0, "too_long")]


MATH = [
    (r"so it is \boxed{\frac{1}{2}}", "0.5", 1),
    (r"$x^2 + 2x + 1$", "(x+1)^2", 1),
    ("the answer is 7", "7", 1),
    ("the answer is 7", "8", 0),
    (r"\boxed{3} or rather \boxed{4}", "3", 0),
    (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", 1),
    ("no idea", "5", 0),
    (r"\boxed{\{1, 2\}}", r"\{2, 1\}", 1),
]


@pytest.mark.slow
def test_mathematics_is_compared_by_value() -> None:
    assert rewards("math", [(answer, reference) for answer, reference, _ in MATH]) == [right for *_, right in MATH]


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits",
    [Verifier(VERIFIERS["math"].function, 2.0), Verifier(VERIFIERS["math"].function, 60.0, 0.5)],
    ids=["wall", "processor"],
)
def test_an_expression_that_hangs_costs_its_time_limit(limits: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERIFIERS, "math", limits)
    with Judge(1) as judge:
        judge.rewards([("math", "1", "1")])
        began = time.monotonic()
        verdicts = judge.rewards([("math", r"\boxed{9^{9^{9^{9^9}}}}", "3"), ("math", "4", "4")])
    assert [tuple(verdict) for verdict in verdicts] == [(0.0, "timeout"), (1.0, None)]
    assert time.monotonic() - began < 20


def test_an_answer_longer_than_its_verifier_reads_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of more than 4,096 characters is run; strings of any length are compared."""
    long, program = "1" * 70_000, "x = 1\n" + "# comment\n" * 1000
    items = [("math", long, "1"), ("exact", long, long), ("code", program, "assert x == 1"), ("code", long, "")]
    monkeypatch.setitem(VERIFIERS, "math", Verifier("no_such_module:verify", longest=4096))
    with Judge(1) as judge:
        verdicts = judge.rewards([*items, ("math", None, "1")])
    assert [tuple(verdict) for verdict in verdicts] == [
        (0.0, "too_long"), (1.0, None), (1.0, None), (0.0, "too_long"), (0.0, None)
    ]  # fmt: skip


@pytest.mark.slow
def test_after_a_timeout_the_same_worker_continues_in_another_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERIFIERS, "misbehaves", Verifier(MISBEHAVING, 60.0, 0.2))
    answers = ["pid", "parent", "spin", "pid", "parent", "die", "parent"]
    with Judge(1) as judge:
        verdicts = judge.rewards([("misbehaves", answer, str(i)) for i, answer in enumerate(answers)])
    processes, failures = zip(*verdicts, strict=True)
    assert failures == (None, None, "timeout", None, None, "error", None)
    assert processes[0] != processes[3]  # another fork
    assert processes[1] == processes[4]  # of the same worker
    assert processes[6] != processes[1]  # a worker is replaced when its fork dies of anything else


@pytest.mark.slow
def test_a_worker_that_was_started_again_serves_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel kills a worker when the thread that started it ends, so that thread must outlive the batch."""
    monkeypatch.setitem(VERIFIERS, "misbehaves", Verifier(MISBEHAVING, 60.0))
    with Judge(1) as judge:
        first = judge.rewards([("misbehaves", answer, "1") for answer in ("pid", "die", "parent", "count")])
        time.sleep(0.5)
        second = judge.rewards([("misbehaves", "pid", "2"), ("misbehaves", "count", "2")])
    assert [verdict.failure for verdict in [*first, *second]] == [None, "error", None, None, None, None]
    assert round(second[1].reward * 2**32) == 4  # the same process as before


@pytest.mark.slow
def test_equal_items_are_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERIFIERS, "misbehaves", Verifier(MISBEHAVING, 60.0))
    items = [("misbehaves", "count", reference) for reference in "abacba"]
    with Judge(1) as judge:
        counts = [round(verdict.reward * 2**32) for verdict in judge.rewards([*items, ("exact", "a", "a")])]
    assert counts == [1, 2, 1, 3, 2, 1, 2**32]


def test_a_verifier_that_cannot_be_loaded_fails_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERIFIERS, "missing", Verifier("no_such_module:verify", 1.0))
    with Judge(1) as judge, pytest.raises(StageFailure, match=r"no_such_module:verify cannot be loaded: .*ModuleNot"):
        judge.rewards([("missing", "1", "1")])


def test_a_folder_named_pipelines_in_the_working_directory_does_not_hide_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "__init__.py").write_text("raise ImportError('the wrong package')\n")
    monkeypatch.chdir(tmp_path)
    assert rewards("code", [("x = 1", "assert x == 1")]) == [1]


def test_only_the_first_failure_of_a_verifier_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    team = judge._Team("mine", Verifier("m:f"))
    worker = SimpleNamespace(ask=lambda answer, reference: Verdict(0.0, "error"), reason="ValueError: no")
    monkeypatch.setattr(team, "_taken", lambda: worker)
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        assert [team.ask(str(i), "1").failure for i in range(3)] == ["error"] * 3
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["the verifier mine failed on an answer: ValueError: no; failures are counted"]
