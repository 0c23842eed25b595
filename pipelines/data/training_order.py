"""The order of training rows: sources by weight, each in shuffled passes. A function of seed and sizes alone, so that
training resumes anywhere and any number of ranks sees the same global order.

Small corpora have their order written out (`schedule`). Token shards may have 10^8 rows, so theirs is computed where it
is asked for (`Mixture`): which source stands at a place is drawn block by block, and a pass over a source is shuffled
by a bijection that needs no table.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16
"""Rows whose sources are drawn at once."""
ROUNDS = 4
"""Of the Feistel network; four make its order indistinguishable from a random one for all that training could see."""


def training_order(
    seed: list[int], rows: int, mixture: Mapping[str, float], sizes: Mapping[str, int], sharded: bool
) -> Sequence[tuple[str, int]]:
    """(source, row) for each of `rows` training rows, in order; computed on demand where the corpus is `sharded`."""
    return Mixture(seed, rows, mixture, sizes) if sharded else schedule(seed, rows, mixture, sizes)


def schedule(
    seed: list[int], rows: int, mixture: Mapping[str, float], sizes: Mapping[str, int]
) -> list[tuple[str, int]]:
    """(source, row) for each of `rows` training rows, in order: sources by weight, each source's rows in shuffled
    passes."""
    rng = np.random.default_rng(seed)
    names = [name for name, weight in mixture.items() if weight > 0]
    weights = np.array([mixture[name] for name in names])
    chosen = rng.choice(len(names), size=rows, p=weights / weights.sum())
    queues: dict[str, Iterator[int]] = {name: _passes(sizes[name], rng) for name in names}
    return [(names[i], next(queues[names[i]])) for i in chosen]


def _passes(size: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from map(int, rng.permutation(size))


class Mixture(Sequence[tuple[str, int]]):
    """The same as a sequence that is never written out; it takes 8 bytes for each source and 65,536 rows."""

    def __init__(self, seed: list[int], rows: int, mixture: Mapping[str, float], sizes: Mapping[str, int]) -> None:
        self._seed, self._count, self._sizes = seed, rows, sizes
        self._names = [name for name, weight in mixture.items() if weight > 0]
        weights = np.array([mixture[name] for name in self._names])
        self._edges = np.cumsum(weights / weights.sum())[:-1]
        counts = [np.bincount(self._sources(block), minlength=len(self._names)) for block in range((rows - 1) // BLOCK)]
        self._before = np.cumsum([np.zeros(len(self._names), np.int64), *counts], axis=0)
        self._ordinals = lru_cache(maxsize=4)(self._ordinals_of)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[str, int]:  # type: ignore[override]
        if not 0 <= index < self._count:
            raise IndexError(index)
        block, place = divmod(index, BLOCK)
        sources, within = self._ordinals(block)
        source = int(sources[place])
        name = self._names[source]
        turn, ordinal = divmod(int(self._before[block][source] + within[place]), self._sizes[name])
        return name, permuted(ordinal, self._sizes[name], (*self._seed, source, turn))

    def _sources(self, block: int) -> NDArray[np.int64]:
        """Which source stands at each place of a block."""
        rng = np.random.default_rng([*self._seed, block])
        return np.searchsorted(self._edges, rng.random(BLOCK), side="right")

    def _ordinals_of(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sources of a block, and for each place how many of its source stand before it in the block."""
        sources = self._sources(block)
        within = np.empty(BLOCK, np.int64)
        for source in range(len(self._names)):
            places = sources == source
            within[places] = np.arange(places.sum())
        return sources, within


def permuted(index: int, size: int, seed: tuple[int, ...]) -> int:
    """Where a shuffle of 0..size-1, chosen by `seed`, sends `index`: a Feistel network over the next power of 4, walked
    until it falls inside."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = _keys(seed)
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        index = left << half | right
        if index < size:
            return index


@lru_cache(maxsize=256)
def _keys(seed: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(int, np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)))


def _mixed(x: int) -> int:
    """The finaliser of splitmix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31
