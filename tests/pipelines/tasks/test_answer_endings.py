"""Endings of chains of thought, judged as in RL and evaluation: extraction, then the verifier in its processes."""

import pytest

from pipelines.data.questions import Question
from pipelines.verifiers import Judge, Verdict
from tests.pipelines.tasks.answer_endings import ENDINGS

ROWS = [row for rows in ENDINGS.values() for row in rows]


@pytest.fixture(scope="module")
def verdicts() -> dict[tuple[str, str], Verdict]:
    """The verdict on each ending with both of its references; a chain of thought as long as in RL precedes it."""
    thought = "Let us think about it step by step. " * 400
    pairs = [(ending, reference) for ending, *references in ROWS for reference in references]
    with Judge() as judge:
        items = [Question("t", "?", reference, "boxed").judged(thought + "\n" + ending) for ending, reference in pairs]
        return dict(zip(pairs, judge.rewards(items), strict=True))


def test_there_are_at_least_a_hundred_and_fifty_endings() -> None:
    assert len(ROWS) == len(set(ROWS)) >= 150


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "reference", "wrong"), ROWS)
def test_an_ending_is_read_as_what_it_says(
    verdicts: dict[tuple[str, str], Verdict], ending: str, reference: str, wrong: str
) -> None:
    assert verdicts[ending, reference] == Verdict(1.0)
    assert verdicts[ending, wrong] == Verdict(0.0)
