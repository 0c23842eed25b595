"""The page of two sweeps, stores or commits."""

from collections.abc import Sequence
from importlib.metadata import version

import jinja2

from analysis.comparison import LISTED, ComparedRow, Comparison, sentence
from analysis.figures.charts import setting_colours
from analysis.headline_words import difference_text, interval_text
from analysis.page.headline_view import cell_view
from analysis.page.report import asset

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page has no script."""
TITLES = {"before": "before RL", "result": "after RL"}


def render_comparison(comparison: Comparison, panels: Sequence[str]) -> str:
    """Returns the comparison as HTML, with the SVG of its figure's panels."""
    templates = jinja2.PackageLoader("analysis.page")
    environment = jinja2.Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    first, second = (side.name for side in comparison.sides)
    colours = setting_colours(row.setting for row in comparison.rows)
    models = {row.model for row in comparison.rows}
    return environment.get_template("comparison.html.j2").render(
        title=f"Shaping: {first} and {second}",
        first=first,
        second=second,
        sentence=sentence(comparison),
        rows=[_row(row) | {"colour": colours[row.setting], "name": _name(row, len(models))} for row in comparison.rows],
        panels=panels,
        configuration=comparison.configuration,
        most=LISTED,
        only=comparison.only,
        version=version("shaping"),
        style=asset("report.css"),
        policy=POLICY,
    )


def _name(row: ComparedRow, models: int) -> str:
    return row.setting if models == 1 else f"{row.setting}, {row.model}"


def _row(row: ComparedRow) -> dict[str, object]:
    title = TITLES.get(row.measure.name, row.measure.name)
    unit = {"percent": "%"}.get(row.measure.unit, row.measure.unit)
    view: dict[str, object] = {
        "measure": f"{title}, {unit}" if unit else title,
        "first": cell_view(row.first),
        "second": cell_view(row.second),
        "number": "",
        "interval": "",
        "word": "no seed in common",
    }
    if row.difference:
        count = len(row.difference.seeds)
        seeds = f"{count} seed" + ("" if count == 1 else "s")
        number, _, _ = difference_text(row.difference, row.measure).partition(" ")
        interval = interval_text(row.difference.estimate, row.measure.digits).replace("-", "−")
        view |= {"number": number, "interval": interval, "word": f"{row.difference.word}, {seeds}"}
    return view
