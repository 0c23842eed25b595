"""Which part of which source is prepared next, when a source has enough, and how much is left."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.data.sources import Part

Record = dict[str, Any]
"""The record of a prepared part: its counts, and its shards by split."""


@dataclass(frozen=True)
class Progress:
    """How far a preparation is."""

    parts: int
    """Parts that are done."""
    all_parts: int
    """Parts that there are; of a source with enough tokens, those that it needed."""
    documents: int
    characters: int
    expected: int | None
    """Characters of all sources, by those of the parts that are done; None until each source has one."""
    fresh: int
    """Characters that this command has read itself, not one before it."""


class PartSchedule:
    """The parts of all sources, in the order in which they are prepared.

    Sources advance together, so that the time that is left can be estimated early. A source with a budget of tokens
    takes its parts in a fixed random order up to the part that reaches the budget, whatever the number of processes.
    """

    def __init__(
        self, parts: Sequence[Part], budgets: Mapping[str, int | None], records: Mapping[Part, Record]
    ) -> None:
        self._parts, self._budgets, self._fresh = parts, budgets, 0
        self._records: dict[Part, Record] = dict(records)
        self._of_source: dict[str, list[Part]] = {}
        for part in parts:
            self._of_source.setdefault(part.source, []).append(part)
        for source, of_source in self._of_source.items():
            if budgets[source] is not None:
                of_source.sort(key=lambda part: hashlib.sha256(part.name.encode()).digest())
        # The size of a part is a look at the file system.
        self._size = {part: part.size for part in parts}
        # Sources take turns by the share of their parts that is behind.
        turns = [
            (index / len(of_source), part)
            for of_source in self._of_source.values()
            for index, part in enumerate(of_source)
        ]
        waiting = sorted(
            (turn for turn in turns if turn[1] not in self._records), key=lambda turn: turn[0], reverse=True
        )
        self._waiting = [part for _, part in waiting]

    def next(self) -> Part | None:
        """Returns the part to prepare next; None if there is none."""
        while self._waiting:
            part = self._waiting.pop()
            if self._needed(part.source) is None:
                return part
        return None

    def done(self, part: Part, record: Record) -> None:
        """Note the record of a part."""
        self._records[part] = record
        self._fresh += record["characters"]

    def used(self) -> dict[Part, Record]:
        """Returns the records of the parts that belong to the shards, in the order of the parts.

        A part beyond a budget, which another process had begun before it was reached, does not belong to them.
        """
        used = {part for source, of_source in self._of_source.items() for part in of_source[: self._needed(source)]}
        return {part: self._records[part] for part in self._parts if part in used}

    def _needed(self, source: str) -> int | None:
        """How many parts of a source reach its budget; None if they do not yet, or it has no budget."""
        budget, tokens = self._budgets[source], 0
        if budget is None:
            return None
        for count, part in enumerate(self._of_source[source], start=1):
            if part not in self._records:
                return None
            tokens += tokens_of(self._records[part])
            if tokens >= budget:
                return count
        return None

    def progress(self) -> Progress:
        """Returns how far the preparation is."""
        expected: float | None = 0.0
        all_parts = 0
        for source, of_source in self._of_source.items():
            done = [part for part in of_source if part in self._records]
            needed = self._needed(source)
            all_parts += len(of_source) if needed is None else max(needed, len(done))
            share = sum(self._size[part] for part in done) / sum(self._size[part] for part in of_source)
            if (budget := self._budgets[source]) is not None:
                share = max(share, min(1.0, sum(tokens_of(self._records[part]) for part in done) / budget))
            characters = sum(self._records[part]["characters"] for part in done)
            expected = None if expected is None or not share else expected + characters / share
        records = self._records.values()
        documents, characters = (sum(record[key] for record in records) for key in ("documents", "characters"))
        whole = None if expected is None else round(expected)
        return Progress(len(self._records), all_parts, documents, characters, whole, self._fresh)


def tokens_of(record: Record) -> int:
    """Returns the tokens of a part in all splits."""
    return sum(shard["tokens"] for shard in record["shards"].values())
