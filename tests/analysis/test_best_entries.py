"""Which entries are bold, from differences of known p-values."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.best_entries import mark_best
from analysis.tables import Entry, Table

Z = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]) / np.std([-1.0, -0.5, 0.0, 0.5, 1.0], ddof=1)


def lower_by(p: float, resolution: float = 0.0) -> np.ndarray:
    """Five seeds that are below 50 with this one-sided p-value of the paired t-test."""
    return 50 - (stats.t.isf(p, 4) / np.sqrt(5) * np.sqrt(1 + resolution**2) + Z)


FIFTY = np.full(5, 50.0)


def entry(values: np.ndarray, **fields: Any) -> Entry:
    return Entry(float(values.mean()), n=len(values), by_seed=tuple(values), **fields)


def table(
    columns: dict[tuple[str, str], list[Entry | str]], *, rows: list[tuple[str, int]] | None = None, **fields: Any
) -> Table:
    """A table with a row for each setting, unless `rows` says which."""
    count = len(next(iter(columns.values())))
    index = pd.MultiIndex.from_tuples(rows or [(f"s{i}", 1) for i in range(count)], names=["objective", "tokens"])
    frame = pd.DataFrame(index=index, columns=pd.MultiIndex.from_tuples(columns), dtype=object)
    for j, cells in enumerate(columns.values()):
        for i, cell in enumerate(cells):
            frame.iat[i, j] = cell
    return Table(**{"name": "t", "number": 3, "title": "t", "caption": "", "cells": frame, "model": "m"} | fields)


def bold(*tables: Table) -> list[tuple[int, int, int]]:
    return [
        (k, i, j)
        for k, cells in enumerate(mark_best(tables))
        for i in range(cells.shape[0])
        for j in range(cells.shape[1])
        if isinstance(cells.iat[i, j], Entry) and cells.iat[i, j].best
    ]


MATH = ("math", "b")


def test_the_best_must_beat_every_rival_and_not_only_one() -> None:
    clearly, hardly = lower_by(1e-5), lower_by(0.4)
    assert bold(table({MATH: [entry(FIFTY), entry(clearly), entry(clearly)]})) == [(0, 0, 0)]
    assert bold(table({MATH: [entry(FIFTY), entry(clearly), entry(hardly)]})) == []
    assert bold(table({MATH: [entry(FIFTY), entry(hardly), entry(clearly)]})) == []


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_best_is_found_wherever_it_is(place: int) -> None:
    cells = [entry(lower_by(1e-5)) for _ in range(3)]
    cells[place] = entry(FIFTY)
    assert bold(table({MATH: cells})) == [(0, place, 0)]


def test_any_of_the_rivals_may_be_the_best_so_all_count() -> None:
    """Two settings: p = 0.02 is corrected to 0.04, and p = 0.03 to 0.06; three settings: 0.02 to 0.06."""
    assert bold(table({MATH: [entry(FIFTY), entry(lower_by(0.02))]})) == [(0, 0, 0)]
    assert bold(table({MATH: [entry(FIFTY), entry(lower_by(0.03))]})) == []
    assert bold(table({MATH: [entry(FIFTY), entry(lower_by(0.02)), entry(lower_by(1e-6))]})) == []


def test_all_columns_of_a_table_are_corrected_together() -> None:
    near = {("math", f"b{i}"): [entry(FIFTY), entry(lower_by(0.5))] for i in range(4)}
    assert bold(table({MATH: [entry(FIFTY), entry(lower_by(0.02))]} | near)) == []
    assert bold(table({MATH: [entry(FIFTY), entry(lower_by(0.004))]} | near)) == [(0, 0, 0)]


def test_rl_tables_of_one_model_compete_and_others_do_not() -> None:
    parts = [table({MATH: [entry(v)]}, rows=[(f"s{i}", 20)], stage="grpo", name=f"t{i}", number=14 + i)
             for i, v in enumerate((FIFTY, lower_by(1e-5)))]  # fmt: skip
    assert bold(*parts) == [(0, 0, 0)]
    base = [table({MATH: [entry(v)]}, rows=[(f"s{i}", 20)], stage="pretrain", name=f"t{i}")
            for i, v in enumerate((FIFTY, lower_by(1e-5)))]  # fmt: skip
    assert bold(*base) == []
    steps = [table({MATH: [entry(v)]}, rows=[(f"s{i}", 10 + i)], stage="grpo", name=f"t{i}")
             for i, v in enumerate((FIFTY, lower_by(1e-5)))]  # fmt: skip
    assert bold(*steps) == []


def test_the_lowest_perplexity_is_the_best() -> None:
    cells = [entry(FIFTY), entry(lower_by(1e-5)), entry(FIFTY + 3 * (FIFTY - lower_by(1e-5)))]
    assert bold(table({("text", "perplexity"): cells})) == [(0, 1, 0)]
    assert bold(table({("text", "Docstrings perplexity"): cells})) == [(0, 1, 0)]


def test_entropy_is_neither_better_nor_worse() -> None:
    cells = [entry(FIFTY), entry(lower_by(1e-5))]
    for name in ("entropy", "Docstrings entropy"):
        assert bold(table({("text", name): cells})) == []
    assert bold(table({("text", "accuracy"): cells})) == [(0, 0, 0)]


def test_what_does_not_compete() -> None:
    low = lower_by(1e-5)
    assert bold(table({("ours - paper", "b"): [entry(FIFTY), entry(low)]})) == []
    assert bold(table({MATH: [entry(FIFTY, variant="matched:x"), entry(low)]})) == []
    assert bold(table({MATH: [Entry(50.0, n=1, by_seed=(50.0,)), Entry(40.0, n=1, by_seed=(40.0,))]})) == []
    # Nor are single seeds counted in the correction: it is over the two settings of the other column.
    single = [Entry(50.0, n=1, by_seed=(50.0,)), Entry(40.0, n=1, by_seed=(40.0,))]
    assert bold(table({MATH: [entry(FIFTY), entry(lower_by(0.02))], ("math", "c"): list(single)})) == [(0, 0, 0)]
    assert bold(table({MATH: [Entry(None), entry(low)]})) == []
    assert bold(table({MATH: ["text", entry(low)]})) == []
    # A control above all others hides nobody: the best of those that compete is bold.
    assert bold(table({MATH: [entry(FIFTY + 9, variant="matched:x"), entry(FIFTY), entry(low)]})) == [(0, 1, 0)]


def test_the_resolution_of_both_entries_counts() -> None:
    """One item of each moves the difference: a variance of two squares next to that over seeds."""
    both = {"resolution": 1 / np.sqrt(2)}
    assert bold(table({MATH: [entry(FIFTY, **both), entry(lower_by(0.02, resolution=1.0), **both)]})) == [(0, 0, 0)]
    assert bold(table({MATH: [entry(FIFTY, **both), entry(lower_by(0.02), **both)]})) == []


def test_seeds_that_one_of_two_lacks_are_left_out() -> None:
    values = lower_by(1e-5)
    gap = values.copy()
    gap[2] = np.nan
    cells = [entry(FIFTY), Entry(float(np.nanmean(gap)), n=4, by_seed=tuple(gap))]
    assert bold(table({MATH: cells})) == [(0, 0, 0)]
