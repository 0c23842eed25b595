"""Generated tasks against independent computations of their answers, and how their answers are judged."""

import itertools
import random
import re

import pytest

from pipelines.tasks.families import FAMILIES, SPLITS, Family, Problem, _program, generate, split_of
from pipelines.tasks.formats import FORMATS
from pipelines.verifiers import Judge


def independent_answer(problem: Problem) -> str:
    """The answer, computed in another way than by the generator."""
    question = problem.question
    if problem.family == "boolean":
        value = question[0] == "T"
        for operator, operand in zip(question[1::2], question[2::2], strict=True):
            value = {"&": min, "|": max, "^": lambda a, b: (a + b) % 2}[operator](value, operand == "T")
        return "T" if value else "F"
    if problem.family == "order":
        *pairs, position = question.split()
        names = {name for pair in pairs for name in pair.split("<")}
        for order in itertools.permutations(sorted(names)):
            if all(order.index(pair[0]) < order.index(pair[2]) for pair in pairs):
                return order[0 if position == "first" else -1]
        raise AssertionError(question)
    if problem.family == "program":
        (shift,) = {int(value) - int(x) for x, value in re.findall(r"f\((\d)\)=(\d)", question)}
        return f"x{shift:+d}"
    return str(eval(question, {"__builtins__": {}}, {"max": max, "min": min}))


def marked_answer(response: str) -> str | None:
    return FORMATS["marked"].extract(response)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_steps_are_right(family: str) -> None:
    problems = generate(family, 300, seed=5)
    assert len(problems) == 300
    for problem in problems:
        assert independent_answer(problem) == problem.answer
        for response in (problem.worked, problem.outright):
            assert marked_answer(response) == problem.answer
        assert marked_answer(problem.careless) != problem.answer
        if family == "order":
            (step,) = problem.steps
            assert all(pair in step for pair in problem.question.split()[:-1])
        elif family == "program":  # it has no steps
            assert problem.steps == ()
        else:  # each step rewrites the rest of the question, so it has the same value
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
    ("family", "size"),
    [("order", (8 * 7 * 6) * 2 * 2), ("chain3", 9 * 9 * 9), ("chain4", 9 * 9 * 9 * 9), ("python", 2 * 10 * 10 * 9)],
)
def test_a_small_family_is_generated_completely(family: str, size: int) -> None:
    assert len(generate(family, 100_000, seed=0)) == size


def test_the_answer_is_what_follows_the_last_mark() -> None:
    assert marked_answer(" 3+4=7 #### 7") == "7"
    assert marked_answer("#### 1 #### 2 \nmore") == "2"
    assert marked_answer("7") is None
    assert marked_answer(" #### 7 or 8") == "7 or 8"


def test_a_family_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has problems, a reference, a format and thereby a verifier."""

    def double(rng: random.Random) -> Problem:
        number = rng.randint(0, 99)
        return Problem("double", f"2*{number}", (), str(2 * number), slip=str(number))

    monkeypatch.setitem(FAMILIES, "double", Family(double))
    problem = generate("double", 10, seed=0)[0]
    assert (problem.format, problem.reference) == ("marked", problem.answer)
    assert FORMATS[problem.format].verifier == "exact"


def test_programs_are_judged_by_tests() -> None:
    problem = generate("program", 1, seed=0)[0]
    assert problem.format == "program"
    form = FORMATS[problem.format]
    programs = [form.judged.replace("{answer}", answer) for answer in (problem.answer, problem.slip)]
    with Judge(1) as judge:
        verdicts = judge.rewards([(form.verifier, program, problem.reference) for program in programs])
    assert [verdict.reward for verdict in verdicts] == [1, 0]


def test_a_program_is_asked_by_every_pair_of_points_whose_values_are_digits() -> None:
    """`f(2)=5 f(4)=7`: all pairs of different points, and all shifts that keep both values between 0 and 9."""
    possible = {
        f"f({first})={first + shift} f({second})={second + shift}"
        for first in range(10)
        for second in range(10)
        for shift in range(-9, 10)
        if first != second and shift and min(first, second) + shift >= 0 and max(first, second) + shift <= 9
    }
    rng = random.Random(0)
    drawn = {_program(rng).question for _ in range(20_000)}
    assert drawn == possible


def test_splits_cover_questions_in_their_shares() -> None:
    counts = dict.fromkeys(SPLITS, 0)
    for problem in generate("chain5", 8000, seed=0):
        counts[split_of(problem.question)] += 1
    for name, share in SPLITS.items():
        assert abs(counts[name] / 8000 - share) < 4 * (share * (1 - share) / 8000) ** 0.5
    assert abs(sum(SPLITS.values()) - 1) < 1e-12


def test_a_program_is_tested_below_zero_too() -> None:
    tests = Problem("program", "f(1)=4 f(2)=5", (), "x+3", "x+4").reference
    exec(tests, {"f": lambda x: x + 3})
    with pytest.raises(AssertionError):
        exec(tests, {"f": lambda x: abs(x) + 3})
