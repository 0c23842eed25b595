"""The sampled answers of an evaluation, from which every metric of them follows. Imports no torch.

They are stored as compressed JSON lines, one row for each sample: `benchmark`, `item` (its index in the benchmark),
`prompt` (hash of the model's input), `question`, `response`, `answer` (extracted from the response; null if there is
none), `vote` (a number that is the same for the equal answers of an item, where the verifier decides what is equal;
null if the answer does not vote), `reward`, `log_prob` (of the whole response, in nats), `length` (tokens) and `finish`
(`stop`, or `length` if it reached the limit). Where the answer could not be verified, `failure` says why: one of
`pipelines.verifiers.judge.FAILURES`.
"""

import gzip
import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluation.metrics import RIGHT, Estimate, sampled_metrics
from pipelines.files import replacing
from pipelines.verifiers import VERIFIERS, Judge, Verdict
from pipelines.verifiers.judge import Item

SAMPLES = "samples.jsonl.gz"

Sample = dict[str, Any]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows to a compressed file atomically; equal rows give equal bytes."""
    with (
        replacing(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as file,
    ):
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `write_rows` wrote."""
    with gzip.open(path, "rt") as file:
        yield from map(json.loads, file)


def prompt_hash(prompt: str) -> str:
    """Identifies a prompt: samples with equal hashes answer the same prompt."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Responses:
    """n responses to each of several prompts, prompt by prompt; all lists have the length prompts x n."""

    texts: Sequence[str]
    judged: Sequence[Item]
    """What the judge received for each; responses to one prompt have the same verifier."""
    verdicts: Sequence[Verdict]
    log_probs: Sequence[float]
    """Of the whole response, in nats."""
    lengths: Sequence[int]
    """Tokens."""
    stopped: Sequence[bool]
    """Whether the response ended before it reached the limit."""


def sample_rows(
    prompts: Sequence[tuple[str, str]], responses: Responses, judge: Judge, *, first_item: int
) -> list[Sample]:
    """The rows of `responses` to `prompts`, which are pairs (prompt, question), without the benchmark's name.

    `judge` compares answers for the votes, and `first_item` is the index in the benchmark of the first prompt.
    """
    n = len(responses.texts) // len(prompts)
    judged, verdicts = responses.judged, responses.verdicts

    # Vote among the answers of each prompt, for consecutive prompts with the same verifier at once.
    votes: list[int | None] = []
    for verifier, indices in itertools.groupby(range(len(prompts)), key=lambda prompt: judged[prompt * n][0]):
        answers = [[answer for _, answer, _ in judged[i * n : (i + 1) * n]] for i in indices]
        votes += [vote for row in cast_votes(answers, verifier, judge) for vote in row]

    return [
        {
            "item": first_item + i // n,
            "prompt": prompt_hash(prompts[i // n][0]),
            "question": prompts[i // n][1],
            "response": text,
            "answer": judged[i][1],
            "vote": votes[i],
            "reward": verdicts[i].reward,
            "log_prob": round(responses.log_probs[i], 4),
            "length": responses.lengths[i],
            "finish": "stop" if responses.stopped[i] else "length",
        }
        | ({"failure": verdicts[i].failure} if verdicts[i].failure else {})
        for i, text in enumerate(responses.texts)
    ]


def cut_answers(samples: Iterable[Sample]) -> int:
    """How many of the samples reached the limit on their length, or the end of the model's positions."""
    return sum(sample["finish"] == "length" for sample in samples)


def unverified(samples: Iterable[Sample]) -> int:
    """How many of the samples have reward 0 because their answer could not be verified."""
    return sum("failure" in sample for sample in samples)


def measure(samples: Iterable[Sample], pass_k: Sequence[int]) -> dict[str, Estimate]:
    """The metrics of one benchmark from its samples, which may be in any order."""
    by_item: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_item[sample["item"]].append(sample)
    items = [by_item[item] for item in sorted(by_item)]

    def column(key: str) -> Any:
        """The values of `key`, shape [items, n]."""
        return np.array([[sample[key] for sample in item] for item in items])

    # Programs do not vote: then there are answers, and none of them has a vote.
    votes = None
    everything = [sample for item in items for sample in item]
    if any(s["vote"] is not None for s in everything) or all(s["answer"] is None for s in everything):
        votes = np.array([[-1 if s["vote"] is None else s["vote"] for s in item] for item in items], dtype=np.int64)
    return sampled_metrics(
        column("reward").astype(np.float64), votes, column("length").astype(np.float64), pass_k=pass_k
    )


def cast_votes(answers: Sequence[Sequence[str | None]], verifier: str, judge: Judge) -> list[list[int | None]]:
    """The votes of the answers [items, n]: equal answers of an item have the same number; None does not vote.

    Answers are compared as strings for `exact`, and by `verifier` otherwise. A verifier's equality need not be
    transitive, so answers are grouped from the most to the least frequent, and each joins the first group whose first
    member it equals. If the verifier does not compare answers (programs), nothing votes.
    """
    if not VERIFIERS[verifier].compares_answers:
        return [[None] * len(row) for row in answers]

    # The distinct answers of each item, most frequent first.
    distinct: list[list[str]] = []
    for row in answers:
        counts = Counter(answer for answer in row if answer is not None)
        distinct.append(sorted(counts, key=lambda answer: -counts[answer]))
    if verifier == "exact":
        groups = [{answer: number for number, answer in enumerate(row)} for row in distinct]
    else:
        groups = _equal_groups(distinct, verifier, judge)
    return [[None if a is None else group[a] for a in row] for row, group in zip(answers, groups, strict=True)]


def _equal_groups(distinct: Sequence[Sequence[str]], verifier: str, judge: Judge) -> list[dict[str, int]]:
    """For each item, the number of the group of each of its distinct answers."""
    groups: list[dict[str, int]] = [{} for _ in distinct]
    remaining = [list(row) for row in distinct]
    number = 0
    # Each round makes one group for every item, so that the judge always has a large batch for its workers. The first
    # remaining answer of an item founds the group.
    while any(remaining):
        pairs = [(item, answer) for item, row in enumerate(remaining) for answer in row[1:]]
        verdicts = judge.rewards([(verifier, answer, remaining[item][0]) for item, answer in pairs])
        equal = {pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.reward >= RIGHT}
        for item, row in enumerate(remaining):
            groups[item] |= {answer: number for answer in row if answer == row[0] or (item, answer) in equal}
            remaining[item] = [answer for answer in row if answer not in groups[item]]
        number += 1
    return groups
