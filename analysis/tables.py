"""A table of results: cells that are text or numbers with their interval, and the stage runs behind each number.

Every number keeps the stage runs that it was computed from, so that a page can link to them; a missing number keeps the
stage runs that have to run first.
"""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

MISSING = "–"
"""A cell that does not apply, such as the experts of a dense model."""
NOT_RUN = "not run"
"""A number whose stage runs are still to come."""
NOT_MEASURED = "not measured"
"""A number that the evaluations which were run do not have."""
DIFFERENCE = "ours - paper"
"""Group of the columns that compare with the paper."""

Column = tuple[str, str]
"""(group, name)"""


@dataclass(frozen=True)
class Entry:
    """A number of this study: the mean over `n` seeds with its interval; without a value it is not measured yet."""

    value: float | None
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval, on the scale of the quantity: within 0..100 for percentages."""
    n: int = 0
    """Seeds."""
    stage_runs: tuple[str, ...] = ()
    """Signatures of the evaluations that the number was computed from."""
    waits_for: tuple[str, ...] = ()
    """`stage/signature` of the stage runs that must finish before the number is complete."""
    best: bool = False
    """Whether it is significantly better than every other setting's number."""
    number_format: str = "{:.2f}"
    by_seed: tuple[float, ...] = field(default=(), repr=False)
    """One value per seed of the study, NaN for a missing seed."""
    resolution: float = field(default=0.0, repr=False)
    """Of one seed's value: how much one item moves it."""
    variant: str = ""
    """How the evaluation differed; empty for a plain measurement."""

    def __str__(self) -> str:
        if self.value is None:
            return NOT_RUN if self.waits_for else NOT_MEASURED
        number, low, high = (
            None if part is None else self.number_format.format(part) for part in (self.value, self.low, self.high)
        )
        return str(number) if low is None else f"{number} [{low}, {high}]"


@dataclass(frozen=True)
class Table:
    """A table; `cells` holds `Entry` or text, its columns are (group, name), and its index has names."""

    name: str
    number: int | None
    """The paper's number; None for a table that is not in the paper."""
    title: str
    caption: str
    cells: pd.DataFrame
    model: str | None = None
    stage: str | None = None
    objectives: tuple[str, ...] = ()
    """The settings it is about."""

    def text(self) -> pd.DataFrame:
        """The cells as text, with flat column names; `n` is shown where it differs from most cells' `n`."""
        usual = self.usual_n
        frame = self.cells.map(lambda cell: show(cell, usual))
        frame.columns = pd.Index(self.column_titles)
        return frame

    @property
    def columns(self) -> list[Column]:
        """(group, name) of every column."""
        return [(str(group), str(name)) for group, name in map(tuple, self.cells.columns)]

    @property
    def column_titles(self) -> list[str]:
        """Group and name of every column in one string."""
        return [" ".join(filter(None, column)) for column in self.columns]

    @property
    def index_names(self) -> list[str]:
        """The names of the index columns."""
        return [str(name) for name in self.cells.index.names]

    @property
    def rows(self) -> list[tuple[tuple[Any, ...], list[Any]]]:
        """The index values and the cells of every row."""
        keys = [key if isinstance(key, tuple) else (key,) for key in self.cells.index]
        return list(zip(keys, self.cells.to_numpy().tolist(), strict=True))

    @property
    def column_groups(self) -> list[tuple[str, int]]:
        """Each run of adjacent columns of one group: the group's name and how many columns it spans."""
        groups: list[tuple[str, int]] = []
        for group, _ in self.columns:
            if groups and groups[-1][0] == group:
                groups[-1] = (group, groups[-1][1] + 1)
            else:
                groups.append((group, 1))
        return groups

    @property
    def entries(self) -> list[Entry]:
        """All cells that are numbers of this study, missing ones included."""
        return [cell for cell in self.cells.to_numpy().ravel() if isinstance(cell, Entry)]

    @property
    def usual_n(self) -> int:
        """The number of seeds that most cells have."""
        counts = [entry.n for entry in self.entries if entry.value is not None and entry.stage_runs]
        return max(sorted(set(counts)), key=counts.count, default=0)

    @property
    def missing(self) -> int:
        """How many numbers are missing."""
        return sum(entry.value is None for entry in self.entries)

    @property
    def waits_for(self) -> list[str]:
        """`stage/signature` of the stage runs that the table's missing numbers need."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry.waits_for))


def show(cell: Any, usual_n: int) -> str:
    """Returns a cell as text, with its number of seeds if that is not `usual_n`."""
    if isinstance(cell, Entry) and cell.value is not None and cell.stage_runs and cell.n != usual_n:
        return f"{cell} (n = {cell.n})"
    return MISSING if cell is None else str(cell)


def interval_note(cells: pd.DataFrame) -> str:
    """Returns what a caption says about intervals and bold."""
    entries = [cell for cell in cells.to_numpy().ravel() if isinstance(cell, Entry) and cell.value is not None]
    counts = sorted({entry.n for entry in entries})
    if not counts:
        return "Nothing measured yet."
    if counts == [1]:
        return "One seed; [low, high] is the 95 % interval over its problems and says nothing about other seeds."
    seeds = f"{counts[-1]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    bold = " Bold: better than every other setting, paired by seed, Holm-corrected p < 0.05."
    return (
        f"Mean over {seeds} with its 95 % interval [low, high].{bold if any(entry.best for entry in entries) else ''}"
    )
