"""Many cells under one name."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class SweepConfig:
    """A named list of cells: points, a grid, or every point combined with every element of the grid."""

    name: str = ""
    """Name of the sweep in the store; empty: no sweep."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Overrides of each cell, for example `{objective: ce}`."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Values of each key; the cells are all combinations."""
