"""How much of each evaluation set the training mixture contains: overlap of n-grams of words.

An item is contaminated if `N` consecutive words of it occur in the training text (the rule of GPT-3 and Llama, with
their n = 13; shorter items are looked up as a whole). The training text is streamed and may be of any size: only the
hashes of the evaluation sets are kept, 8 bytes per distinct n-gram.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.data.ngrams import Hashes, ngram_hashes, positions, split_words

N = 13
SHORTEST = 5
"""Items with fewer words are not looked up: any text contains them by chance."""

CHUNK = 1 << 20
"""Words of the training text that are hashed at a time."""
_BOUNDARY = "\n"
"""Separates texts in a chunk; never a word itself, so no n-gram of an item contains it."""


@dataclass(frozen=True)
class _Item:
    """An item of a benchmark that is long enough to be looked up."""

    benchmark: str
    index: int
    hashes: Hashes
    """Its distinct n-grams, sorted."""


def overlap(benchmarks: Mapping[str, Sequence[str]], training: Iterable[str], n: int = N) -> dict[str, dict[str, Any]]:
    """Returns for each benchmark the share of its items that the training texts contain.

    `items`: number of items; `short`: number of items that are too short to look up; `contaminated`: share of the
    others, or None if there are none or no training text; `examples`: up to three contaminated items. Items of
    `SHORTEST` to n - 1 words are looked up as a whole.
    """
    contaminated, searched = _contaminated(benchmarks, training, n)
    reports = {name: _report(name, texts, contaminated) for name, texts in benchmarks.items()}
    return reports if searched else {name: report | {"contaminated": None} for name, report in reports.items()}


def shared(items: Sequence[str], texts: Iterable[str], n: int = N) -> list[bool]:
    """Returns for each item whether the texts contain it, by the same rule; an item that is too short is not."""
    contaminated, _ = _contaminated({"": items}, texts, n)
    return [contaminated.get(("", index), False) for index in range(len(items))]


def _contaminated(
    benchmarks: Mapping[str, Sequence[str]], training: Iterable[str], n: int
) -> tuple[dict[tuple[str, int], bool], bool]:
    """Whether the training texts contain each item that is long enough; and whether there are any texts."""
    items_of_size = _items_of_size(benchmarks, n)
    # For each n-gram size, all hashes to look for, sorted, and whether the training text contains them.
    pools = {size: np.unique(np.concatenate([item.hashes for item in items])) for size, items in items_of_size.items()}
    seen = {size: np.zeros(len(pool), bool) for size, pool in pools.items()}
    # One pass over the training text marks the hashes that it contains.
    searched = False
    for chunk in _chunks(training):
        searched = searched or any(word != _BOUNDARY for word in chunk)
        for size, pool in pools.items():
            seen[size][positions(ngram_hashes(chunk, size), pool)] = True
    # An item is contaminated if any of its n-grams was seen. Items that were not looked up have no entry.
    contaminated = {
        (item.benchmark, item.index): bool(seen[size][positions(item.hashes, pools[size])].any())
        for size, items in items_of_size.items()
        for item in items
    }
    return contaminated, searched


def _items_of_size(benchmarks: Mapping[str, Sequence[str]], n: int) -> dict[int, list[_Item]]:
    """The items by the size of the n-grams by which they are looked up."""
    items_of_size: dict[int, list[_Item]] = {}
    for name, texts in benchmarks.items():
        for index, text in enumerate(texts):
            words = split_words(text)
            if len(words) >= SHORTEST:
                size = min(n, len(words))
                item = _Item(name, index, np.unique(ngram_hashes(words, size)))
                items_of_size.setdefault(size, []).append(item)
    return items_of_size


def _report(name: str, texts: Sequence[str], contaminated: Mapping[tuple[str, int], bool]) -> dict[str, Any]:
    looked_up = [index for index in range(len(texts)) if (name, index) in contaminated]
    matches = [index for index in looked_up if contaminated[name, index]]
    return {
        "items": len(texts),
        "short": len(texts) - len(looked_up),
        "contaminated": len(matches) / len(looked_up) if looked_up else None,
        "examples": [texts[index] for index in matches[:3]],
    }


def _chunks(texts: Iterable[str]) -> Iterable[list[str]]:
    """The words of the texts in lists of at least `CHUNK`, with a boundary between texts that no n-gram matches."""
    chunk: list[str] = []
    for text in texts:
        chunk += [*split_words(text), _BOUNDARY]
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
