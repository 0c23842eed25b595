"""Files of questions: JSON lines or Parquet, read and checked in one place. Loads no torch.

A line is {"question": TEXT, "answer": TEXT or a number, "format": a name of `FORMATS`}; the format may be left out, and
blank lines are passed over. A Parquet file has these as columns. A file is checked when a cell is composed and read
again when its questions are asked.
"""

import json
import math
import numbers
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.errors import UserError, require_option
from pipelines.tasks.formats import FORMATS

LONGEST_QUESTION = 1_000_000
"""Characters of a question."""
LONGEST_ANSWER = 10_000_000
"""Characters of an answer, which may be the tests of a program."""
FIELDS = "question", "answer"


class QuestionLine(NamedTuple):
    """One line of a file of questions."""

    question: str
    answer: str
    format: str


def read_questions(path: str | Path, default_format: str) -> list[QuestionLine]:
    """Returns the distinct questions of a file in its order; of equal questions the first one.

    A line without a format has `default_format`. Raises `UserError`, with file and line, for a line that is no question
    and for a file without questions.
    """
    questions: dict[str, QuestionLine] = {}
    for position, row in _rows(Path(path)):
        line = checked_question(row, position, default_format)
        questions.setdefault(line.question, line)
    if not questions:
        raise UserError(f'{path}: it has no questions; give it lines such as {{"question": "1+1?", "answer": "2"}}')
    return list(questions.values())


def check_questions(path: str | Path, default_format: str) -> None:
    """Raise `UserError` as `read_questions` does; a file that has not changed since is not read again."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise _unreadable(Path(path), error) from error
    _check_version(str(path), default_format, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))


@lru_cache(maxsize=256)
def _check_version(path: str, default_format: str, version: tuple[int, ...]) -> None:
    read_questions(path, default_format)


def file_formats(path: str | Path, default_format: str) -> list[str]:
    """Returns the names of the formats in which the questions of a file are asked."""
    return list(dict.fromkeys(line.format for line in read_questions(path, default_format)))


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: it cannot be read ({error.strerror}); name a file that can")


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a file, each with its position."""
    if path.suffix == ".parquet":
        import pandas as pd

        try:
            frame = pd.read_parquet(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: it is no Parquet file ({reason}); write it again, or as JSON lines") from error
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(frame.to_dict("records"), start=1))
        return
    try:
        with path.open("rb") as file:
            # Lines end with a newline only: JSON may contain other characters at which Python splits lines.
            for number, line in enumerate(file, start=1):
                if text := _text(line, f"{path}:{number}"):
                    yield f"{path}:{number}", _json(text, f"{path}:{number}")
    except OSError as error:
        raise _unreadable(path, error) from error


def _text(line: bytes, position: str) -> str:
    try:
        return line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        fix = "save the file as UTF-8"
        raise UserError(f"{position}: it is not UTF-8 ({error.reason} at byte {error.start}); {fix}") from error


def _json(text: str, position: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        shape = 'a line is a JSON object with "question" and "answer", and perhaps "format"'
        raise UserError(f"{position}: it is not JSON ({error}); {shape}") from None


def checked_question(row: Any, position: str, default_format: str) -> QuestionLine:
    """Returns the question of a row; raises `UserError`, with its position, for one that is no question."""
    if not isinstance(row, dict) or any(name not in row for name in FIELDS):
        raise UserError(f'{position}: a line is a JSON object with "question" and "answer", and perhaps "format"')
    question, answer, form = row["question"], row["answer"], row.get("format")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{position}: question={_shown(question)}: it must be text; write it in quotes")
    if isinstance(answer, numbers.Real) and not isinstance(answer, bool) and math.isfinite(answer):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(f"{position}: answer={_shown(answer)}: it must be text or a number; give the answer")
    if form is None or form != form or form == "":  # Parquet has NaN where there is no value
        form = default_format
    require_option(f"{position}: format", str(form), FORMATS)
    for name, text, longest in (("question", question, LONGEST_QUESTION), ("answer", answer, LONGEST_ANSWER)):
        if len(text) > longest:
            fix = f"it may have {longest:,}; shorten it or leave the line out"
            raise UserError(f"{position}: the {name} has {len(text):,} characters; {fix}")
        if surrogate := next((character for character in text if "\ud800" <= character <= "\udfff"), None):
            fix = "write the character as UTF-8 or as a pair of escapes"
            raise UserError(f"{position}: the {name} has half a character, \\u{ord(surrogate):04x}; {fix}")
    return QuestionLine(question, answer, str(form))


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}..."
