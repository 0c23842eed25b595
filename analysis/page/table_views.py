"""The tables as the page shows them: cells with number and interval apart, the last checkpoint first, cautions."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.figures.charts import setting_order
from analysis.headline_words import CEILING
from analysis.paper_tables import benchmark_order
from analysis.table_files import index_text
from analysis.tables import Entry, Table, show


def table_view(
    table: Table, indices: Mapping[str, int], colours: Mapping[str, str], *, origin: str = ""
) -> dict[str, Any]:
    """Returns a table for the template; `indices` are those of stage runs in the page's data.

    `origin` is the end of the caption that the page says once for all tables.
    """
    usual = table.usual_n
    rows: list[dict[str, Any]] = []
    keys = [key for key, _ in table.rows]
    for number, (key, cells) in enumerate(table.rows):
        is_nested = len(key) > 1
        is_last = not is_nested or number + 1 == len(keys) or keys[number + 1][0] != key[0]
        # RL's step 0 is the model before RL, which its last step is compared with.
        is_before = table.stage == "grpo" and key[1] == 0
        rows.append(
            {
                "index": [(part, index_text(part)) for part in key],
                "objective": str(key[0]),
                "colour": colours.get(str(key[0])) if is_nested else None,
                "is_repeated": is_nested and number > 0 and keys[number - 1][0] == key[0],
                "is_earlier": not is_last and not is_before,
                "is_control": any(isinstance(cell, Entry) and cell.variant for cell in cells),
                "cells": [_cell(cell, usual, indices) for cell in cells],
            }
        )
    return {
        "table": table,
        "caption": table.caption.removesuffix(origin).strip(),
        "columns": [
            {
                "name": name,
                "label": " ".join(filter(None, (group, name))),
                "benchmark": benchmark_of(column, table.stage),
            }
            for column in table.columns
            for group, name in [column]
        ],
        "rows": rows,
        "earlier": any(row["is_earlier"] for row in rows),
        "cautions": _cautions(table),
    }


def benchmark_of(column: tuple[str, str], stage: str | None) -> str:
    """Returns the benchmark that a column is about; empty for averages and the paper's columns."""
    group, name = column
    if stage == "grpo":
        return "" if group == "average" or group.startswith(("paper", "ours")) else group
    return "" if group in ("", "text") or group.startswith(("paper", "ours")) else name.rsplit(" ", 1)[0]


def _cell(cell: Any, usual: int, indices: Mapping[str, int]) -> dict[str, Any]:
    """A cell for the template: number, interval, the value to sort by, its stage runs, and a note for the pointer."""
    if not isinstance(cell, Entry):
        return {"text": str(cell), "value": cell if _is_number(cell) else "", "interval": "", "runs": "", "note": ""}
    # The note explains a missing number, or one from fewer seeds than usual.
    waits_for = ", ".join(cell.waits_for[:4])
    note = ""
    if cell.value is None:
        note = f"waits for {waits_for}" if waits_for else "not measured by the evaluations that were run"
    elif waits_for:
        note = f"n = {cell.n}; more seeds wait for {waits_for}"
    elif cell.n != usual:
        note = f"n = {cell.n}"
    number, _, rest = show(cell, usual).partition(" ") if cell.value is not None else (show(cell, usual), "", "")
    return {
        "text": number,
        "interval": rest,
        "value": "" if cell.value is None else f"{cell.value:.6g}",
        "runs": ",".join(str(indices[signature]) for signature in cell.stage_runs),
        "best": cell.best,
        "absent": cell.value is None,
        "note": note,
    }


def _is_number(text: Any) -> bool:
    return str(text).replace(".", "", 1).replace("-", "", 1).isdigit()


def _cautions(table: Table) -> list[str]:
    """What hides differences in a table: most of its last numbers at the ceiling."""
    last: dict[str, list[Entry]] = {}
    for key, cells in table.rows:
        # A later checkpoint of the same setting replaces the earlier one.
        entries = [cell for cell in cells if isinstance(cell, Entry) and cell.value is not None]
        last[str(key[0])] = [
            entry
            for entry, column in zip(entries, table.columns, strict=False)
            if column[0] != "text" and not column[0].startswith(("paper", "ours"))
        ]
    values = [entry.value for entries in last.values() for entry in entries if entry.value is not None]
    full = sum(value >= CEILING for value in values)
    if table.stage is None or not values or full * 2 < len(values):
        return []
    return [f"Saturated: {full} of {len(values)} numbers at the last checkpoint are at {CEILING:.0f} % or more."]


def filters(tables: Sequence[Table]) -> dict[str, list[str]]:
    """Returns what the tables can be filtered by -> the choices."""
    benchmarks = {benchmark_of(column, table.stage) for table in tables if table.stage for column in table.columns}
    return {
        "model": list(dict.fromkeys(table.model for table in tables if table.model)),
        "objective": setting_order(name for table in tables for name in table.objectives),
        "benchmark": benchmark_order(sorted(benchmarks - {""}), "pretrain"),
    }
