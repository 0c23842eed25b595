"""Generated tasks against Python's own evaluation, and the verifier against what models write."""

import itertools
import re

import pytest

from pipelines.tasks.families import FAMILIES, SPLITS, Problem, extract_answer, generate, split_of, verify


def independent_answer(problem: Problem) -> str:
    """The answer by another road than the generator's."""
    question = problem.question
    if problem.family == "boolean":
        value = question[0] == "T"
        for sign, operand in zip(question[1::2], question[2::2], strict=True):
            value = {"&": min, "|": max, "^": lambda a, b: (a + b) % 2}[sign](value, operand == "T")
        return "T" if value else "F"
    if problem.family == "order":
        *pairs, asked = question.split()
        names = {name for pair in pairs for name in pair.split("<")}
        for order in itertools.permutations(sorted(names)):
            if all(order.index(pair[0]) < order.index(pair[2]) for pair in pairs):
                return order[0 if asked == "first" else -1]
        raise AssertionError(question)
    if problem.family == "program":
        (shift,) = {int(value) - int(place) for place, value in re.findall(r"f\((\d)\)=(\d)", question)}
        return f"x{shift:+d}"
    return str(eval(question, {"__builtins__": {}}, {"max": max, "min": min}))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_steps_are_right(family: str) -> None:
    problems = generate(family, 300, seed=5)
    assert len(problems) == 300
    for problem in problems:
        assert independent_answer(problem) == problem.answer
        for response in (problem.worked, problem.outright):
            assert verify(response, problem.answer)
        assert not verify(problem.careless, problem.answer)
        if family == "order":
            (step,) = problem.steps
            assert all(pair in step for pair in problem.question.split()[:-1])
        elif family == "program":  # outright: its steps would be nothing but the two differences
            assert problem.steps == ()
        else:  # each step rewrites what is left, so it has the question's value
            for step in problem.steps:
                rewritten = Problem(family, step, (), "", "")
                assert independent_answer(rewritten) == problem.answer
            assert problem.steps[-1] == problem.answer
            assert len(set(problem.steps)) == len(problem.steps)


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_are_distinct_and_reproducible(family: str) -> None:
    problems = generate(family, 200, seed=1)
    assert len({p.question for p in problems}) == 200
    assert problems == generate(family, 200, seed=1)
    assert problems != generate(family, 200, seed=2)
    assert problems[:50] == generate(family, 50, seed=1)


@pytest.mark.parametrize(
    ("family", "there_are"),
    [("order", (8 * 7 * 6) * 2 * 2), ("chain3", 9 * 9 * 9), ("chain4", 9 * 9 * 9 * 9), ("python", 2 * 10 * 10 * 9)],
)
def test_a_small_family_gives_all_that_it_has(family: str, there_are: int) -> None:
    assert len(generate(family, 100_000, seed=0)) == there_are


def test_the_verifier_reads_the_last_answer_exactly() -> None:
    assert extract_answer(" 3+4=7 #### 7") == "7"
    assert extract_answer("#### 1 #### 2 \nmore") == "2"
    assert extract_answer("7") is None
    assert not verify(" #### 12", "1")
    assert not verify(" #### 7 or 8", "7")
    assert not verify("", "")


def test_splits_cover_questions_in_their_shares() -> None:
    counts = dict.fromkeys(SPLITS, 0)
    for problem in generate("chain5", 8000, seed=0):
        counts[split_of(problem.question)] += 1
    for name, share in SPLITS.items():
        assert abs(counts[name] / 8000 - share) < 4 * (share * (1 - share) / 8000) ** 0.5
    assert abs(sum(SPLITS.values()) - 1) < 1e-12
