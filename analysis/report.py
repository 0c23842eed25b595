"""One self-contained page: what was run and what it shows, claims, figures, tables, samples, lineage of every number.

The page loads nothing: its content security policy names the hashes of its own two scripts and forbids all else, so
text that came from a model or a ledger cannot run even if it should slip past the template's escaping.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd

from analysis.claims import Verdict, sentences
from analysis.extra_figures import Beyond
from analysis.figures import Chart, objectives, page_specs
from analysis.paper_tables import benchmark_order
from analysis.reference import reference
from analysis.study import Study, read_samples
from analysis.tables import Entry, Table, show
from analysis.vega_lite import page_script

SHOWN_QUESTIONS = 3
SHOWN_OBJECTIVES = 6
DATA_ROWS = 400
"""Rows of a figure's own table at most."""


@dataclass(frozen=True)
class Content:
    """Everything that a report shows."""

    study: Study
    tables: list[Table]
    charts: list[Chart]
    beyond: Beyond
    verdicts: list[Verdict]
    paper_verdicts: list[Verdict]
    title: str
    command: str
    """What fills the gaps."""
    facts: Mapping[str, str]


def render(content: Content) -> str:
    """The report as HTML."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_asset("report.html.j2"))
    study = content.study
    numbers = {signature: place for place, signature in enumerate(study.specs)}
    charts = [*content.charts, *content.beyond.charts]
    data = {"charts": {chart.name: page_specs(chart) for chart in charts}, **_lineage(study, numbers)}
    # What is embedded may hold any text: escaped so that no "</script>" or "<!--" can end the element it stands in.
    island = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    scripts = [page_script().replace("</script", "<\\/script"), _asset("report.js")]
    missing = study.runs[study.runs["status"] != "done"]
    return template.render(
        title=content.title,
        facts=content.facts,
        sentences=sentences(content.verdicts),
        claims=_claims(content),
        charts=[_chart(chart) for chart in charts],
        undrawn=content.beyond.missing,
        tables=[_table(table, numbers) for table in content.tables],
        filters=_filters(content),
        samples=_samples(study),
        missing=[f"{s}/{r}" for s, r in zip(missing["stage"], missing["stage_run"], strict=True)],
        planned=len(study.runs),
        command=content.command,
        reference=reference().astype(str).to_dict("records"),
        version=version("shaping"),
        style=_asset("report.css"),
        scripts=scripts,
        island=island,
        policy="; ".join(
            [
                "default-src 'none'",
                f"script-src {' '.join(map(_hash, scripts))}",
                "style-src 'unsafe-inline'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
    )


def _asset(name: str) -> str:
    return files("analysis").joinpath(name).read_text()


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _claims(content: Content) -> list[dict[str, Any]]:
    pairs = zip(content.verdicts, content.paper_verdicts, strict=True)
    return [{"claim": ours.claim, "ours": ours, "paper": paper} for ours, paper in pairs]


def _chart(chart: Chart) -> dict[str, Any]:
    data = chart.data.head(DATA_ROWS)
    rows = [["" if _blank(v) else f"{v:.5g}" if isinstance(v, float) else str(v) for v in row]
            for row in data.itertuples(index=False)]  # fmt: skip
    return {"chart": chart, "panels": len(chart.panels), "columns": list(map(str, data.columns)), "rows": rows,
            "left_out": len(chart.data) - len(data)}  # fmt: skip


def _blank(value: Any) -> bool:
    return value is None or (not isinstance(value, str) and bool(pd.isna(value)))


def _table(table: Table, numbers: Mapping[str, int]) -> dict[str, Any]:
    """What the template needs of a table: header groups, columns with their benchmark, rows of cells."""
    usual = table.usual_n
    groups: list[list[Any]] = []
    for group, _ in table.columns:
        if groups and groups[-1][0] == group:
            groups[-1][1] += 1
        else:
            groups.append([group, 1])
    index = [key if isinstance(key, tuple) else (key,) for key in table.cells.index]
    return {
        "table": table,
        "file": table.name,
        "index_names": list(map(str, table.cells.index.names)),
        "groups": groups,
        "columns": [{"name": name, "benchmark": _benchmark(group, name, table.stage)} for group, name in table.columns],
        "rows": [
            {
                "index": [(part, f"{part:,}" if isinstance(part, int) else str(part)) for part in key],
                "objective": str(key[0]),
                "again": place > 0 and len(key) > 1 and key[0] == index[place - 1][0],
                "cells": [_cell(cell, usual, numbers) for cell in row],
            }
            for place, (key, row) in enumerate(zip(index, table.cells.to_numpy(), strict=True))
        ],
    }


def _benchmark(group: str, name: str, stage: str | None) -> str:
    """The benchmark that a column is about; empty for averages and the paper's columns."""
    if stage == "grpo":
        return "" if group == "average" or group.startswith(("paper", "ours")) else group
    return "" if group in ("", "text") or group.startswith(("paper", "ours")) else name.rsplit(" ", 1)[0]


