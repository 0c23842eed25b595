"""n-grams of words, as 64-bit hashes.

Words are runs of letters and digits in lower case, and every other sign on its own, so that neither spacing nor layout
hides a copy. Two different n-grams share a hash once in 1.8e19 pairs.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORD = re.compile(r"\w+|[^\w\s]")
_BASE = np.uint64(0x9E3779B97F4A7C15)


def split_words(text: str) -> list[str]:
    """Returns the words of a text."""
    return _WORD.findall(text.lower())


def ngram_hashes(words: Sequence[str], n: int) -> Hashes:
    """Returns a hash of every n consecutive words, shape [max(0, words - n + 1)], the same in every process."""
    codes = np.fromiter(map(_hash_word, words), np.uint64, len(words))
    hashes = np.zeros(max(0, len(words) - n + 1), np.uint64)
    # A polynomial in the words modulo 2^64; mixing the high bits down breaks its regularity in the low ones.
    for offset in range(n):
        hashes = hashes * _BASE + codes[offset : offset + len(hashes)]
        hashes ^= hashes >> np.uint64(29)
    return hashes


def positions(hashes: Hashes, pool: Hashes) -> NDArray[np.int64]:
    """Returns the indices in the sorted `pool` of those `hashes` that it contains."""
    if not len(pool):
        return np.zeros(0, np.int64)
    indices = np.searchsorted(pool, hashes).clip(max=len(pool) - 1)
    return indices[pool[indices] == hashes]


@lru_cache(1 << 20)  # words repeat: most are hashed once
def _hash_word(word: str) -> int:
    digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
