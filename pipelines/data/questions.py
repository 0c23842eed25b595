"""What RL asks: data sets of problems, each with the way it is put, read and verified.

A data set is a family of the corpus (generated tasks, `gym_` families among them) or a file of JSON lines. How a
question becomes a prompt, where a response's answer is found and which verifier judges it stand in
`pipelines.tasks.formats`, as data. Problems are split by a hash of the question, so the ones that are held out are
never trained on.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.data.corpus import Corpus
from pipelines.errors import UserError, nearest
from pipelines.tasks.families import Problem, split_of
from pipelines.tasks.formats import FORMATS

FILE = ".jsonl"
"""Ending of the names in `grpo.tasks` that are files."""


TESTED = {"program": "for x in range(-20, 21):\n    assert f(x) == ({answer}), x"}
"""Families whose answers are programs, with the tests that stand in for equality: any program that passes is right."""


@dataclass(frozen=True)
class Question:
    """A problem as RL asks it."""

    task: str
    """The data set it comes from."""
    question: str
    reference: str
    """What the verifier compares with: the answer, or the tests of a program."""
    format: str

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return FORMATS[self.format].prompt.format(question=self.question)

    def judged(self, response: str) -> tuple[str, str | None, str]:
        """The item for `Judge.rewards` that a response to this question makes."""
        form = FORMATS[self.format]
        answer = form.extract(response)
        return form.verifier, answer and form.judged.replace("{answer}", answer), self.reference


def load_items(task: str, dataset: str | None, corpus: Corpus, count: int) -> list[Question]:
    """The first `count` questions of a benchmark, in a fixed order: of a family's test split, or of a local file, asked
    in the format `task` where a line names no other.

    Raises `UserError` where a file's line is not as it should be, or where there are none.
    """
    if dataset is not None:
        found = _read(Path(dataset), task)[:count]
    elif task in TESTED:
        found = [_tested(task, problem) for problem in corpus.problems(task, "test", count)]
    else:
        found = [Question(task, p.question, p.answer, "marked") for p in corpus.problems(task, "test", count)]
    if not found:
        raise UserError(f"{dataset or task}: it has no questions to measure with; give it more")
    return found


def _tested(task: str, problem: Problem) -> Question:
    return Question(task, problem.question, TESTED[task].replace("{answer}", problem.answer), "program")


def load_questions(task: str, split: str, corpus: Corpus) -> list[Question]:
    """The questions of a data set in one split (`rl` to train on, `validation` to hold out), in a fixed order.

    Raises `UserError` where a file's line is not as it should be, or where there are none.
    """
    if task.endswith(FILE):
        found = [q for q in _read(Path(task)) if _file_split(q.question) == split]
    else:
        problems = corpus.problems(task, split)
        if task in TESTED:
            found = [_tested(task, problem) for problem in problems]
        else:
            found = [Question(task, p.question, p.answer, "marked") for p in problems]
    if not found:
        raise UserError(f"grpo.tasks={task}: it has no questions in the split {split!r}; give it more")
    return found


def _file_split(question: str) -> str:
    """A file is for RL alone: all but the validation questions are trained on."""
    return "validation" if split_of(question) == "validation" else "rl"


def _read(path: Path, usual: str = "boxed") -> list[Question]:
    """Lines {"question": ..., "answer": ..., "format": one of `FORMATS`, `usual` if absent}, equal questions once.

    A Parquet file has these as columns.
    """
    questions: dict[str, Question] = {}
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line) if isinstance(line, str) else line
            question, answer, form = str(row["question"]), str(row["answer"]), row.get("format") or usual
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f'{path}:{number}: a line is a JSON object with "question" and "answer", and perhaps "format"'
            ) from None
        if form not in FORMATS:
            raise UserError(f"{path}:{number}: format={form}: {nearest(form, FORMATS)}")
        questions.setdefault(question, Question(str(path), question, answer, form))
    return list(questions.values())


def _lines(path: Path) -> list[Any]:
    """Lines of a JSON-lines file, or rows of a Parquet file."""
    if path.suffix == ".parquet":
        import pandas as pd

        return list(pd.read_parquet(path).to_dict("records"))
    return list(path.read_text().splitlines())


def contamination(questions: Iterable[Question], corpus: Corpus, families: Sequence[str]) -> float:
    """Share of `questions` that mid-training also shows: equal to a training question of `families`, or in the text.

    Compared with letter case and white space taken away. Short questions are looked for among questions alone, since
    any text holds them by chance.
    """
    seen = {_plain(problem.question) for family in families for problem in corpus.problems(family, "train")}
    text = "\n".join(_plain(document.text) for document in corpus.documents("train"))
    asked = [_plain(question.question) for question in questions]
    return sum(q in seen or (len(q) >= SHORTEST and q in text) for q in asked) / max(1, len(asked))


SHORTEST = 30
"""Characters from which on a question found inside a text is taken for the same question."""


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", text).lower()
