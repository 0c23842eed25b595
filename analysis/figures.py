"""All figures of a study: which there are, in which order, and what a figure that cannot be drawn waits for."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from analysis.charts import Chart
from analysis.extra_figures import (
    calibration,
    entropy_collapse,
    forking_tokens,
    parameter_maps,
    predictors,
    scaling,
    temperature_control,
    theory,
)
from analysis.figure_data import Drawn, FigureData, cell_facts
from analysis.paper_figures import base_scores, pretraining, rl_curves, rl_scores
from analysis.paper_tables import counterpart
from analysis.reference import EXPERTS
from analysis.study import NotMeasured, Study

logger = logging.getLogger("analysis")


@dataclass(frozen=True)
class Figure:
    """A figure and the function that draws it, which raises `NotMeasured` if the store lacks its data."""

    name: str
    """Of its files."""
    title: str
    draw: Callable[[FigureData], Drawn]
    numbers: tuple[int, int] | None = None
    """The paper's numbers for a dense model and for a mixture of experts; None if the paper does not have it."""
    is_per_model: bool = True
    """Whether it is drawn for every model, or once for all of them."""


# A further figure is one entry here and its function in `extra_figures`; its test belongs in
# tests/analysis/test_figures.py, which also draws every figure listed here.
FIGURES = (
    Figure("pretraining", "Perplexity and entropy", pretraining, (1, 2)),
    Figure("scores", "Base-model scores", base_scores, (3, 4)),
    Figure("rl-scores", "RL results", rl_scores, (5, 6)),
    Figure("rl", "RL: reward, entropy, response length and pass@k", rl_curves, (7, 7)),
    Figure("maps", "Maps over beta, lambda and k", parameter_maps),
    Figure("collapse", "Collapse against prior entropy", entropy_collapse),
    Figure("predictors", "What predicts RL", predictors),
    Figure("theory", "Theory against measurement", theory),
    Figure("control", "The temperature-matched control", temperature_control),
    Figure("calibration", "Calibration", calibration),
    Figure("forking", "Forking tokens", forking_tokens),
    Figure("scaling", "Scaling over model sizes", scaling, is_per_model=False),
)


@dataclass
class Figures:
    """The charts of a study, and the figures that could not be drawn: (title, what is missing)."""

    charts: list[Chart] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


def build_figures(study: Study, *, on_chart: Callable[[Chart], object] = lambda chart: None) -> Figures:
    """Returns all figures: the paper's by number, then the others by model.

    `on_chart` is called with each chart as soon as it exists, so that drawing can start.
    """
    facts = cell_facts(study)
    models = [str(model) for model in study.runs["model"].unique()]
    tasks = [(figure, model) for model in models for figure in FIGURES if figure.is_per_model]
    tasks += [(figure, "") for figure in FIGURES if not figure.is_per_model]
    figures = Figures()
    for figure, model in tasks:
        title = f"{figure.title}, {model}" if model else figure.title
        try:
            drawn = figure.draw(FigureData(study, model, facts))
        except NotMeasured as error:
            logger.debug("figure %s is not drawn: %s", title, error)
            figures.missing.append((title, str(error)))
            continue
        name = f"{figure.name}-{model}" if model else figure.name
        number = figure.numbers and figure.numbers[_is_mixture(study, model)]
        chart = Chart(name, number, title, drawn.caption, tuple(drawn.panels), drawn.data)
        on_chart(chart)
        figures.charts.append(chart)
    figures.charts.sort(key=lambda chart: (chart.number is None, chart.number or 0))
    return figures


def _is_mixture(study: Study, model: str) -> bool:
    """Whether a model takes the place of one of the paper's mixtures of experts."""
    signatures = study.runs.loc[study.runs["model"] == model, "stage_run"]
    configs = (study.specs[signature]["config"] for signature in signatures)
    return counterpart(model, next((config["model"] for config in configs if "model" in config), {})) in EXPERTS
