"""What a part of the GPU benchmarks measured or why it could not, and the table of all rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

LONGEST_REASON = 300
"""Characters of a reason in a row."""


@dataclass(frozen=True)
class Measurement:
    """One number, next to that of a peer or a bound if there is one, or the reason why there is none."""

    part: str
    name: str
    value: float | None = None
    unit: str = ""
    peer: float | None = None
    """What it is compared with, in the same unit."""
    holds: bool | None = None
    """Whether it is as it has to be; None where nothing is asked of it."""
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)


def failed(part: str, name: str, reason: str) -> Measurement:
    """A row for something that could not be measured."""
    return Measurement(part, name, failure=" ".join(reason.split())[:LONGEST_REASON])


def markdown(rows: Sequence[Measurement]) -> str:
    """The rows as a table."""
    lines = ["| part | what | measured | peer | ratio | holds |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [row.part, row.name, "", "", "", ""]
        if row.failure:
            cells[2] = f"not measured: {row.failure}"
        elif row.value is not None:
            cells[2] = f"{row.value:.4g} {row.unit}".strip()
            if row.peer is not None:
                cells[3] = f"{row.peer:.4g} {row.unit}".strip()
                cells[4] = f"{row.value / row.peer:.3g}" if row.peer else ""
        if row.holds is not None:
            cells[5] = "yes" if row.holds else "NO"
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
