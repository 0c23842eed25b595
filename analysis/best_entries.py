"""Marks the best of several settings, if its difference from each of the others is significant.

Differences are taken seed by seed. Each setting of each row and column may be the best, so Holm's correction runs over
all of these, whichever it turns out to be.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.statistics import ALPHA, holm, one_sided_t_test
from analysis.tables import DIFFERENCE, Column, Entry, Table

Position = tuple[int, int, int]
"""(table, row, column) of an entry."""


def mark_best(tables: Sequence[Table]) -> list[pd.DataFrame]:
    """Returns the cells of every table, with the significantly best entries marked.

    Settings compete at equal tokens or steps of one stage of one model. A base model's table holds all its
    competitors. An RL table holds one setting, so all RL tables of a model compete, and are corrected together.
    """
    cells = [table.cells.copy() for table in tables]
    groups: dict[Any, list[int]] = {}
    for position, table in enumerate(tables):
        groups.setdefault((table.model, "grpo") if table.stage == "grpo" else table.name, []).append(position)
    for positions in groups.values():
        # Entries of the same column at the same tokens or step are rivals.
        rivals: dict[tuple[Any, Column], list[Position]] = {}
        for position in positions:
            columns = tables[position].columns
            for row, (key, entries) in enumerate(tables[position].rows):
                for column, (name, entry) in enumerate(zip(columns, entries, strict=True)):
                    if _competes(name, entry):
                        rivals.setdefault((key[1], name), []).append((position, row, column))
        for position, row, column in _winners(tables, [group for group in rivals.values() if len(group) > 1]):
            winner: Any = cells[position].iat[row, column]
            cells[position].iat[row, column] = replace(winner, best=True)
    return cells


def _competes(column: Column, cell: Any) -> bool:
    return (
        isinstance(cell, Entry)
        and cell.value is not None
        and cell.n > 1
        and not cell.variant
        and column[0] != DIFFERENCE
        and not column[1].endswith("entropy")  # neither more nor less of it is better
    )


def _winners(tables: Sequence[Table], groups: list[list[Position]]) -> list[Position]:
    """The best entry of each group that is better than each of the others, corrected over all groups."""
    p_values: list[float] = []
    winners: list[tuple[Position, int]] = []  # with the index of its p-value
    for group in groups:
        entries: list[Any] = [tables[table].cells.iat[row, column] for table, row, column in group]
        table, _, column = group[0]
        sign = -1 if tables[table].columns[column][1].endswith("perplexity") else 1  # lower perplexity is better
        best = max(range(len(group)), key=lambda i: sign * entries[i].value)
        others = [entry for i, entry in enumerate(entries) if i != best]
        differences = sign * np.stack([np.subtract(entries[best].by_seed, other.by_seed) for other in others])
        resolution = np.hypot(entries[best].resolution, [other.resolution for other in others])
        winners.append((group[best], len(p_values)))
        # The best must beat each of the others, so its largest p-value counts; the others' p-values are 1.
        p_values += [float(one_sided_t_test(differences, resolution).max()), *[1.0] * len(others)]
    corrected = holm(np.array(p_values))
    return [position for position, index in winners if corrected[index] < ALPHA]
