"""One self-contained page with everything in it: tables, curves, where each number came from."""

import io
import json
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import Chart
from analysis.frames import Study
from analysis.tables import MISSING, Entry, Table


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def render(
    study: Study, tables: list[Table], charts: list[Chart], title: str, command: str, facts: dict[str, str]
) -> str:
    """The report as HTML; `command` fills what is missing, `facts` stand at the top."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("analysis").joinpath("report.html.j2").read_text())
    with files("analysis").joinpath("reference.csv").open() as file:
        reference = pd.read_csv(file, dtype=str)
    return template.render(
        title=title,
        tables=[_plain(table) for table in tables],
        charts=[{"name": c.name, "title": c.title, "svg": svg(c.figure)} for c in charts],
        missing=study.runs[study.runs["status"] != "done"].to_dict("records"),
        planned=len(study.runs),
        command=command,
        facts=facts,
        runs=[_run(row, study) for row in study.runs.to_dict("records")],
        reference=reference.to_dict("records"),
        version=version("shaping"),
    )


def _plain(table: Table) -> dict[str, Any]:
    """What the template needs of a table: two header rows, then rows of cells with their links."""
    frame = table.cells
    index = [value if isinstance(value, tuple) else (value,) for value in frame.index]
    groups: list[list[Any]] = []
    for group, _ in table.columns:
        if groups and groups[-1][0] == group:
            groups[-1][1] += 1
        else:
            groups.append([group, 1])
    return {
        "name": table.name,
        "title": table.title,
        "caption": table.caption,
        "missing": table.missing,
        "index_names": list(frame.index.names),
        "groups": groups,
        "columns": [name for _, name in table.columns],
        "rows": [
            {
                "index": [f"{part:,}" if isinstance(part, int) else part for part in key],
                "first": position == 0 or key[0] != index[position - 1][0],
                "cells": [_cell(cell) for cell in row],
            }
            for position, (key, row) in enumerate(zip(index, frame.to_numpy(), strict=True))
        ],
    }


def _cell(cell: Any) -> dict[str, Any]:
    if isinstance(cell, Entry):
        return {"text": str(cell), "runs": cell.stage_runs}
    return {"text": MISSING if cell is None else str(cell), "runs": ()}


def _run(row: Mapping[Any, Any], study: Study) -> dict[str, Any]:
    spec = study.specs[row["stage_run"]]
    return {**row, "parent": spec["parent"], "config": json.dumps(spec["config"], indent=1)}
