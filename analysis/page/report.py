"""One self-contained page: what was run and what it shows, claims, figures, tables, samples, lineage of every number.

The page loads nothing: its content security policy lists the hash of its script and forbids everything else, so text
from a model or a ledger could not run even if it got past the template's escaping. Figures are drawn before, so that
they are there at once, without a script, and on paper.
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
from analysis.figures.all_figures import Figures
from analysis.figures.charts import Chart, setting_order
from analysis.paper_tables import benchmark_order
from analysis.reference import reference
from analysis.study import Study, read_samples
from analysis.table_files import index_text
from analysis.tables import Entry, Table, show
from sweeps.plan.names import cell_of

SHOWN_QUESTIONS = 3
SHOWN_OBJECTIVES = 6
SAMPLES_READ = 128
"""Samples read per shown question, to find that many questions."""
DATA_ROWS = 400
"""Most rows of a figure's table of numbers."""


@dataclass(frozen=True)
class Content:
    """Everything that a report shows."""

    study: Study
    tables: list[Table]
    figures: Figures
    panels: Mapping[str, Sequence[str]]
    """Chart -> the SVG of each of its panels."""
    verdicts: list[Verdict]
    paper_verdicts: list[Verdict]
    title: str
    command: str
    """Computes the missing numbers."""
    facts: Mapping[str, str]
    """Name -> value, at the top of the page."""


def render(content: Content) -> str:
    """Returns the report as HTML."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_asset("report.html.j2"))
    study = content.study
    # Stage runs are referred to by their index in the embedded list.
    indices = {signature: index for index, signature in enumerate(study.specs)}
    data = _lineage(study, indices)
    # The data may contain any text: "<" is escaped, so that no "</script>" or "<!--" ends the element it is in.
    island = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    scripts = [_asset("report.js")]
    missing = study.runs[study.runs["status"] != "done"]
    return template.render(
        title=content.title,
        facts=content.facts,
        sentences=sentences(content.verdicts),
        claims=_claims(content),
        charts=[_chart(chart, content.panels[chart.name]) for chart in content.figures.charts],
        undrawn=content.figures.missing,
        tables=[_table(table, indices) for table in content.tables],
        filters=_filters(content.tables),
        samples=_samples(study),
        missing=[f"{s}/{r}" for s, r in zip(missing["stage"], missing["stage_run"], strict=True)],
        planned=len(study.runs),
        command=content.command,
        reference=reference().astype(str).to_dict("records"),
        version=version("shaping"),
        style=_asset("report.css"),
        scripts=scripts,
        island=island,
        policy=_policy(scripts),
    )


def _asset(name: str) -> str:
    return files("analysis.page").joinpath(name).read_text()


def _policy(scripts: Sequence[str]) -> str:
    """The content security policy: only these scripts run, and nothing is loaded."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(f"'sha256-{digest}'" for digest in digests),
            "style-src 'unsafe-inline'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _claims(content: Content) -> list[dict[str, Any]]:
    pairs = zip(content.verdicts, content.paper_verdicts, strict=True)
    return [{"claim": ours.claim, "ours": ours, "paper": paper} for ours, paper in pairs]


def _chart(chart: Chart, panels: Sequence[str]) -> dict[str, Any]:
    """A chart for the template: its drawn panels, and the table of its numbers."""
    data = chart.data.head(DATA_ROWS)
    return {
        "chart": chart,
        "panels": panels,
        "columns": list(map(str, data.columns)),
        "rows": [[_data_text(value) for value in row] for row in data.itertuples(index=False)],
        "left_out": len(chart.data) - len(data),
    }


def _data_text(value: Any) -> str:
    if value is None or (not isinstance(value, str) and bool(pd.isna(value))):
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _table(table: Table, indices: Mapping[str, int]) -> dict[str, Any]:
    """A table for the template: column groups, columns with their benchmark, rows of cells."""
    usual = table.usual_n
    rows = []
    previous: Any = None
    for key, cells in table.rows:
        rows.append(
            {
                "index": [(part, index_text(part)) for part in key],
                "objective": str(key[0]),
                "is_repeated": len(key) > 1 and key[0] == previous,
                "is_control": any(isinstance(cell, Entry) and cell.variant for cell in cells),
                "cells": [_cell(cell, usual, indices) for cell in cells],
            }
        )
        previous = key[0]
    return {
        "table": table,
        "columns": [{"name": name, "benchmark": _benchmark(group, name, table.stage)} for group, name in table.columns],
        "rows": rows,
    }


