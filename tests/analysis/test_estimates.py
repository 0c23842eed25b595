"""The mean over seeds and its interval, against scipy and the equation of Wilson's interval."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from analysis.estimates import Estimates, Precision, seed_mean
from analysis.measurement_grid import Checkpoint, build_grid
from analysis.study import read_study
from analysis.table_columns import Scores
from sweeps.plan.graph import StageRun
from tests.analysis.conftest import Measured, known

EXACT = Precision(error=0.0, resolution=0.0, item=0.0)


def test_several_seeds_have_students_interval_on_the_scale_of_the_log() -> None:
    values = [30.0, 33.0, 36.0]
    entry = seed_mean([30.0, math.nan, 33.0, 36.0], EXACT, is_share=False)
    half = stats.t.ppf(0.975, 2) * stats.sem(values)
    assert (entry.value, entry.n) == (33.0, 3)
    assert entry.low == pytest.approx(33 * math.exp(-half / 33))
    assert entry.high == pytest.approx(33 * math.exp(half / 33))
    assert entry.by_seed[0] == 30.0
    assert math.isnan(entry.by_seed[1])


def test_one_seed_has_the_normal_interval_over_its_items() -> None:
    entry = seed_mean([2.0], Precision(error=0.3, resolution=0.4, item=0.0), is_share=False)
    half = 1.959964 * 0.5  # the variances of both add up
    assert (entry.low, entry.high) == pytest.approx((2 * math.exp(-half / 2), 2 * math.exp(half / 2)), rel=1e-6)


def test_the_resolution_is_shared_by_the_seeds() -> None:
    entry = seed_mean([2.0] * 4, Precision(error=9.0, resolution=0.2, item=0.0), is_share=False)
    half = stats.t.ppf(0.975, 3) * 0.1  # the error over items is not used
    assert entry.high == pytest.approx(2 * math.exp(half / 2))


@pytest.mark.parametrize("values", [[40.0, 50.0, 45.0], [98.0, 100.0, 99.0], [100.0, 100.0], [0.0, 1.0]])
def test_a_percentage_has_wilsons_interval(values: list[float]) -> None:
    """Both ends solve (p - mean)^2 = q^2 p (1 - p) / trials; near the ends trials are those one item from the end."""
    item = 100 / 64
    entry = seed_mean(values, Precision(error=0.0, resolution=item, item=item), is_share=True)
    n, mean = len(values), np.mean(values) / 100
    variance = (np.var(values, ddof=1) + item**2) / n / 100**2
    near = min(max(mean, 1 / 64), 1 - 1 / 64)
    trials, quantile = near * (1 - near) / variance, stats.t.ppf(0.975, n - 1)
    roots = np.roots([1 + quantile**2 / trials, -(2 * mean + quantile**2 / trials), mean**2])
    assert (entry.low, entry.high) == pytest.approx(tuple(sorted(100 * roots.real)), abs=1e-6)


def test_a_number_without_any_known_error_has_no_interval() -> None:
    entry = seed_mean([5.0], EXACT, is_share=False)
    assert (entry.value, entry.low, entry.high, entry.n) == (5.0, None, None, 1)
    with pytest.raises(ValueError, match="no seed"):
        seed_mean([math.nan], EXACT, is_share=True)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_error_over_items_counts_where_there_is_one_seed(seeds: int, make_store: Callable) -> None:
    """The mean of two texts, each with a standard error of 0.01 over 64 items."""
    study = read_study(*make_store(["objective=ce", f"seed={','.join(map(str, range(1, seeds + 1)))}"]))
    rows = study.measurements.query("stage == 'pretrain' and metric == 'entropy' and benchmark == 'Docstrings'")
    last = rows[rows["step"] == rows["step"].max()].sort_values("seed")
    pairs = (("Docstrings", "entropy"), ("Docstrings", "perplexity"))
    at = Checkpoint("nano", "ce", "pretrain", int(last["step"].iloc[0]))
    one = Estimates.of(study).entry(at, Scores(pairs[:1], factor=1))
    assert one.value == pytest.approx(last["value"].mean())
    assert (one.n, len(one.stage_runs), one.waits_for) == (seeds, seeds, ())
    resolution = 0.01 / 8
    if seeds == 1:
        half = 1.959964 * math.hypot(0.01, resolution)
        two = Estimates.of(study).entry(at, Scores(pairs, factor=1))
        together = 1.959964 * math.hypot(0.01, 0.01, resolution, resolution) / 2
        assert two.high == pytest.approx(two.value * math.exp(together / two.value), rel=1e-6)
    else:
        error = math.sqrt(last["value"].var() / seeds + resolution**2 / seeds)
        half = stats.t.ppf(0.975, seeds - 1) * error
    assert one.high == pytest.approx(one.value * math.exp(half / one.value), rel=1e-6)


def test_what_was_not_measured_waits_for_its_evaluations(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"], leave_out=lambda run: run.stage == "evaluate")
    (midtrained,) = [(r.stage, r.signature) for r in graph.runs.values() if r.stage == "midtrain"]
    last = ("evaluate", midtrained, "step-000781")
    missing = [r.signature for r in graph.runs.values() if (r.stage, r.parent, r.checkpoint) == last]
    estimates = Estimates.of(read_study(graph, store))
    entry = estimates.entry(Checkpoint("nano", "ce", "midtrain", 781), Scores((("Docstrings", "entropy"),), factor=1))
    assert (entry.value, entry.low, entry.n, entry.stage_runs) == (None, None, 0, ())
    assert set(entry.waits_for) == {f"evaluate/{signature}" for signature in missing}


def test_rows_and_their_stage_runs_belong_together(make_store: Callable) -> None:
    study = read_study(*make_store(["objective=ce,precision", "seed=1,2"]))
    grid = build_grid(study)
    assert len(grid.stage_runs) == len(grid.values) == len(grid.rows)
    for quantity, row in grid.rows.items():
        measured = study.measurements
        for name, value in quantity._asdict().items():
            measured = measured[measured[name].fillna("") == value]
        assert set(grid.stage_runs[row]) == set(measured["stage_run"])


@pytest.mark.parametrize("lost", [(2,), (1,), (1, 3), (1, 2)])
def test_seeds_that_were_not_measured_leave_the_interval_of_the_others(
    lost: tuple[int, ...], make_store: Callable
) -> None:
    """At one checkpoint, while the other checkpoints have all seeds."""

    def is_lost(run: StageRun) -> bool:
        return run.stage == "evaluate" and run.checkpoint == "step-000020" and run.config["seed"] in lost

    study = read_study(*make_store(["objective=ce", "seed=1,2,3"], leave_out=is_lost))
    pair = ("Chain-4", "response_length")
    entry = Estimates.of(study).entry(Checkpoint("nano", "ce", "grpo", 20), Scores((pair,), factor=1))
    present = [seed for seed in (1, 2, 3) if seed not in lost]
    values = [known(Measured("ce", seed, "grpo", 20, *pair)) for seed in present]
    assert (entry.value, entry.n) == (pytest.approx(np.mean(values)), len(present))
    if len(present) == 1:  # its own error over items, with the resolution
        half = 1.959964 * math.hypot(0.01, 0.01 / 8)
    else:
        half = stats.t.ppf(0.975, 1) * math.sqrt(np.var(values, ddof=1) / 2 + (0.01 / 8) ** 2 / 2)
    assert entry.high == pytest.approx(entry.value * math.exp(half / entry.value), rel=1e-6)
