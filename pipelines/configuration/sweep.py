"""Many cells under one name."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class SweepConfig:
    """A named list of cells: points, a product grid, or both (every point at every place of the grid)."""

    name: str = ""
    points: list[dict[str, Any]] = field(default_factory=list)
    grid: dict[str, list[Any]] = field(default_factory=dict)
