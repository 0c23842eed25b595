"""How often claims, bold cells and predictors are significant where there is nothing, by simulation.

Each simulation has so many trials that its 95 % interval (Clopper-Pearson) tells 5 % from 10 %.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.best_entries import mark_best
from analysis.claim_language import Term
from analysis.claims import Claim, judge
from analysis.estimates import Estimates
from analysis.figures.all_figures import FIGURES
from analysis.figures.figure_data import FigureData, cell_facts
from analysis.statistics import ALPHA, Sampled, rank_correlations
from analysis.study import Study, read_study
from analysis.tables import Entry, Table
from tests.analysis.conftest import Measured

CLAIMS = 6


def assert_at_most_five_percent(alarms: int, trials: int, *, least: float = 0.0) -> None:
    """The rate's interval reaches down to 5 %, and excludes 10 %; a rate of at least `least` shows that it tests."""
    interval = stats.binomtest(alarms, trials).proportion_ci()
    assert interval.low <= 0.05, (alarms / trials, interval)
    assert interval.high < 0.10, (alarms / trials, interval)
    assert alarms / trials >= least


class Nulls:
    """A source of numbers in which every claim compares two settings that are equal in truth."""

    exact = False
    of = "a simulation"

    def __init__(self, draw: Callable[[], Sampled]) -> None:
        self._draw = draw

    def models(self, term: Term) -> list[str]:
        return ["m"]

    def quantity(self, term: Term, model: str) -> Sampled:
        return self._draw()


def continuous(rng: np.random.Generator, seeds: int) -> Sampled:
    return Sampled(tuple(range(seeds)), rng.normal(50, 5, seeds), ())


def at_the_ceiling(rng: np.random.Generator, seeds: int) -> Sampled:
    values = 100 * rng.binomial(64, 0.99, seeds) / 64
    return Sampled(tuple(range(seeds)), values, (), 100 / 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "seeds", "least"),
    [
        (continuous, 5, 0.03),
        pytest.param(continuous, 2, 0.03, marks=pytest.mark.ci_only),
        pytest.param(at_the_ceiling, 5, 0, marks=pytest.mark.ci_only),
        (at_the_ceiling, 2, 0),
    ],
)
def test_six_true_nulls_give_a_wrong_verdict_in_at_most_five_percent(
    draw: Callable[[np.random.Generator, int], Sampled], seeds: int, least: float
) -> None:
    """Supported or contradicted, for any of six claims; before, Holm's family followed the data: 10 %."""
    rng = np.random.default_rng(0)
    claims = [Claim(f"c{i}", "s", "", (f'value("a{i}") > value("b{i}")',)) for i in range(CLAIMS)]
    source = Nulls(lambda: draw(rng, seeds))
    trials = 800
    alarms = sum(any(v.verdict != "undecided" for v in judge(claims, source)) for _ in range(trials))
    assert_at_most_five_percent(alarms, trials, least=least)


