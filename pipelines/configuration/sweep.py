"""Many cells under one name."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class SweepConfig:
    """A named list of cells: points, values taken together, a grid, or all combinations of these three."""

    name: str = ""
    """Name of the sweep in the store; empty: no sweep."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Overrides of each cell, for example `{objective: ce}`."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Values of each key; the cells are all combinations."""
    zip: dict[str, list[Any]] = field(default_factory=dict)
    """Values of several keys that are taken together: the first ones, the second ones, ..."""
