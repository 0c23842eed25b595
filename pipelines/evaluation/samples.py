"""The sampled answers of an evaluation: one JSON object a line, compressed; every metric follows from them. No torch.

A row is one sample: `benchmark`, `item` (its place in the benchmark), `prompt` (hash of what the model was given),
`question`, `response`, `answer` (what was extracted, null where nothing was), `vote` (equal answers of an item, as the
verifier sees equality, have equal numbers; null where the answer does not vote), `reward`, `log_prob` (of the whole
response, nats, as it was sampled), `length` (tokens) and `finish` (`stop`, or `length` where the limit cut).
"""

import gzip
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluation.metrics import Estimate, sampled_metrics
from pipelines.verifiers import VERIFIERS, Judge

SAMPLES = "samples.jsonl.gz"

Sample = dict[str, Any]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows to a compressed file that appears whole or not at all; the same rows make the same bytes."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")
    beside.rename(path)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of such a file."""
    with gzip.open(path, "rt") as file:
        yield from map(json.loads, file)


def prompt_hash(prompt: str) -> str:
    """What tells whether two samples answer the same prompt."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


Judged = tuple[str, str | None, str]
"""Verifier, answer or None, and reference, as `Judge.rewards` takes them."""


def sample_rows(
    asked: Sequence[tuple[str, str]],
    responses: Sequence[str],
    judged: Sequence[Judged],
    judge: Judge,
    log_probs: Sequence[float],
    lengths: Sequence[int],
    stopped: Sequence[bool],
    first: int,
) -> list[Sample]:
    """The rows, less the benchmark's name, of n samples for each of `asked`, (prompt, question); item by item.

    All items have one verifier, or each run of items one. `first` is the number of the first item.
    """
    n = len(responses) // len(asked)
    verdicts = judge.rewards(judged)
    votes: list[int | None] = []
    for begin, end in _runs([name for name, _, _ in judged[::n]]):
        table = [[answer for _, answer, _ in judged[i * n : (i + 1) * n]] for i in range(begin, end)]
        votes += [vote for row in cast_votes(table, judged[begin * n][0], judge) for vote in row]
    return [
        {
            "item": first + i // n,
            "prompt": prompt_hash(asked[i // n][0]),
            "question": asked[i // n][1],
            "response": response,
            "answer": judged[i][1],
            "vote": votes[i],
            "reward": verdicts[i].reward,
            "log_prob": round(log_probs[i], 4),
            "length": lengths[i],
            "finish": "stop" if stopped[i] else "length",
        }
        for i, response in enumerate(responses)
    ]


def _runs(verifiers: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of the runs of equal verifiers."""
    begin = 0
    for end in range(1, len(verifiers) + 1):
        if end == len(verifiers) or verifiers[end] != verifiers[begin]:
            yield begin, end
            begin = end


def measure(samples: Iterable[Sample], pass_k: Sequence[int]) -> dict[str, Estimate]:
    """The metrics of one benchmark from its samples, in any order."""
    items: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        items[sample["item"]].append(sample)
    rows = [items[item] for item in sorted(items)]

    def table(key: str) -> Any:
        return np.array([[sample[key] for sample in row] for row in rows])

    votes = None
    if any(sample["vote"] is not None for row in rows for sample in row) or all(
        sample["answer"] is None for row in rows for sample in row
    ):
        votes = np.array([[-1 if s["vote"] is None else s["vote"] for s in row] for row in rows], dtype=np.int64)
    return sampled_metrics(table("reward").astype(np.float64), votes, table("length").astype(np.float64), pass_k)


def cast_votes(answers: Sequence[Sequence[str | None]], verifier: str, judge: Judge) -> list[list[int | None]]:
    """Numbers of each item's answers, equal ones alike: as strings for `exact`, else as `verifier` sees equality.

    Equality as a verifier sees it need not be transitive, so answers join in the order of how often they occur, the
    commonest first, each the first group whose oldest member it equals. Programs are not compared: they do not vote.
    """
    if not VERIFIERS[verifier].compares_answers:
        return [[None] * len(row) for row in answers]
    groups: list[dict[str, int]] = []
    open_: list[list[str]] = []  # answers that have no group yet, by item
    heads: list[list[str]] = [[] for _ in answers]
    for row in answers:
        counts: dict[str, int] = {}
        for answer in row:
            if answer is not None:
                counts[answer] = counts.get(answer, 0) + 1
        groups.append({})
        open_.append(sorted(counts, key=lambda a: -counts[a]))
    if verifier == "exact":
        groups = [{answer: number for number, answer in enumerate(row)} for row in open_]
    else:
        while any(open_):  # one group of each item at a time, so that the judge's workers all have something to do
            for item, row in enumerate(open_):
                if row:
                    heads[item].append(row[0])
            asked = [(i, answer) for i, row in enumerate(open_) for answer in row[1:]]
            verdicts = judge.rewards([(verifier, answer, heads[i][-1]) for i, answer in asked])
            equal = {pair for pair, verdict in zip(asked, verdicts, strict=True) if verdict.reward >= 0.5}
            for item, row in enumerate(open_):
                if row:
                    number = len(heads[item]) - 1
                    groups[item] |= {a: number for a in row if a == row[0] or (item, a) in equal}
                    open_[item] = [a for a in row if a not in groups[item]]
    return [[None if a is None else group[a] for a in row] for row, group in zip(answers, groups, strict=True)]