def base_table(values: np.ndarray, resolution: float, number_of_rows: int) -> Table:
    """A table [rows x settings, columns] of `values` [settings, rows, columns, seeds]."""
    settings, rows, columns, seeds = values.shape
    cells = [
        [Entry(float(v.mean()), n=seeds, by_seed=tuple(v), resolution=resolution) for v in values[s, r]]
        for s in range(settings)
        for r in range(rows)
    ]
    index = pd.MultiIndex.from_product([range(settings), range(rows)], names=["objective", "tokens"])
    names = pd.MultiIndex.from_tuples([("math", f"b{c}") for c in range(columns)])
    frame = pd.DataFrame(cells, index=index, dtype=object)
    frame.columns = names
    return Table("t", 3, "t", "", frame, "m", "pretrain")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "seeds", "share"),
    [
        (2, 5, 0.98),
        (3, 2, 0.5),
        (3, 2, 1.0),
        (3, 5, 0.9),
        *(pytest.param(2, 5, share, marks=pytest.mark.ci_only) for share in (0.5, 0.9, 1.0)),
        *(pytest.param(3, 2, share, marks=pytest.mark.ci_only) for share in (0.9, 0.98)),
        *(pytest.param(3, 5, share, marks=pytest.mark.ci_only) for share in (0.5, 0.98, 1.0)),
    ],
)
def test_bold_cells_of_equal_settings_are_rare(settings: int, seeds: int, share: float) -> None:
    """Any bold cell in a table of 3 checkpoints x 5 benchmarks of 64 items, up to the ceiling.

    Seeds of all settings share their data: part of their error is common, and settings differ by the rest.
    """
    rng = np.random.default_rng(int(100 * share) + settings + seeds)
    trials, alarms = 500, 0
    for _ in range(trials):
        common = rng.normal(0, 0.05 * (share < 1), (1, 3, 5, seeds))
        values = rng.binomial(64, np.clip(share + common, 0, 1), (settings, 3, 5, seeds)) * (100 / 64)
        (cells,) = mark_best([base_table(values, 100 / 64, 3)])
        alarms += any(entry.best for entry in cells.to_numpy().ravel())
    assert_at_most_five_percent(alarms, trials)


def test_a_setting_that_is_better_is_bold() -> None:
    values = np.random.default_rng(3).normal(50, 2, (3, 3, 5, 5))
    values[1] += 30
    (cells,) = mark_best([base_table(values, 1.0, 3)])
    bold = np.vectorize(lambda entry: entry.best)(cells.to_numpy()).reshape(3, 3, 5)
    assert bold[1].all()
    assert not bold[[0, 2]].any()


@pytest.mark.parametrize("settings", [5, 6, 9])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_metrics_without_a_relation_to_rl_rarely_predict_it(settings: int, spread: float) -> None:
    """Forty metrics that resemble each other, each setting the mean of five seeds, settings `spread` apart."""
    rng = np.random.default_rng(settings)
    trials, alarms = (400, 0) if settings > 8 else (1000, 0)
    for _ in range(trials):
        common = rng.normal(size=settings)
        metrics = spread * (rng.normal(size=(40, settings)) + common) + rng.normal(size=(5, 40, settings)).mean(0)
        results = spread * rng.normal(size=settings) + rng.normal(size=(5, settings)).mean(0)
        alarms += bool((rank_correlations(metrics, results)[1] < ALPHA).any())
    assert_at_most_five_percent(alarms, trials)


@pytest.fixture
def five_settings(make_store: Callable) -> Study:
    """Five settings with five seeds; all seeds of a setting have nearly the same numbers."""

    def number(measured: Measured) -> float:
        if measured.metric == "entropy" and measured.stage == "pretrain":
            return 2 + len(measured.objective) / 10 + measured.seed / 1000
        return 0.5 + len(measured.objective) / 100 + measured.seed / 1000

    return read_study(*make_store(["+sweep=nano", "seed=1,2,3,4,5"], number=number))


def test_the_figure_of_predictors_counts_settings(five_settings: Study) -> None:
    """Twenty-five cells of five settings are five points, so no p-value is below 2 / 5! and its ties."""
    (figure,) = [figure for figure in FIGURES if figure.name == "predictors"]
    drawn = figure.draw(FigureData(five_settings, "nano", cell_facts(five_settings), Estimates.of(five_settings)))
    assert set(drawn.data["settings"]) == {5}
    assert drawn.data["p"].min() >= 2 / 120
    assert "Over 5 settings" in drawn.caption


def test_predictors_say_nothing_below_five_settings(five_settings: Study) -> None:
    four = five_settings.measurements["objective"] != "precision"
    reduced = replace(five_settings, measurements=five_settings.measurements[four])
    (figure,) = [figure for figure in FIGURES if figure.name == "predictors"]
    with pytest.raises(Exception, match="4 settings with an RL result; a rank correlation over fewer than 5"):
        figure.draw(FigureData(reduced, "nano", cell_facts(reduced), Estimates.of(reduced)))
