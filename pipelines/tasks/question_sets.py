"""Benchmarks of plugins, which those of the same kind name as their task: questions, choices, and held-out texts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.errors import UserError
from pipelines.processes import time_limit
from pipelines.tasks.question_files import QuestionLine, checked_question

READ_SECONDS = 60
"""Limit on the time in which a plugin returns its items."""


@dataclass(frozen=True)
class QuestionSet:
    """A function that returns (question, answer) pairs, and the format in which they are asked."""

    items: Callable[[], Iterable[Any]]
    format: str
    source: str | None = None
    """Version or hash of its code."""

    def read(self, name: str) -> list[QuestionLine]:
        """Returns the distinct questions. Raises `UserError`, with their number, for what is no question."""
        questions: dict[str, QuestionLine] = {}
        for number, pair in enumerate(_returned(self.items, name, "(question, answer) pairs"), start=1):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise UserError(f"benchmark {name}: item {number} is {pair!r:.40}; return (question, answer) pairs")
            row = {"question": pair[0], "answer": pair[1]}
            line = checked_question(row, f"benchmark {name}: item {number}", self.format)
            questions.setdefault(line.question, line)
        return list(questions.values())


class Choices(NamedTuple):
    """A beginning, its continuations, and the index of the right one."""

    beginning: str
    continuations: list[str]
    right: int


@dataclass(frozen=True)
class ChoiceSet:
    """A function that returns (beginning, continuations, index of the right one) for each question."""

    items: Callable[[], Iterable[Any]]
    source: str | None = None
    """Version or hash of its code."""

    def read(self, name: str) -> list[Choices]:
        """Returns the questions. Raises `UserError`, with its number, for what is none."""
        fix = "return (beginning, continuations, index of the right one), at least two continuations that differ"
        items = _returned(self.items, name, fix.removeprefix("return "))
        for number, item in enumerate(items, start=1):
            if not _is_choice(item):
                raise UserError(f"benchmark {name}: item {number} is {item!r:.60}; {fix}")
        return [Choices(beginning, list(continuations), right) for beginning, continuations, right in items]


def _is_choice(item: Any) -> bool:
    if not isinstance(item, tuple | list) or len(item) != 3:
        return False
    beginning, continuations, right = item
    return (
        isinstance(beginning, str)
        and isinstance(continuations, tuple | list)
        and all(isinstance(text, str) and text for text in continuations)
        and len(set(continuations)) == len(continuations) >= 2
        and type(right) is int
        and 0 <= right < len(continuations)
    )


@dataclass(frozen=True)
class TextSet:
    """A function that returns held-out texts."""

    items: Callable[[], Iterable[Any]]
    source: str | None = None
    """Version or hash of its code."""

    def read(self, name: str) -> list[str]:
        """Returns the texts. Raises `UserError`, with its number, for what is no text."""
        texts = _returned(self.items, name, "texts")
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"benchmark {name}: item {number} is {text!r:.40}; return texts that are not empty")
        return texts


def _returned(items: Callable[[], Iterable[Any]], name: str, what: str) -> list[Any]:
    """What a plugin's function returns, of which there is something."""
    try:
        with time_limit(READ_SECONDS):
            returned = list(items())
    except TimeoutError as error:
        raise UserError(f"benchmark {name}: its function takes more than {READ_SECONDS} s; mend it") from error
    except Exception as error:
        raise UserError(f"benchmark {name}: its function raised {type(error).__name__}: {error}; mend it") from error
    if not returned:
        raise UserError(f"benchmark {name}: its function returns no items; return {what}")
    return returned


QUESTION_SETS: dict[str, QuestionSet] = {}
CHOICE_SETS: dict[str, ChoiceSet] = {}
TEXT_SETS: dict[str, TextSet] = {}
SETS: dict[str, dict[str, Any]] = {"sampled": QUESTION_SETS, "choice": CHOICE_SETS, "text": TEXT_SETS}
"""Kind of a benchmark -> name -> set; only plugins have any."""


def plugin_set(kind: str, task: str) -> QuestionSet | ChoiceSet | TextSet | None:
    """Returns the plugin's set that a benchmark of this kind names as its task; None if it is no plugin's."""
    return SETS.get(kind, {}).get(task)
