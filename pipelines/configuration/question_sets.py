"""Sets of questions for RL that `shaping-data questions` makes into files: where they are, and their columns."""

import os
from dataclasses import dataclass

from omegaconf import MISSING

from pipelines.errors import require, require_option

QUESTION_KINDS = ("hub", "jsonl", "parquet")
ANSWER_FORMATS = ("auto", "hashes", "boxed", "text")
LOCAL_SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".json": "jsonl", ".gz": "jsonl", ".zst": "jsonl"}
"""Suffix of a path -> the kind of a set that names none; every other path is a name on the Hub."""


@dataclass
class QuestionSetConfig:
    """A set of questions with answers that can be verified, and how its records are read."""

    path: str = MISSING
    """Name of a data set on the Hub; or a file, a glob of files or a folder."""
    kind: str | None = None
    """`hub`, `jsonl` or `parquet`; null: by the suffix of the path, without one of theirs `hub`."""
    subset: str | None = None
    """Configuration of the data set (`hub`); null: its default."""
    split: str = "train"
    """Split of the data set (`hub`)."""
    revision: str | None = None
    """Commit of the data set (`hub`); null: the newest."""
    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the answer, or of a solution that contains it."""
    answer_format: str = "auto"
    """Where the answer is in its column: `hashes`, after the last ####; `boxed`, in the last \\boxed{}; `text`, all
    of it; `auto`, the first of these that there is."""
    difficulty: str | None = None
    """Column with the difficulty: a number, or text with one, such as "Level 3"; null: none."""
    difficulty_low: float | None = None
    """Only questions of at least this difficulty are taken; null: all."""
    difficulty_high: float | None = None
    """Only questions of at most this difficulty are taken; null: all."""

    @property
    def fields(self) -> list[str]:
        """The columns that are read."""
        return [self.question, self.answer, *([self.difficulty] if self.difficulty else [])]

    def check(self, key: str) -> None:
        """Raise `UserError` for an impossible value; `key` is that of the set."""
        if self.kind is None:
            self.kind = LOCAL_SUFFIXES.get(os.path.splitext(self.path)[1], "hub")
        require_option(f"{key}.kind", self.kind, QUESTION_KINDS)
        require_option(f"{key}.answer_format", self.answer_format, ANSWER_FORMATS)
        bounds = self.difficulty_low, self.difficulty_high
        require(
            self.difficulty is not None or bounds == (None, None),
            f"{key}.difficulty",
            "null",
            fix="bounds on the difficulty need its column",
        )
        require(
            None in bounds or bounds[0] <= bounds[1],  # type: ignore[operator]
            f"{key}.difficulty_low",
            self.difficulty_low,
            fix=f"it must be at most {key}.difficulty_high={self.difficulty_high}",
        )
