"""What RL asks: data sets of problems, each with the way it is put, read and verified.

A data set is a family of the corpus (generated tasks, `gym_` families among them) or a file of JSON lines. How a
question becomes a prompt, where a response's answer is found and which verifier judges it stand in `FORMATS`, as data.
Problems are split by a hash of the question, so the ones that are held out are never trained on.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.data import Corpus
from pipelines.errors import UserError, nearest
from pipelines.tasks import split_of
from pipelines.verifiers import VERIFIERS

FILE = ".jsonl"
"""Ending of the names in `grpo.tasks` that are files."""


@dataclass(frozen=True)
class Format:
    """How a problem is put, read and verified."""

    prompt: str
    """The prompt; `{question}` stands for the question."""
    answer: str
    """A regular expression; the first group of its last match in the response is the answer."""
    verifier: str
    """`exact`, or a name of `pipelines.verifiers.VERIFIERS`."""
    judged: str = "{answer}"
    """What the verifier is given; `{answer}` stands for the answer."""

    def extract(self, response: str) -> str | None:
        """The answer in a response, stripped, or None."""
        found = None
        for match in re.finditer(self.answer, response):
            found = match.group(1).strip()
        return found


FORMATS: dict[str, Format] = {
    "marked": Format("Q: {question}\nA:", r"####([^\n#]*)(?=\n|$)", "exact"),
    "boxed": Format(
        "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.\n",
        r"(?s)(?:.*</think>)?(.*\\boxed.*)$",
        "math",
    ),
    "python": Format("{question}\nWrite the program between ```python and ```.\n", r"(?s)```python\n(.*?)```", "code"),
    "program": Format("Q: {question}\nA:", r"####([^\n#]*)(?=\n|$)", "code", "f = lambda x: {answer}"),
}
"""Name -> format. `marked` is how the corpus writes its tasks. Adding one is adding a line."""

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


def load_questions(task: str, split: str, corpus: Corpus) -> list[Question]:
    """The questions of a data set in one split (`rl` to train on, `validation` to hold out), in a fixed order.

    Raises `UserError` where a file's line is not as it should be, or where there are none.
    """
    if task.endswith(FILE):
        found = [q for q in _read(Path(task)) if _file_split(q.question) == split]
    else:
        problems = corpus.problems(task, split)
        if task in TESTED:
            found = [
                Question(task, p.question, TESTED[task].replace("{answer}", p.answer), "program") for p in problems
            ]
        else:
            found = [Question(task, p.question, p.answer, "marked") for p in problems]
    if not found:
        raise UserError(f"grpo.tasks={task}: it has no questions in the split {split!r}; give it more")
    return found


def _file_split(question: str) -> str:
    """A file is for RL alone: all but the validation questions are trained on."""
    return "validation" if split_of(question) == "validation" else "rl"


def _read(path: Path) -> list[Question]:
    """Lines {"question": ..., "answer": ..., "format": one of `FORMATS`, `boxed` if absent}, equal questions once."""
    questions: dict[str, Question] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            question, answer, form = str(row["question"]), str(row["answer"]), row.get("format", "boxed")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f'{path}:{number}: a line is a JSON object with "question" and "answer", and perhaps "format"'
            ) from None
        if form not in FORMATS:
            raise UserError(f"{path}:{number}: format={form}: {nearest(form, FORMATS)}")
        questions.setdefault(question, Question(str(path), question, answer, form))
    return list(questions.values())


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


assert all(form.verifier == "exact" or form.verifier in VERIFIERS for form in FORMATS.values())
