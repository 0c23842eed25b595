"""Makes files of questions for RL out of data sets: columns, answers, difficulty, and no question that is measured.

`FOLDER/NAME.jsonl` has the questions in the form of `pipelines.tasks.question_files`, and `FOLDER/NAME.report.json`
says what was left out. Loads no torch.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.configuration.data import SourceConfig
from pipelines.configuration.grpo import GRPOConfig
from pipelines.configuration.question_sets import QuestionSetConfig
from pipelines.data.compressed_files import opened
from pipelines.data.contamination import shared
from pipelines.data.sources import encodable, parts_of, records_of
from pipelines.errors import StageFailure, UserError
from pipelines.files import replacing, sha256, write_json
from pipelines.tasks.judging import QUESTION_FORMAT
from pipelines.verifiers.answer_text import last_boxed

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass
class _Columns(SourceConfig):
    """The columns of a set as a source, whose documents are not used."""

    names: dict[str, str] = field(default_factory=dict)
    """Column -> the key that names it."""

    def setting(self, field: str) -> str:
        """The key and value that name a column."""
        return f"{self.names[field]}={field}"


@dataclass
class Counts:
    """What became of the records of a set."""

    records: int = 0
    without: int = 0
    """Records without a question, or without an answer in the form that is looked for."""
    repeated: int = 0
    difficulty: int = 0
    """Questions outside the bounds on the difficulty, or without one."""
    measured: dict[str, int] = field(default_factory=dict)
    """Questions that an evaluation set contains, by its name; one in several sets counts in each."""
    kept: int = 0


def prepare_questions(config: GRPOConfig, evaluation_texts: Mapping[str, Sequence[str]]) -> dict[str, Counts]:
    """Make the file of every set of `grpo.questions`; returns the counts of each.

    Questions that share 13 words in a row with a text of `evaluation_texts`, by the name of its set, are left out;
    those of 5 to 12 words, if a text contains them whole. Raises `UserError` or `StageFailure` for a set that cannot be
    read or has no question with an answer; one exception has a sentence for each, and no file is made then.
    """
    if not config.questions:
        raise UserError("grpo.questions={}: there are no sets to prepare; choose grpo=small, or name some")
    made: dict[str, tuple[list[dict[str, str]], Counts]] = {}
    problems: list[Exception] = []
    for name, questions in config.questions.items():
        try:
            made[name] = _questions(name, questions, evaluation_texts)
        except (UserError, StageFailure) as problem:
            problems.append(problem)
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))
    for name, (lines, counts) in made.items():
        path = Path(config.question_files[name])
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        report = {"set": vars(config.questions[name]), **vars(counts), "searched": sorted(evaluation_texts)}
        report["sha256"] = sha256(path)
        write_json(path.with_suffix(".report.json"), report, key="grpo.questions_folder")
    return {name: counts for name, (_, counts) in made.items()}


def _questions(
    name: str, questions: QuestionSetConfig, evaluation_texts: Mapping[str, Sequence[str]]
) -> tuple[list[dict[str, str]], Counts]:
    """The lines of the file of one set, and the counts."""
    counts = Counts()
    found: dict[str, str] = {}
    for question, answer, difficulty in _records(name, questions):
        counts.records += 1
        reference = extracted(answer, questions.answer_format)
        if not isinstance(question, str) or not question.strip() or reference is None:
            counts.without += 1
        elif not _is_within(difficulty, questions):
            counts.difficulty += 1
        elif encodable(question) in found:
            counts.repeated += 1
        else:
            found[encodable(question)] = encodable(reference)
    if counts.records == counts.without:
        raise UserError(
            f"grpo.questions.{name}.answer={questions.answer}: none of the {counts.records} records of "
            f"{questions.path} has a question with an answer of the format {questions.answer_format!r}; correct the "
            f"columns or grpo.questions.{name}.answer_format"
        )
    # Each evaluation set is searched on its own, so that the report says which one has the questions.
    left_out: set[int] = set()
    texts = list(found)
    for evaluation, of_evaluation in evaluation_texts.items():
        matches = [index for index, is_shared in enumerate(shared(texts, of_evaluation)) if is_shared]
        counts.measured[evaluation] = len(matches)
        left_out.update(matches)
    lines = [
        {"question": question, "answer": answer, "format": QUESTION_FORMAT}
        for index, (question, answer) in enumerate(found.items())
        if index not in left_out
    ]
    counts.kept = len(lines)
    if not lines:
        raise UserError(
            f"grpo.questions.{name}.path={questions.path}: no question is left after the bounds on the difficulty and "
            "the evaluation sets; widen grpo.questions.*.difficulty_low and difficulty_high, or name another set"
        )
    return lines, counts


def _records(name: str, questions: QuestionSetConfig) -> Iterator[tuple[Any, Any, Any]]:
    """Question, answer and difficulty of each record of a set."""
    names = {questions.question: "question", questions.answer: "answer"}
    if questions.difficulty:
        names[questions.difficulty] = "difficulty"
    source = _Columns(
        kind=str(questions.kind),
        path=questions.path,
        subset=questions.subset,
        split=questions.split,
        revision=questions.revision,
        template="".join(f"{{{column}}}" for column in names),
        names=names,
    )
    for part in parts_of(name, source, "grpo.questions"):
        for position, record in records_of(part):
            if not isinstance(record, dict):
                raise StageFailure(f"{part.path}: {position} is no record with columns; correct it")
            difficulty = record.get(questions.difficulty) if questions.difficulty else None
            yield record.get(questions.question), record.get(questions.answer), difficulty


def extracted(answer: Any, form: str) -> str | None:
    """Returns the answer in a column, or None if there is none in this form (see `QuestionSetConfig.answer_format`).

    Separators of thousands are left out of the number after ####, as GSM8K writes them.
    """
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return None
    text = str(answer).strip()
    if form == "hashes" or (form == "auto" and "####" in text):
        _, mark, after = text.rpartition("####")
        text = _THOUSANDS.sub("", after.split("\n", 1)[0].strip()) if mark else ""
    elif form == "boxed" or (form == "auto" and last_boxed(text) is not None):
        text = last_boxed(text) or ""
    return text or None


def _is_within(difficulty: Any, questions: QuestionSetConfig) -> bool:
    """Whether a difficulty is within the bounds of a set; without bounds every one is."""
    low, high = questions.difficulty_low, questions.difficulty_high
    if low is None and high is None:
        return True
    number = _NUMBER.search(str(difficulty))
    if number is None:
        return False
    value = float(number.group())
    return (low is None or value >= low) and (high is None or value <= high)


def texts_of_file(path: str) -> list[str]:
    """Returns each record of a JSON-lines or Parquet file of an evaluation set as one text: its strings in a row."""
    texts = []
    for record in _whole_records(path):
        values = record.values() if isinstance(record, dict) else [record]
        texts.append("\n".join(value for value in values if isinstance(value, str)))
    return texts


def _whole_records(path: str) -> Iterator[Any]:
    if path.endswith(".parquet"):
        import pandas as pd

        yield from pd.read_parquet(path).to_dict("records")
        return
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                if not line.isspace():
                    yield json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: it is not JSON ({error}); correct the line") from error
