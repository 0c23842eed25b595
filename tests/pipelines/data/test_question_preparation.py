"""Files of questions for RL: columns, forms of answers, difficulty, and questions that are measured."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipelines.configuration.grpo import GRPOConfig
from pipelines.configuration.question_sets import QuestionSetConfig
from pipelines.data.question_preparation import extracted, prepare_questions, texts_of_file
from pipelines.errors import UserError
from pipelines.tasks.question_files import read_questions


def grpo(folder: Path, **sets: QuestionSetConfig) -> GRPOConfig:
    return GRPOConfig(
        steps=1, tasks=list(sets), milestones=1, questions=sets, questions_folder=str(folder / "questions")
    )


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize(
    ("answer", "form", "expected"),
    [
        ("She has 1 + 17 = <<1+17=18>>18 left.\n#### 18", "hashes", "18"),
        ("... #### 1,234,567", "auto", "1234567"),
        ("First #### 17, but checked again:\n#### 18", "hashes", "18"),
        ("no mark", "hashes", None),
        ("So $x = \\boxed{\\frac{1}{2}}$.", "boxed", "\\frac{1}{2}"),
        ("\\boxed{1} and then \\boxed{2}", "auto", "2"),
        ("no box", "boxed", None),
        (" 34 ", "text", "34"),
        ("34", "auto", "34"),
        (34, "text", "34"),
        (None, "auto", None),
        ("", "text", None),
    ],
)
def test_answers_are_found_in_their_column(answer: Any, form: str, expected: str | None) -> None:
    assert extracted(answer, form) == expected


def test_a_set_like_gsm8k_and_one_like_math(tmp_path: Path) -> None:
    marked = [{"question": f"What is {i} and {i}?", "answer": f"{i}+{i}\n#### {2 * i}"} for i in range(30)]
    marked += [{"question": "none?", "answer": "#### "}, {"question": "", "answer": "#### 1"}, marked[3]]
    levels = ["Level 1", "Level 2", "Level 5", "Level ?"]
    boxed = [
        {"problem": f"Solve x = {i}.", "solution": f"It is $\\boxed{{{i}}}$.", "level": levels[i % 4]}
        for i in range(40)
    ]
    parquet.write_table(pa.Table.from_pylist(boxed), tmp_path / "math.parquet")
    math = QuestionSetConfig(
        str(tmp_path / "math.parquet"), question="problem", answer="solution", difficulty="level", difficulty_high=2
    )
    config = grpo(tmp_path, gsm=QuestionSetConfig(write(tmp_path / "gsm.jsonl", marked)), math=math)
    counts = prepare_questions(config, {})
    lines = read_questions(config.tasks[0], "boxed")
    assert [(line.question, line.answer) for line in lines] == [
        (f"What is {i} and {i}?", str(2 * i)) for i in range(30)
    ]
    assert (counts["gsm"].records, counts["gsm"].without, counts["gsm"].repeated, counts["gsm"].kept) == (33, 2, 1, 30)
    assert [line.answer for line in read_questions(config.tasks[1], "x")] == [str(i) for i in range(40) if i % 4 < 2]
    assert (counts["math"].difficulty, counts["math"].kept) == (20, 20)
    report = json.loads((tmp_path / "questions" / "math.report.json").read_text())
    assert (report["kept"], report["difficulty"], report["searched"]) == (20, 20, [])


def test_difficulties_are_numbers_within_both_bounds(tmp_path: Path) -> None:
    levels = [-2, 1.5, "2", 2.25, "Level 2.5", 2.75, 3, "hard"]
    path = write(tmp_path / "q.jsonl", [{"question": f"{level}?", "answer": "1", "level": level} for level in levels])
    questions = QuestionSetConfig(path, difficulty="level", difficulty_low=2, difficulty_high=2.5)
    config = grpo(tmp_path, q=questions)
    assert prepare_questions(config, {})["q"].difficulty == 5
    assert [line.question for line in read_questions(config.tasks[0], "boxed")] == ["2?", "2.25?", "Level 2.5?"]


def test_measured_questions_are_left_out_and_counted(tmp_path: Path) -> None:
    words = "Natalia sold clips to forty eight of her friends in April and then half as many in"
    questions = [f"{words} May. How many in {month}?" for month in ("June", "July")]
    questions += ["A short one of six words?", "Quite another question that nobody has measured yet, is it not one?"]
    path = write(tmp_path / "q.jsonl", [{"question": question, "answer": "1"} for question in questions])
    measured = [{"question": "Say: a SHORT one of six words? Yes.", "answer": "2"}]
    long = [{"question": f"{words.upper()}  may ... and more", "answer": "x"}]
    texts = {
        "one": texts_of_file(write(tmp_path / "one.jsonl", measured)),
        "two": texts_of_file(write(tmp_path / "two.jsonl", long)),
    }
    config = grpo(tmp_path, q=QuestionSetConfig(path))
    counts = prepare_questions(config, texts)["q"]
    assert counts.measured == {"one": 1, "two": 2}
    assert [line.question for line in read_questions(config.tasks[0], "boxed")] == questions[3:]


def test_mistakes_are_named_and_make_no_file(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [{"prompt": "1+1?", "solution": "two"}])
    for questions, message in (
        (QuestionSetConfig(path), r"grpo\.questions\.q\.question=question: .*no column 'question'.*prompt, solution"),
        (QuestionSetConfig(path, question="prompt"), r"grpo\.questions\.q\.answer=answer: .*no column 'answer'"),
        (
            QuestionSetConfig(path, question="prompt", answer="solution", answer_format="hashes"),
            r"answer=solution: none of the 1 records of .* has a question with an answer of the format 'hashes'",
        ),
        (QuestionSetConfig(str(tmp_path / "no.jsonl")), "no file matches"),
    ):
        with pytest.raises(UserError, match=message):
            prepare_questions(grpo(tmp_path, q=questions), {})
    with pytest.raises(UserError, match="bounds on the difficulty need its column"):
        grpo(tmp_path, q=QuestionSetConfig(path, difficulty_low=1))
    assert not (tmp_path / "questions").exists()
