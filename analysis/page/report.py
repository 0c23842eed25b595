"""One self-contained page: the result first, then how it was made, claims, figures, tables, samples and lineage.

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
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis.claim_words import corrected_p, decision
from analysis.claims import CONTRADICTED, MISSING, SUPPORTED, UNDECIDED, Verdict
from analysis.figures.all_figures import Figures
from analysis.figures.charts import Chart, setting_colours
from analysis.headline import Headline
from analysis.headline_words import POWER, seed_count
from analysis.page.headline_view import headline_view
from analysis.page.lineage import lineage
from analysis.page.sample_views import samples
from analysis.page.table_views import filters, table_view
from analysis.provenance import Provenance
from analysis.reference import reference
from analysis.study import Study
from analysis.tables import Table

DATA_ROWS = 400
"""Most rows of a figure's table of numbers."""


@dataclass(frozen=True)
class Content:
    """Everything that a report shows."""

    study: Study
    headline: Headline
    provenance: Provenance
    tables: list[Table]
    figures: Figures
    panels: Mapping[str, Sequence[str]]
    """Chart -> the SVG of each of its panels; the headline's is called `headline`."""
    verdicts: list[Verdict]
    paper_verdicts: list[Verdict]
    title: str
    command: str
    """Computes the missing numbers."""
    origin: str = ""
    """The end that all tables' captions share, which the page says once."""
    decide: Mapping[str, str] | None = None
    """What would decide: `words` and `command`; None if nothing is open."""
    refresh: int | None = None
    """Seconds after which an open page is read again; None for a page that is finished."""
    folder: Path | None = None
    """Where the page is written, for links into the store."""


def render(content: Content) -> str:
    """Returns the report as HTML."""
    templates = jinja2.PackageLoader("analysis.page")
    environment = jinja2.Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    study = content.study
    colours = setting_colours(study.settings)
    # Stage runs are referred to by their index in the embedded list.
    indices = {signature: index for index, signature in enumerate(study.specs)}
    # The data may contain any text: "<" is escaped, so that no "</script>" or "<!--" ends the element it is in.
    data = lineage(study, indices, colours=colours, folder=content.folder)
    island = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    script = asset("report.js")
    missing = study.runs[study.runs["status"] != "done"]
    first_screen = headline_view(content.headline, colours, content.panels.get("headline", ()))
    return environment.get_template("report.html.j2").render(
        title=content.title,
        headline=first_screen | {"decide": content.decide},
        facts=content.provenance.facts,
        claims=_claims(content),
        power=POWER,
        charts=[_chart(chart, content.panels[chart.name]) for chart in content.figures.charts],
        undrawn=content.figures.other_models + content.figures.missing,
        tables=[table_view(table, indices, colours, origin=content.origin) for table in content.tables],
        origin=content.origin,
        filters=filters(content.tables),
        samples=samples(study, colours),
        missing=[f"{s}/{r}" for s, r in zip(missing["stage"], missing["stage_run"], strict=True)],
        planned=len(study.runs),
        missing_command=content.command,
        refresh=content.refresh,
        reference=reference().astype(str).to_dict("records"),
        version=version("shaping"),
        style=asset("report.css"),
        script=script,
        island=island,
        policy=_policy(script),
    )


def asset(name: str) -> str:
    """Returns a file of the page."""
    return files("analysis.page").joinpath(name).read_text()


def _policy(script: str) -> str:
    """The content security policy: only this script runs, and nothing is loaded."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'sha256-{digest}'",
            "style-src 'unsafe-inline'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _claims(content: Content) -> list[dict[str, Any]]:
    """The claims by verdict, each with the number that decides it."""
    views: dict[str, list[dict[str, Any]]] = {verdict: [] for verdict in (SUPPORTED, CONTRADICTED, UNDECIDED)}
    for ours, paper in zip(content.verdicts, content.paper_verdicts, strict=True):
        decided = decision(ours)
        estimate = decided.comparison.estimate
        count = estimate.n if estimate else 0
        needed = decided.comparison.seeds_needed
        views[ours.verdict].append(
            {
                "ours": ours,
                "paper": paper,
                "decision": decided,
                "paper_decision": decision(paper),
                "seeds": f"{count} seed" + ("" if count == 1 else "s"),
                "p": corrected_p(ours) and f"{corrected_p(ours)} corrected",
                "needed": seed_count(needed) if ours.verdict == UNDECIDED and needed and needed > count else None,
                "missing": [c.evidence for c in ours.comparisons if c.direction == MISSING] if estimate else [],
                "is_missing": estimate is None,
            }
        )
    # A claim with a number comes before one without.
    return [
        {"verdict": verdict, "claims": sorted(claims, key=lambda view: bool(view["is_missing"]))}
        for verdict, claims in views.items()
    ]


def _chart(chart: Chart, panels: Sequence[str]) -> dict[str, Any]:
    """A chart for the template: its drawn panels, and the table of its numbers."""
    data = chart.data.drop(columns="tip", errors="ignore").head(DATA_ROWS)
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
