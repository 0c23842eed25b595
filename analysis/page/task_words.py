"""Tasks in words, and the answers that their questions expect."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.tasks.families import FAMILIES, MARK

COUNTS = {3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}


def task_in_words(task: str) -> str:
    """Returns what a task of ours asks, in a sentence; empty for one that is not known here."""
    if task not in FAMILIES:
        return ""
    generate = FAMILIES[task].generate
    # A chain's generator is the same function for every length.
    words = (getattr(generate, "func", generate).__doc__ or "").partition("\n")[0].replace("`", "")
    length = chain_length(task)
    if length and length != 3:  # the example in the docstring has three terms
        words = words.partition(":")[0] + "."
    return f"A chain of {COUNTS.get(length, length)} terms: {words[:1].lower()}{words[1:]}" if length else words


def chain_length(task: str) -> int:
    """Returns the number of terms of a chain's questions; 0 for another task."""
    found = re.fullmatch(r"chain(\d+)", task)
    return int(found[1]) if found and task in FAMILIES else 0


def expected_answer(question: str, rows: Iterable[Mapping[str, Any]], tasks: Iterable[str]) -> str:
    """Returns what a question expects: the answer of a right sample, or a chain's total; empty if neither is known.

    `rows` are samples of the question, `tasks` those that it may be from.
    """
    for row in rows:
        if row["right"]:
            answer = row.get("answer") or (
                str(row["response"]).rpartition(MARK)[2] if MARK in str(row["response"]) else ""
            )
            if str(answer).strip():
                return str(answer).strip()
    names = list(tasks)
    if names and all(map(chain_length, names)) and re.fullmatch(r"\d+([+-]\d+)*", question):
        return str(sum(map(int, re.findall(r"[+-]?\d+", question))))
    return ""