def _cell(cell: Any, usual: int, numbers: Mapping[str, int]) -> dict[str, Any]:
    if not isinstance(cell, Entry):
        return {"text": str(cell), "value": cell if _is_number(cell) else "", "runs": "", "best": False, "note": ""}
    runs = ",".join(str(numbers[signature]) for signature in cell.stage_runs)
    note = ""
    if cell.value is None:
        note = (
            f"waits for {', '.join(cell.lacks[:4])}" if cell.lacks else "not measured by the evaluations that were run"
        )
    elif cell.lacks:
        note = f"n = {cell.n}; more seeds wait for {', '.join(cell.lacks[:4])}"
    elif cell.n != usual:
        note = f"n = {cell.n}"
    value = "" if cell.value is None else f"{cell.value:.6g}"
    return {"text": show(cell, usual), "value": value, "runs": runs, "best": cell.best, "note": note}


def _is_number(text: Any) -> bool:
    return str(text).replace(".", "", 1).replace("-", "", 1).isdigit()


def _filters(content: Content) -> dict[str, list[str]]:
    tables = content.tables
    names = {_benchmark(g, n, t.stage) for t in tables for g, n in t.columns if t.stage} - {""}
    return {
        "model": list(dict.fromkeys(t.model for t in tables if t.model)),
        "objective": objectives({name for t in tables for name in t.objectives}),
        "benchmark": benchmark_order(sorted(names), "pretrain"),
    }


def _lineage(study: Study, numbers: Mapping[str, int]) -> dict[str, Any]:
    """Every stage run with its parent and configuration; parts of configurations that are alike stand there once."""
    parts: dict[str, int] = {}
    runs = []
    status = study.status
    for signature, spec in study.specs.items():
        shown = dict(spec["config"])
        if spec.get("environment"):
            shown["environment"] = spec["environment"]
        refs = {name: parts.setdefault(json.dumps(part, indent=1), len(parts)) for name, part in shown.items()}
        labels = spec["labels"]
        runs.append(
            [
                spec["stage"],
                signature,
                numbers.get(spec["parent"]["signature"], -1) if spec["parent"] else -1,
                f"{labels['model']}/{labels['objective']}/seed{labels['seed']}",
                spec["checkpoint"],
                status[signature],
                refs,
            ]
        )
    return {"runs": runs, "parts": list(parts)}


def _samples(study: Study) -> list[dict[str, Any]]:
    """A few questions of each RL benchmark with every setting's first answer, after the last RL step, first seed."""
    if study.store is None:
        return []
    rows = study.measurements
    rows = rows[(rows["stage"] == "grpo") & (rows["variant"] == "") & (rows["group"] == "math")]
    shown = []
    for model in study.runs["model"].unique():
        own = rows[rows["model"] == model]
        if own.empty:
            continue
        own = own[(own["seed"] == own["seed"].min())]
        settings = objectives(own["objective"].unique())[:SHOWN_OBJECTIVES]
        answers: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
        step = own["step"].max()
        for name in settings:
            part = own[(own["objective"] == name) & (own["step"] == step)]
            for benchmark in part["benchmark"].unique():
                run = part.loc[part["benchmark"] == benchmark, "stage_run"].iloc[0]
                questions = answers.setdefault(str(benchmark), {})
                for row in _first_answers(study, run, str(benchmark)):
                    questions.setdefault(str(row["question"]), {})[name] = row
        for benchmark, questions in answers.items():
            if questions:
                title = f"{benchmark}, {model}, RL step {step}, seed {own['seed'].iloc[0]}"
                chosen = list(questions.items())[:SHOWN_QUESTIONS]
                shown.append({"title": title, "settings": settings, "questions": chosen})
    return shown


def _first_answers(study: Study, stage_run: str, benchmark: str) -> Sequence[dict[str, Any]]:
    assert study.store is not None
    found: dict[str, dict[str, Any]] = {}
    for row in read_samples(study.store, stage_run, benchmark, SHOWN_QUESTIONS * 128):
        if row["question"] not in found:
            if len(found) == SHOWN_QUESTIONS:
                break
            found[row["question"]] = row
    return list(found.values())
