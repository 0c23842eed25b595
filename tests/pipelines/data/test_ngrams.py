"""Hashes of n-grams against sets of tuples."""

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.ngrams import ngram_hashes, positions, split_words

WORDS = st.lists(st.sampled_from(["a", "b", "ab", "7", "+"]), max_size=30)


def tuples(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


@given(first=WORDS, second=WORDS, n=st.integers(1, 14))
def test_hashes_are_equal_where_tuples_are(first: list[str], second: list[str], n: int) -> None:
    both = [*ngram_hashes(first, n).tolist(), *ngram_hashes(second, n).tolist()]
    expected = [*tuples(first, n), *tuples(second, n)]
    assert len(both) == len(expected)
    assert len(set(zip(both, expected, strict=True))) == len(set(both)) == len(set(expected))


@given(needles=WORDS, haystack=WORDS, n=st.integers(1, 5))
def test_positions_are_those_of_a_search(needles: list[str], haystack: list[str], n: int) -> None:
    pool = np.unique(ngram_hashes(haystack, n))
    hashes = ngram_hashes(needles, n)
    expected = [pool.tolist().index(value) for value in hashes.tolist() if value in pool.tolist()]
    assert positions(hashes, pool).tolist() == expected
    assert len(expected) == sum(gram in tuples(haystack, n) for gram in tuples(needles, n))


def test_words_ignore_case_and_spacing_and_keep_signs() -> None:
    assert split_words("Is 3.5 + x_1\n ÄRGER?") == ["is", "3", ".", "5", "+", "x_1", "ärger", "?"]
    assert split_words("2+3") != split_words("2-3")


def test_a_lone_surrogate_is_a_word() -> None:
    """JSON may hold half of a pair, which has no UTF-8."""
    assert len(ngram_hashes(["a", "\ud800"], 2)) == 1


def test_hashes_are_the_same_in_every_process() -> None:
    """They are stored next to token shards. Python's own `hash` of a string differs from process to process."""
    code = "from pipelines.data.ngrams import ngram_hashes; print(ngram_hashes(['one', 'two', 'three'], 2).tolist())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(ngram_hashes(["one", "two", "three"], 2).tolist())


def test_hashes_are_those_that_are_stored() -> None:
    """Shards that were begun with the hashes of an earlier version can only be gone on with if they stay."""
    words = ["a", "b", "c"]
    assert ngram_hashes(words, 2).tolist() == [12108274463293437693, 399965937876855113]
    assert ngram_hashes(words, 3).tolist() == [14512595181481610915]
