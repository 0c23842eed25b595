"""Files of questions: what is read, and what is refused with file and line when a cell is composed."""

import json
import re
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.tasks import question_files
from pipelines.tasks.question_files import LONGEST_QUESTION, check_questions, read_questions
from sweeps.compose.cells import compose_cell

GOOD = b'{"question": "1+1?", "answer": "2"}\n'


def test_what_people_write_is_read(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    lines = [
        "\ufeff" + json.dumps({"question": "1+1?", "answer": 2}),
        "",
        "   ",
        json.dumps({"question": "1+1?", "answer": "another answer of the same question"}),
        json.dumps(
            {"question": "a\u2028b\x85c", "answer": 0.5, "format": "marked", "source": "us"}, ensure_ascii=False
        ),
        json.dumps({"question": "😀", "answer": "-1", "format": None}),
    ]
    path.write_bytes("\r\n".join(lines).encode())
    assert [tuple(line) for line in read_questions(path, "boxed")] == [
        ("1+1?", "2", "boxed"), ("a\u2028b\x85c", "0.5", "marked"), ("😀", "-1", "boxed")
    ]  # fmt: skip


def test_a_parquet_file_is_read_and_checked(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "questions.parquet"
    pandas.DataFrame({"question": ["a", "b"], "answer": [1, 2], "format": ["marked", None]}).to_parquet(path)
    assert [tuple(line) for line in read_questions(path, "boxed")] == [("a", "1", "marked"), ("b", "2", "boxed")]
    pandas.DataFrame({"question": ["a", "b"], "answer": ["1", None]}).to_parquet(path)
    with pytest.raises(UserError, match=r"questions\.parquet: row 2: answer=.*: it must be text or a number"):
        read_questions(path, "boxed")
    path.write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"questions\.parquet: it is no Parquet file \(.*magic bytes.*\); write"):
        read_questions(path, "boxed")


WRONG = [
    (b'{"question": "1+1?"}', r"2: a line is a JSON object with"),
    (b'{"answer": "2"}', r"2: a line is a JSON object with"),
    (b'["1+1?", "2"]', r"2: a line is a JSON object with"),
    (b'"text"', r"2: a line is a JSON object with"),
    (b"7", r"2: a line is a JSON object with"),
    (b'{"question": "1+1?", "answer": "2"', r"2: it is not JSON"),
    (b"question,answer", r"2: it is not JSON"),
    (b"[" * 100_000, r"2: it is not JSON"),
    ('{"question": "\xfc", "answer": "2"}'.encode("latin-1"), r"2: it is not UTF-8 .* save the file as UTF-8"),
    ('{"question": "x", "answer": "2"}'.encode("utf-16"), r"2: it is not UTF-8"),
    (b'{"question": "\\ud83d", "answer": "2"}', r"2: the question has half a character, \\ud83d"),
    (b'{"question": "x", "answer": "\\udcff"}', r"2: the answer has half a character, \\udcff"),
    (b'{"question": "x", "answer": null}', r"2: answer=null: it must be text or a number"),
    (b'{"question": "x", "answer": ""}', r'2: answer="": it must be text or a number'),
    (b'{"question": "x", "answer": ["2"]}', r'2: answer=\["2"\]: it must be text or a number'),
    (b'{"question": "x", "answer": true}', r"2: answer=true: it must be text or a number"),
    (b'{"question": "x", "answer": NaN}', r"2: answer=NaN: it must be text or a number"),
    (b'{"question": 5, "answer": "2"}', r"2: question=5: it must be text"),
    (b'{"question": " ", "answer": "2"}', r'2: question=" ": it must be text'),
    (b'{"question": "x", "answer": "2", "format": "box"}', r"2: format=box: did you mean 'boxed'"),
    (b'{"question": "x", "answer": "2", "format": ["boxed"]}', r"2: format=\['boxed'\]: did you mean 'boxed'"),
    (b'{"question": "' + b"x" * (LONGEST_QUESTION + 1) + b'", "answer": "2"}', r"2: the question has 1,000,001 char"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_line_is_named_with_file_and_line(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    for read in (read_questions, check_questions):
        with pytest.raises(UserError) as caught:
            read(path, "boxed")
        assert re.search(rf"{re.escape(str(path))}:{message}", str(caught.value)), str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


def test_a_cell_is_refused_before_anything_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "questions.jsonl"
    benchmark = "+evaluation.benchmarks.Mine={kind:sampled,group:math,task:marked,items:1,dataset:questions.jsonl}"
    for content, message in ((GOOD + b"{}", "questions.jsonl:2: "), (b"\n \n", "it has no questions")):
        path.write_bytes(content)
        for override in ("grpo.tasks=[questions.jsonl]", benchmark):
            with pytest.raises(UserError, match=message):
                compose_cell([override])
        # RL does not run, so its questions are not read.
        assert compose_cell(["grpo.tasks=[questions.jsonl]", "until=midtrain"]).until == "midtrain"
    path.write_text("".join(json.dumps({"question": f"{i}+1", "answer": i + 1}) + "\n" for i in range(100)))
    assert compose_cell(["grpo.tasks=[questions.jsonl]", benchmark]).grpo.tasks == ["questions.jsonl"]
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="no such file"):
        compose_cell(["grpo.tasks=[questions.jsonl]"])


@pytest.mark.parametrize(("question", "answer", "fits"), [("12345", "1", True), ("123456", "1", False),
                                                         ("1", "1234567", True), ("1", "12345678", False)])  # fmt: skip
def test_a_text_may_have_as_many_characters_as_the_limit(
    monkeypatch: pytest.MonkeyPatch, question: str, answer: str, fits: bool
) -> None:
    monkeypatch.setattr(question_files, "LONGEST_QUESTION", 5)
    monkeypatch.setattr(question_files, "LONGEST_ANSWER", 7)
    row = {"question": question, "answer": answer}
    if fits:
        assert question_files.checked_question(row, "a.jsonl:1", "boxed")[:2] == (question, answer)
    else:
        with pytest.raises(
            UserError, match=r"^a\.jsonl:1: the (question|answer) has [68] characters; it may have [57];"
        ):
            question_files.checked_question(row, "a.jsonl:1", "boxed")
