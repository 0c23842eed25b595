"""The grid holds each measurement in its place, with its error and with how much one item moves it."""

from collections.abc import Callable

import numpy as np
import pytest

from analysis.measurement_grid import Quantity, build_grid, is_share_of_items
from analysis.study import read_study
from tests.analysis.conftest import Measured, known


def test_values_errors_and_resolutions_are_those_of_the_measurements(make_store: Callable) -> None:
    """64 items, errors of 0.01: one moves a share by 1 / 64, and a mean by its deviation, 0.01 sqrt(64), over 64."""
    graph, store = make_store(["objective=ce,precision", "seed=1,2"])
    grid = build_grid(read_study(graph, store))
    assert grid.seeds == [1, 2]
    for quantity, row in grid.rows.items():
        if quantity.variant or quantity.stage != "pretrain":  # the end of mid-training is also step 0 of RL
            continue
        places = [Measured(quantity.objective, seed, *quantity[2:4], *quantity[5:]) for seed in (1, 2)]
        assert grid.values[row] == pytest.approx([known(place) for place in places])
        assert grid.errors[row] == pytest.approx([0.01, 0.01])
        share = quantity.metric in ("accuracy", "avg@8", "cons@8", "pass@4")
        assert is_share_of_items(quantity.metric) == share
        assert grid.resolutions[row] == pytest.approx([1 / 64 if share else 0.01 / 8] * 2)
        assert len(grid.stage_runs[row]) == 2


def test_a_seed_that_was_not_measured_is_nan(make_store: Callable) -> None:
    graph, store = make_store(
        ["objective=ce", "seed=1,2"], leave_out=lambda run: run.stage == "evaluate" and run.config["seed"] == 2
    )
    study = read_study(graph, store)
    grid = build_grid(study)
    assert grid.seeds == [1]
    quantity = next(q for q in grid.rows if q.metric == "entropy")
    assert isinstance(quantity, Quantity)
    assert quantity.checkpoint == (quantity.model, "ce", quantity.stage, quantity.step)
    # The evaluations that are missing are still planned.
    assert len(grid.evaluations[quantity.checkpoint]) == 2
    assert np.isfinite(grid.values).all()


def test_controls_are_no_evaluations_of_their_checkpoint(make_store: Callable) -> None:
    """A number of the plain checkpoint does not wait for them."""
    graph, store = make_store(["objective=ce,precision"])
    evaluations = build_grid(read_study(graph, store)).evaluations
    listed = {signature for signatures in evaluations.values() for signature in signatures}
    assert listed == {s for s, run in graph.runs.items() if run.stage == "evaluate" and not run.control}
    assert any(run.control for run in graph.runs.values())
