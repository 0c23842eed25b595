"""Questions of RL: their prompts, the formats of their answers, files of problems, and contamination."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.configuration.data import DataConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.data.questions import Question, available_items, contamination, load_items, load_questions
from pipelines.errors import UserError
from pipelines.tasks.families import generate
from pipelines.tasks.formats import FORMATS
from pipelines.verifiers import Judge


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(DataConfig("t", [], ["boolean"], 2000, 0.0, 0.0, 270, 8), tmp_path_factory.mktemp("cache"))


def test_the_corpus_and_rl_write_the_same_prompt(corpus: Corpus) -> None:
    for question in load_questions("boolean", "rl", corpus)[:20]:
        problem = next(p for p in corpus.problems("boolean", "rl") if p.question == question.question)
        assert question.prompt == problem.prompt
        for response in (problem.worked, problem.outright):
            assert question.judged(response) == ("exact", problem.answer, problem.answer)
            assert question.judged(response + "\nQ: T&F") == ("exact", problem.answer, problem.answer)


@pytest.mark.parametrize(
    ("form", "response", "answer"),
    [
        ("marked", "1+1=2 #### 2", "2"),
        ("marked", "#### 1 or\n#### 2\nmore", "2"),
        ("marked", "two", None),
        ("boxed", r"so \boxed{7}", "7"),
        ("boxed", r"guess \boxed{4}. No: \boxed{5}", "5"),
        ("boxed", "Let us think. " * 400 + "\\boxed{5}", "5"),
        ("boxed", r"<think>\boxed{1}</think> it is \boxed{2}.", "2"),
        ("boxed", "it is 2", "2"),
        ("boxed", "I do not know", None),
        ("marked", "#### ", None),
        ("python", "```python\nx = 1\n```\nBetter:\n```python\nx = 2", "x = 2"),
        ("python", "a\n```python\nx = 1\n```\nb\n```python\nx = 2\n```", "x = 2"),
        ("python", "x = 1", None),
    ],
)
def test_answers_are_extracted_by_the_format(form: str, response: str, answer: str | None) -> None:
    assert FORMATS[form].extract(response) == answer


def test_a_response_that_the_limit_cut_has_no_answer() -> None:
    question = Question("t", "?", "5", "boxed")
    assert question.judged(r"... 15, and n=5") == ("math", "5", "5")
    assert question.judged(r"... 15, and n=5", complete=False) == ("math", None, "5")


def test_programs_are_right_when_hidden_tests_pass(tmp_path: Path) -> None:
    corpus = prepare(DataConfig("p", [], ["program"], 400, 0.0, 0.0, 270, 8), tmp_path)
    question = next(q for q in load_questions("program", "rl", corpus))
    problem = next(p for p in corpus.problems("program", "rl") if p.question == question.question)
    shift = int(problem.answer.removeprefix("x"))
    other = [f" #### {shift}+x", f" #### (lambda y: y)(x){shift:+d}"]
    responses = [problem.outright, *other, problem.careless, " x", " #### x +"]
    with Judge(1) as judge:
        verdicts = judge.rewards([question.judged(response) for response in responses])
    assert [verdict.reward for verdict in verdicts] == [1, 1, 1, 0, 0, 0]


def test_a_file_of_problems_is_split_and_checked(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "math.jsonl"
    lines = [{"question": f"What is {i} + 1?", "answer": i + 1} for i in range(300)]
    path.write_text("\n".join(map(json.dumps, [*lines, lines[0]])))
    training, held_out = (load_questions(str(path), split, corpus) for split in ("rl", "validation"))
    assert len(training) + len(held_out) == 300
    assert not {q.question for q in training} & {q.question for q in held_out}
    assert 3 <= len(held_out) <= 30
    assert "\\boxed{}" in training[0].prompt
    path.write_text('{"question": "1"}')
    with pytest.raises(UserError, match=r'math\.jsonl:1: a line is a JSON object with "question" and "answer"'):
        load_questions(str(path), "rl", corpus)
    path.write_text('{"question": "1", "answer": "1", "format": "box"}')
    with pytest.raises(UserError, match=r"format=box: did you mean 'boxed'"):
        load_questions(str(path), "rl", corpus)


def test_a_limit_draws_evenly_from_a_file_and_takes_the_first_of_a_family(corpus: Corpus, tmp_path: Path) -> None:
    """A file may be sorted; a family is in random order."""
    path = tmp_path / "sorted.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}", "answer": f"{i // 10}"}) + "\n" for i in range(100)))
    drawn = load_items(corpus, "boxed", count=10, dataset=str(path))
    assert [question.reference for question in drawn] == [str(i) for i in range(10)]
    assert len(load_items(corpus, "boxed", count=1000, dataset=str(path))) == 100
    assert available_items(corpus, "boxed", str(path)) == 100
    family = load_items(corpus, "boolean", count=1000)
    assert available_items(corpus, "boolean") == len(family) > 10
    assert load_items(corpus, "boolean", count=10) == family[:10]


def test_contamination_counts_questions_in_the_training_data(corpus: Corpus) -> None:
    seen = corpus.problems("boolean", "train")[:3]
    unseen = load_questions("boolean", "rl", corpus)[:1]
    questions = [Question("t", p.question.lower() + " ", p.answer, "marked") for p in seen] + unseen
    assert contamination(questions, corpus, ["boolean"]) == 0.75
    assert contamination(unseen, corpus, ["boolean"]) == 0
    assert contamination([], corpus, ["boolean"]) is None  # nothing was measured


def test_reasoning_gym_is_a_family_like_any_other() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra `gym` is not installed")
    problems = generate("gym_number_sorting", 300, seed=0)
    assert len({p.question for p in problems}) == 300
    assert problems == generate("gym_number_sorting", 300, seed=0)
    shared = {p.question for p in problems} & {p.question for p in generate("gym_number_sorting", 300, seed=1)}
    assert len(shared) < 30
    for problem in problems:
        _, direction, *numbers = problem.question.split()
        assert problem.answer == " ".join(sorted(numbers, reverse=direction == "down"))
    assert generate("gym_count_bits", 5, seed=0)[0].answer.isdigit()


def test_a_question_in_two_halves_of_two_documents_is_not_in_the_training_data() -> None:
    halves = "Natalia sold clips to 48 of her", "friends in April, and half as many in May."
    question = Question("t", " ".join(halves), "72", "marked")

    def share(*texts: str) -> float | None:
        documents = [SimpleNamespace(text=text) for text in texts]
        corpus: Any = SimpleNamespace(sharded=False, problems=lambda *_: [], documents=lambda _: documents)
        return contamination([question], corpus, [])

    assert share(*halves) == 0
    assert share("\n".join(halves)) == 1
