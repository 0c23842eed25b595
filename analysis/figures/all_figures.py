"""Draws all figures of a study, and lists those that cannot be drawn with what is missing."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from analysis.estimates import Estimates
from analysis.figures.charts import Chart
from analysis.figures.extra_figures import EXTRA_FIGURES
from analysis.figures.figure_data import FigureData, cell_facts
from analysis.figures.paper_figures import PAPER_FIGURES
from analysis.paper_tables import counterpart
from analysis.reference import EXPERTS
from analysis.study import NotMeasured, Study

logger = logging.getLogger("analysis")


FIGURES = (*PAPER_FIGURES, *EXTRA_FIGURES)

KINDS = ((False, "a dense model", "micro"), (True, "a mixture of experts", "micro-moe"))
"""Whether it is a mixture, what it is called, and a model of the kind."""


@dataclass
class Figures:
    """The charts of a study, and the figures that could not be drawn: (title, what is missing)."""

    charts: list[Chart] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    other_models: list[tuple[str, str]] = field(default_factory=list)
    """The paper's figures of a kind of model that the study does not have: (title, what to do)."""


def build_figures(study: Study, *, on_chart: Callable[[Chart], object] = lambda chart: None) -> Figures:
    """Returns all figures: the paper's by number, then the others by model.

    `on_chart` is called with each chart as soon as it exists, so that drawing can start.
    """
    # Facts about cells are computed once for all figures.
    facts, estimates = cell_facts(study), Estimates.of(study)
    models = [str(model) for model in study.runs["model"].unique()]
    tasks = [(figure, model) for model in models for figure in FIGURES if figure.is_per_model]
    tasks += [(figure, "") for figure in FIGURES if not figure.is_per_model]
    figures = Figures()
    for figure, model in tasks:
        title = f"{figure.title}, {model}" if model else figure.title
        # A figure that lacks its data is listed with the reason and does not stop the others.
        try:
            drawn = figure.draw(FigureData(study, model, facts, estimates))
        except NotMeasured as error:
            logger.debug("figure %s is not drawn: %s", title, error)
            figures.missing.append((title, str(error)))
            continue
        name = f"{figure.name}-{model}" if model else figure.name
        number = figure.numbers and figure.numbers[_is_mixture(study, model)]
        chart = Chart(name, number, title, drawn.caption, tuple(drawn.panels), drawn.data)
        on_chart(chart)
        figures.charts.append(chart)
    figures.other_models = _other_models(study, models)
    # Stable: the figures without a number stay in the order of the list.
    figures.charts.sort(key=lambda chart: (chart.number is None, chart.number or 0))
    return figures


def _other_models(study: Study, models: list[str]) -> list[tuple[str, str]]:
    """`Figures.other_models`."""
    kinds = {_is_mixture(study, model) for model in models}
    missing = []
    for figure in FIGURES:
        if figure.numbers is None or figure.numbers[0] == figure.numbers[1]:
            continue
        for is_mixture, kind, example in KINDS:
            if models and is_mixture not in kinds:
                number, other = figure.numbers[is_mixture], figure.numbers[not is_mixture]
                reason = f"it is figure {other} for {kind}, which this study does not have; model={example} adds one"
                missing.append((f"Figure {number}: {figure.title}", reason))
    return missing


def _is_mixture(study: Study, model: str) -> bool:
    """Whether a model takes the place of one of the paper's mixtures of experts."""
    signatures = study.runs.loc[study.runs["model"] == model, "stage_run"]
    configs = (study.specs[signature]["config"] for signature in signatures)
    return counterpart(model, next((config["model"] for config in configs if "model" in config), {})) in EXPERTS
