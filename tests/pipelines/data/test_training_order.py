"""The order of training rows: shares by weight, whole passes, and the same row at an index however it is reached."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from pipelines.data.training_order import BLOCK, Mixture, permuted, training_order

SIZES = {"a": 1000, "b": 37, "c": 5}
WEIGHTS = {"a": 3.0, "b": 1.0, "c": 0.0}


@given(st.integers(1, 3000), st.integers(0, 100))
def test_a_shuffle_is_a_bijection(size: int, seed: int) -> None:
    assert sorted(permuted(i, size, (seed,)) for i in range(size)) == list(range(size))


def test_a_shuffle_looks_random() -> None:
    """Neither positions nor steps between neighbours can be distinguished from uniform ones."""
    size = 1 << 12
    images = np.array([permuted(i, size, (3, 1)) for i in range(size)])
    for values in (images[: size // 4], np.diff(images) % size):
        assert chisquare(np.bincount(values * 16 // size, minlength=16)).pvalue > 1e-4
    other = np.array([permuted(i, size, (3, 2)) for i in range(size)])
    assert abs(np.corrcoef(images, other)[0, 1]) < 0.06


def test_a_mixture_goes_through_each_source_in_whole_passes() -> None:
    rows = BLOCK + 500
    order = Mixture([1, 8], rows, mixture=WEIGHTS, sizes=SIZES)
    rows_in_order = [order[i] for i in range(rows)]
    counts = {name: sum(source == name for source, _ in rows_in_order) for name in SIZES}
    assert counts["c"] == 0
    assert counts["a"] / rows == pytest.approx(0.75, abs=0.01)
    for name in ("a", "b"):
        rows_of_source = [row for source, row in rows_in_order if source == name]
        size = SIZES[name]
        passes = [rows_of_source[start : start + size] for start in range(0, len(rows_of_source) - size + 1, size)]
        assert all(sorted(one_pass) == list(range(size)) for one_pass in passes)
        assert passes[0] != passes[1]


def test_any_index_can_be_read_first() -> None:
    rows = 3 * BLOCK
    order, again = (
        Mixture([1, 8], rows, mixture=WEIGHTS, sizes=SIZES),
        Mixture([1, 8], rows, mixture=WEIGHTS, sizes=SIZES),
    )
    indices = np.random.default_rng(0).integers(0, rows, 300)
    assert [again[int(i)] for i in sorted(indices)[::-1]] == [order[int(i)] for i in sorted(indices)][::-1]
    shorter = Mixture([1, 8], BLOCK + 10, mixture=WEIGHTS, sizes=SIZES)
    assert [shorter[i] for i in range(0, BLOCK + 10, 997)] == [order[i] for i in range(0, BLOCK + 10, 997)]
    other = Mixture([2, 8], rows, mixture=WEIGHTS, sizes=SIZES)
    assert [other[i] for i in range(50)] != [order[i] for i in range(50)]
    with pytest.raises(IndexError):
        order[rows]


@pytest.mark.parametrize("sharded", [False, True])
def test_the_order_of_a_mixtures_keys_does_not_matter(sharded: bool) -> None:
    """Signatures sort keys, so two spellings of one mixture are one stage run."""
    mixture = {"b": 1.0, "c": 0.5, "a": 3.0, "d": 0.0}
    orders = [
        training_order(
            [1, 2, 3, 4], 500, mixture={key: mixture[key] for key in keys}, sizes=SIZES | {"d": 9}, sharded=sharded
        )
        for keys in ("abcd", "dcba", "bcad")
    ]
    first, *others = [[order[i] for i in range(500)] for order in orders]
    assert others == [first, first]
    assert {name for name, _ in first} == {"a", "b", "c"}


def test_only_the_order_of_shards_is_computed_on_access() -> None:
    assert isinstance(training_order([1], 10, mixture=WEIGHTS, sizes=SIZES, sharded=False), list)
    assert isinstance(training_order([1], 10, mixture=WEIGHTS, sizes=SIZES, sharded=True), Mixture)
