"""Sets of questions of plugins, which benchmarks of the kind `sampled` name as their task."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipelines.errors import UserError
from pipelines.processes import time_limit
from pipelines.tasks.question_files import QuestionLine, checked_question

READ_SECONDS = 60
"""Limit on the time in which a plugin returns its questions."""


@dataclass(frozen=True)
class QuestionSet:
    """A function that returns (question, answer) pairs, and the format in which they are asked."""

    questions: Callable[[], Iterable[Any]]
    format: str
    source: str | None = None
    """Version or hash of its code."""

    def read(self, name: str) -> list[QuestionLine]:
        """Returns the distinct questions. Raises `UserError`, with their number, for what is no question."""
        try:
            with time_limit(READ_SECONDS):
                pairs = list(self.questions())
        except TimeoutError as error:
            raise UserError(f"benchmark {name}: its function takes more than {READ_SECONDS} s; mend it") from error
        except Exception as error:
            raise UserError(
                f"benchmark {name}: its function raised {type(error).__name__}: {error}; mend it"
            ) from error
        questions: dict[str, QuestionLine] = {}
        for number, pair in enumerate(pairs, start=1):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise UserError(f"benchmark {name}: item {number} is {pair!r:.40}; return (question, answer) pairs")
            row = {"question": pair[0], "answer": pair[1]}
            line = checked_question(row, f"benchmark {name}: item {number}", self.format)
            questions.setdefault(line.question, line)
        if not questions:
            raise UserError(f"benchmark {name}: its function returns no questions; return (question, answer) pairs")
        return list(questions.values())


QUESTION_SETS: dict[str, QuestionSet] = {}
"""Name -> set; only plugins have any."""
