"""The questions that RL asks and evaluations measure: problems with the format of their prompt and answer.

A data set is a task family of the corpus or a file of questions. `pipelines.tasks.formats` has the formats: how a
question becomes a prompt, how the answer is extracted from a response, and which verifier judges it.
Questions are split by hash, so held-out ones are never trained on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.configuration.grpo import QUESTION_FILE
from pipelines.data.corpus import Corpus
from pipelines.data.selection import evenly
from pipelines.errors import UserError
from pipelines.tasks.families import Problem, split_of
from pipelines.tasks.formats import FORMATS
from pipelines.tasks.judging import QUESTION_FORMAT, conversation
from pipelines.tasks.question_files import read_questions
from pipelines.tasks.question_sets import QUESTION_SETS
from pipelines.verifiers.registry import VERIFIERS

SHORTEST = 30
"""Questions with fewer characters are not searched in text, which contains them by chance."""


@dataclass(frozen=True)
class Question:
    """A problem in the form in which a model is asked it."""

    task: str
    """The data set that it comes from."""
    question: str
    reference: str
    """What the verifier compares with: the answer, or the tests of a program."""
    format: str
    """A name of `FORMATS`."""

    @property
    def prompt(self) -> str:
        """The text that the model is given."""
        return FORMATS[self.format].prompt.format(question=self.question)

    def judged(self, response: str, *, complete: bool = True) -> tuple[str, str | None, str]:
        """Returns the item for `Judge.rewards`: verifier, answer in the response (None if there is none), reference.

        A response that is not `complete`, because the length limit cut it, has no answer.
        """
        form = FORMATS[self.format]
        if VERIFIERS[form.verifier].reads == "conversation":
            return form.verifier, conversation(self.question, response) if complete else None, self.reference
        answer = form.extract(response) if complete else None
        return form.verifier, answer and form.judged.replace("{answer}", answer), self.reference


def load_items(corpus: Corpus, task: str, *, count: int, dataset: str | None = None) -> list[Question]:
    """Returns at most `count` questions of a benchmark, in a fixed order.

    They are the first ones of the test split of the family `task`, which is in random order, or drawn evenly from the
    file `dataset`, whose lines have the format `task` unless they name another, or from the plugin's set `task`. Raises
    `UserError` for an invalid line, or if there are no questions.
    """
    if dataset is not None or task in QUESTION_SETS:
        questions = _read(Path(dataset), task) if dataset is not None else _of_set(task)
        questions = [questions[i] for i in evenly(len(questions), count)]
    else:
        questions = [_question(task, problem) for problem in corpus.problems(task, "test", count)]
    if not questions:
        raise UserError(f"{dataset or task}: it has no questions to measure; give it more")
    return questions


def available_items(corpus: Corpus, task: str, dataset: str | None = None) -> int:
    """Returns how many questions a benchmark has; see `load_items`."""
    if dataset is None and task in QUESTION_SETS:
        return len(_of_set(task))
    return len(corpus.problems(task, "test") if dataset is None else _read(Path(dataset), task))


def load_questions(task: str, split: str, corpus: Corpus) -> list[Question]:
    """Returns the questions of a data set in one split, in a fixed order: `rl` to train on, `validation` to hold out.

    Raises `UserError` for an invalid line of a file, or if there are no questions.
    """
    if task.endswith(QUESTION_FILE):
        questions = [
            question for question in _read(Path(task), QUESTION_FORMAT) if _file_split(question.question) == split
        ]
    else:
        questions = [_question(task, problem) for problem in corpus.problems(task, split)]
    if not questions:
        raise UserError(f"grpo.tasks={task}: it has no questions in the split {split!r}; give it more")
    return questions


def _of_set(name: str) -> list[Question]:
    """The questions of a plugin's set."""
    return [Question(name, line.question, line.answer, line.format) for line in QUESTION_SETS[name].read(name)]


def _question(task: str, problem: Problem) -> Question:
    return Question(task, problem.question, problem.reference, problem.format)


def _file_split(question: str) -> str:
    """The split of a question in a file. Files are only for RL, so every split but validation is trained on."""
    return "validation" if split_of(question) == "validation" else "rl"


def _read(path: Path, default_format: str) -> list[Question]:
    """The distinct questions of a JSON-lines or Parquet file, in the form of `pipelines.tasks.question_files`."""
    return [
        Question(str(path), line.question, line.answer, line.format) for line in read_questions(path, default_format)
    ]


def contamination(questions: Sequence[Question], corpus: Corpus, families: Sequence[str]) -> float | None:
    """Returns the share of `questions` that are in the training data; None if that was not measured.

    A question is in it if it equals a training question of `families` or occurs in the training text, ignoring case and
    white space. Questions of fewer than `SHORTEST` characters are only compared with questions.

    It is not measured without questions, nor with token shards: they are too large to be searched for text at the end
    of a stage run. `shaping-sweeps contamination` streams them.
    """
    if corpus.sharded or not questions:
        return None
    training_questions = {
        _normalised(problem.question) for family in families for problem in corpus.problems(family, "train")
    }
    training_text = "\n".join(_normalised(document.text) for document in corpus.documents("train"))
    searched = [_normalised(question.question) for question in questions]
    matches = sum(q in training_questions or (len(q) >= SHORTEST and q in training_text) for q in searched)
    return matches / len(searched)


def _normalised(text: str) -> str:
    return re.sub(r"\s+", "", text).lower()