def _benchmark(group: str, name: str, stage: str | None) -> str:
    """The benchmark that a column is about; empty for averages and the paper's columns."""
    if stage == "grpo":
        return "" if group == "average" or group.startswith(("paper", "ours")) else group
    return "" if group in ("", "text") or group.startswith(("paper", "ours")) else name.rsplit(" ", 1)[0]


def _cell(cell: Any, usual: int, indices: Mapping[str, int]) -> dict[str, Any]:
    """A cell for the template: its text, the value to sort by, its stage runs, and a note for the pointer."""
    if not isinstance(cell, Entry):
        return {"text": str(cell), "value": cell if _is_number(cell) else "", "runs": "", "best": False, "note": ""}
    # The note explains a missing number, or one from fewer seeds than usual.
    waits_for = ", ".join(cell.waits_for[:4])
    note = ""
    if cell.value is None:
        note = f"waits for {waits_for}" if waits_for else "not measured by the evaluations that were run"
    elif waits_for:
        note = f"n = {cell.n}; more seeds wait for {waits_for}"
    elif cell.n != usual:
        note = f"n = {cell.n}"
    return {
        "text": show(cell, usual),
        "value": "" if cell.value is None else f"{cell.value:.6g}",
        "runs": ",".join(str(indices[signature]) for signature in cell.stage_runs),
        "best": cell.best,
        "note": note,
    }


def _is_number(text: Any) -> bool:
    return str(text).replace(".", "", 1).replace("-", "", 1).isdigit()


def _filters(tables: Sequence[Table]) -> dict[str, list[str]]:
    """What the tables can be filtered by -> the choices."""
    benchmarks = {_benchmark(group, name, t.stage) for t in tables if t.stage for group, name in t.columns} - {""}
    return {
        "model": list(dict.fromkeys(t.model for t in tables if t.model)),
        "objective": setting_order(name for t in tables for name in t.objectives),
        "benchmark": benchmark_order(sorted(benchmarks), "pretrain"),
    }


def _lineage(study: Study, indices: Mapping[str, int]) -> dict[str, Any]:
    """Every stage run with its parent and configuration; equal parts of configurations are stored once."""
    parts: dict[str, int] = {}
    runs = []
    status = study.status
    for signature, spec in study.specs.items():
        # The configuration that was used, and the environment if it was run.
        shown = dict(spec["config"])
        if spec.get("environment"):
            shown["environment"] = spec["environment"]
        references = {name: parts.setdefault(json.dumps(part, indent=1), len(parts)) for name, part in shown.items()}
        runs.append(
            [
                spec["stage"],
                signature,
                indices.get(spec["parent"]["signature"], -1) if spec["parent"] else -1,
                cell_of(spec["labels"]),
                spec["checkpoint"],
                status[signature],
                references,
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
        of_model = rows[rows["model"] == model]
        if of_model.empty:
            continue
        seed = of_model["seed"].min()
        of_seed = of_model[of_model["seed"] == seed]
        step = of_seed["step"].max()
        last = of_seed[of_seed["step"] == step]
        settings = setting_order(of_seed["objective"].unique())[:SHOWN_OBJECTIVES]
        # benchmark -> question -> setting -> its answer
        answers: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
        for setting in settings:
            of_setting = last[last["objective"] == setting].drop_duplicates("benchmark")
            for benchmark, run in zip(of_setting["benchmark"], of_setting["stage_run"], strict=True):
                questions = answers.setdefault(str(benchmark), {})
                for answer in _first_answers(study, run, str(benchmark)):
                    questions.setdefault(str(answer["question"]), {})[setting] = answer
        for benchmark, questions in answers.items():
            if questions:
                title = f"{benchmark}, {model}, RL step {step}, seed {seed}"
                chosen = list(questions.items())[:SHOWN_QUESTIONS]
                shown.append({"title": title, "settings": settings, "questions": chosen})
    return shown


def _first_answers(study: Study, stage_run: str, benchmark: str) -> Sequence[dict[str, Any]]:
    """The first answer to each of the first questions."""
    assert study.store is not None
    answers: dict[str, dict[str, Any]] = {}
    for row in read_samples(study.store, stage_run, benchmark, limit=SHOWN_QUESTIONS * SAMPLES_READ):
        if row["question"] not in answers:
            if len(answers) == SHOWN_QUESTIONS:
                break
            answers[row["question"]] = row
    return list(answers.values())
