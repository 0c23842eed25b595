"""How much of each evaluation set the training mixture has shown: overlap of n-grams of words.

An item is contaminated where `N` words in a row of it stand in the training text (GPT-3's and Llama's rule, n = 13
there; shorter items are looked for as a whole). Words are runs of letters and digits in lower case, and single other
signs, so that spacing and layout do not hide a copy. Training text is streamed: what is kept is 8 bytes for each
distinct n-gram of the evaluation sets, which are small, so the training text may be of any size.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

N = 13
SHORTEST = 5
"""Words below which an item says too little to be found: any text holds it by chance."""

_WORDS = re.compile(r"\w+|[^\w\s]")
_BASE = np.uint64(0x9E3779B97F4A7C15)
CHUNK = 1 << 20
"""Words hashed at a time."""

Hashes = NDArray[np.uint64]


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORDS.findall(text.lower())


def _hashes(text: Sequence[str], n: int) -> Hashes:
    """A 64-bit polynomial hash of every n words in a row, modulo 2^64."""
    if len(text) < n:
        return np.zeros(0, np.uint64)
    codes = np.fromiter((hash_word(word) for word in text), np.uint64, len(text))
    total = np.zeros(len(text) - n + 1, np.uint64)
    with np.errstate(over="ignore"):
        for i in range(n):
            total = total * _BASE + codes[i : len(text) - n + 1 + i]
            total ^= total >> np.uint64(29)
    return total


_codes: dict[str, int] = {}


def hash_word(word: str) -> int:
    """A 64-bit number for a word, the same in every process (FNV-1a)."""
    code = _codes.get(word)
    if code is None:
        code = 0xCBF29CE484222325
        for byte in word.encode():
            code = (code ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
        if len(_codes) < CHUNK:
            _codes[word] = code
    return code


def overlap(benchmarks: Mapping[str, Sequence[str]], training: Iterable[str], n: int = N) -> dict[str, dict[str, Any]]:
    """By benchmark: `items`, `short` (too short to be looked for), `contaminated` (a share of the others), and
    `examples`, up to three of those.

    An item of `SHORTEST` to n - 1 words is looked for as a whole. Chance: two different n-grams share a 64-bit hash
    once in 1.8e19 pairs.
    """
    wanted: dict[int, list[tuple[str, int, Hashes]]] = {}
    for name, texts in benchmarks.items():
        for number, text in enumerate(texts):
            own = words(text)
            if len(own) >= SHORTEST:
                size = min(n, len(own))
                wanted.setdefault(size, []).append((name, number, np.unique(_hashes(own, size))))
    pools = {size: np.unique(np.concatenate([own for _, _, own in rows])) for size, rows in wanted.items()}
    seen = {size: np.zeros(len(pool), bool) for size, pool in pools.items()}
    for chunk in _chunks(training):
        for size, pool in pools.items():
            found = np.unique(_hashes(chunk, size))
            places = np.searchsorted(pool, found).clip(max=len(pool) - 1)
            seen[size][places[pool[places] == found]] = True
    shown = {size: pools[size][mask] for size, mask in seen.items()}
    hit = {
        (name, number)
        for size, rows in wanted.items()
        for name, number, own in rows
        if np.isin(own, shown[size], assume_unique=True).any()
    }
    looked = {(name, number) for rows in wanted.values() for name, number, _ in rows}
    report = {}
    for name, texts in benchmarks.items():
        mine = [i for i in range(len(texts)) if (name, i) in looked]
        bad = [i for i in mine if (name, i) in hit]
        report[name] = {
            "items": len(texts),
            "short": len(texts) - len(mine),
            "contaminated": len(bad) / len(mine) if mine else None,
            "examples": [texts[i] for i in bad[:3]],
        }
    return report


def _chunks(texts: Iterable[str]) -> Iterable[list[str]]:
    """The words of texts, in lists of about `CHUNK`; n-grams do not reach from one text into the next."""
    chunk: list[str] = []
    for text in texts:
        chunk += [*words(text), "\n" * N]  # a word that no text holds
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
