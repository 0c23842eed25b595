"""The order of training rows: sources by weight, each in shuffled passes.

It depends only on seed, mixture and sizes: training can resume anywhere, and any number of ranks sees the same order.
The order of a small corpus is written out (`schedule`). Token shards may have 10^8 rows, so their order is computed on
access (`Mixture`): the sources are drawn block by block, and a pass over a source is shuffled by a bijection that needs
no table.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16
"""Number of rows whose sources are drawn at once."""
ROUNDS = 4
"""Rounds of the Feistel network; after four, its order looks random to any test that training could make."""


def training_order(
    seed: list[int], rows: int, *, mixture: Mapping[str, float], sizes: Mapping[str, int], sharded: bool
) -> Sequence[tuple[str, int]]:
    """Returns (source, row of the source) for each of `rows` training rows, in order.

    `mixture` has the weight of each source, `sizes` its number of rows. Computed on access if the corpus is `sharded`.
    """
    order = Mixture if sharded else schedule
    return order(seed, rows, mixture=mixture, sizes=sizes)


def schedule(
    seed: list[int], rows: int, *, mixture: Mapping[str, float], sizes: Mapping[str, int]
) -> list[tuple[str, int]]:
    """Returns (source, row of the source) for each of `rows` training rows, written out."""
    rng = np.random.default_rng(seed)
    names, weights = _shares(mixture)
    # Draw the source of every row, then take the rows of each source in turn.
    sources = rng.choice(len(names), size=rows, p=weights)
    passes: dict[str, Iterator[int]] = {name: _passes(sizes[name], rng) for name in names}
    return [(names[source], next(passes[names[source]])) for source in sources]


def _shares(mixture: Mapping[str, float]) -> tuple[list[str], NDArray[np.float64]]:
    """The sources with a weight, and their shares, which sum to 1.

    They are sorted: the order of a mapping's keys is not part of a signature, so it must not change the rows.
    """
    names = sorted(name for name, weight in mixture.items() if weight > 0)
    weights = np.array([mixture[name] for name in names])
    return names, weights / weights.sum()


def _passes(size: int, rng: np.random.Generator) -> Iterator[int]:
    """Row indices in endless passes, each in another random order."""
    while True:
        yield from map(int, rng.permutation(size))


class Mixture(Sequence[tuple[str, int]]):
    """(source, row of the source) for each training row, computed on access.

    Takes 8 bytes per source and `BLOCK` rows.
    """

    def __init__(self, seed: list[int], rows: int, *, mixture: Mapping[str, float], sizes: Mapping[str, int]) -> None:
        self._seed, self._count, self._sizes = seed, rows, sizes
        self._names, weights = _shares(mixture)
        # A uniform number between two edges selects the source between them.
        self._edges = np.cumsum(weights)[:-1]
        counts = [np.bincount(self._sources(block), minlength=len(self._names)) for block in range((rows - 1) // BLOCK)]
        # Rows of each source before each block, [blocks, sources].
        self._before = np.cumsum([np.zeros(len(self._names), np.int64), *counts], axis=0)
        self._ordinals = lru_cache(maxsize=4)(self._ordinals_of)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[str, int]:  # type: ignore[override]
        if not 0 <= index < self._count:
            raise IndexError(index)
        block, offset = divmod(index, BLOCK)
        sources, ordinals = self._ordinals(block)
        source = int(sources[offset])
        name = self._names[source]
        # How often the source was drawn before gives the pass over it and the position in that pass.
        pass_number, position = divmod(int(self._before[block][source] + ordinals[offset]), self._sizes[name])
        return name, permuted(position, self._sizes[name], (*self._seed, source, pass_number))

    def _sources(self, block: int) -> NDArray[np.int64]:
        """The index of the source of each row of a block."""
        rng = np.random.default_rng([*self._seed, block])
        return np.searchsorted(self._edges, rng.random(BLOCK), side="right")

    def _ordinals_of(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sources of a block, and for each row the number of rows of the same source before it in the block."""
        sources = self._sources(block)
        ordinals = np.empty(BLOCK, np.int64)
        for source in range(len(self._names)):
            mask = sources == source
            ordinals[mask] = np.arange(mask.sum())
        return sources, ordinals


def permuted(index: int, size: int, seed: tuple[int, ...]) -> int:
    """Returns the image of `index` under the permutation of 0..size-1 that `seed` selects.

    A Feistel network permutes the numbers below the next power of 4; it is applied until the result is below `size`.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)  # bits of each half of the network's numbers
    mask = (1 << half) - 1
    keys = _keys(seed)
    while True:
        left, right = index >> half, index & mask
        for key in keys:  # one round: swap the halves and mix one into the other
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        index = left << half | right
        if index < size:  # else apply the network again: it is a bijection, so this ends at a free index
            return index


@lru_cache(maxsize=256)
def _keys(seed: tuple[int, ...]) -> tuple[int, ...]:
    """The key of each round."""
    return tuple(map(int, np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)))


def _mixed(x: int) -> int:
    """The finaliser of splitmix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31
