"""Variance components against simulated data with known ones: unbiased, and intervals that cover."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.study import read_study
from analysis.table_builder import build_tables
from analysis.variance import Component, _share, components
from analysis.variance_table import variance_table
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import composed, write_run
from tests.analysis.test_learning import with_curves

TRIALS = 400


def simulated(rng: np.random.Generator, *, between: float, within: float, sizes: list[list[int]]) -> list:
    """Results by setting, seed and RL seed; each setting has a mean of its own."""
    groups = []
    for seeds in sizes:
        mean = rng.normal(70, 20)
        starts = mean + rng.normal(0, between, len(seeds))
        groups.append([start + rng.normal(0, within, size) for start, size in zip(starts, seeds, strict=True)])
    return groups


@pytest.mark.parametrize(("between", "within"), [(4.0, 1.0), (2.0, 2.0), (0.5, 3.0), (0.0, 2.0)])
def test_known_components_are_recovered(between: float, within: float) -> None:
    rng = np.random.default_rng([int(10 * between), int(10 * within)])
    found = [components(simulated(rng, between=between, within=within, sizes=[[3] * 8] * 2)) for _ in range(TRIALS)]
    assert all(found)
    variances = {
        "within": (np.array([c.within.value**2 for c in found]), within**2),
        "between": (np.array([c.between.value**2 for c in found]), between**2),
    }
    for values, true in variances.values():
        # an estimate that is cut off at 0 is a little too large where there is nothing
        assert abs(values.mean() - true) < 4 * values.std() / np.sqrt(TRIALS) + (0.35 if between < within else 0)
    # 95 % intervals: at least 92.5 % and at most 97.5 % of 400 trials, which chance leaves in one of a hundred
    covered = {
        "within": np.mean([c.within.low <= within <= c.within.high for c in found]),
        "between": np.mean([c.between.low <= between <= c.between.high for c in found]),
        "share": np.mean([c.share.low <= between**2 / (between**2 + within**2) <= c.share.high for c in found]),
    }
    assert 0.92 <= covered["within"] <= 0.98
    assert 0.92 <= covered["share"] <= (0.98 if between else 1)
    assert 0.92 <= covered["between"] <= (0.985 if between else 1)


def test_unequal_numbers_of_rl_seeds_are_unbiased_too() -> None:
    rng = np.random.default_rng(1)
    sizes = [[1, 2, 3, 5, 3, 2], [2, 2, 4, 1]]
    found = [components(simulated(rng, between=3.0, within=2.0, sizes=sizes)) for _ in range(TRIALS)]
    between = np.array([c.between.value**2 for c in found if c])
    within = np.array([c.within.value**2 for c in found if c])
    assert abs(within.mean() - 4) < 4 * within.std() / np.sqrt(TRIALS)
    assert abs(between.mean() - 9) < 4 * between.std() / np.sqrt(TRIALS) + 0.1


def test_hand_computed_sums() -> None:
    """Two seeds with two RL seeds: the mean squares are 16 between and 2 within."""
    found = components([[[1.0, 3.0], [5.0, 7.0]]])
    assert found is not None
    assert found.within.value == pytest.approx(np.sqrt(2))
    assert found.between.value == pytest.approx(np.sqrt((16 - 2) / 2))
    assert found.share.value == pytest.approx(7 / 9)
    assert (found.seeds, found.runs) == (2, 4)


@pytest.mark.parametrize("groups", [[], [[[1.0, 2.0]]], [[[1.0], [2.0]]], [[[1.0, 2.0]], [[3.0, 5.0]]]])
def test_too_few_seeds_have_no_components(groups: list) -> None:
    assert components(groups) is None


def test_the_table_tells_luck_in_rl_from_luck_before_it(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce,precision", "seed=1,2,3", "grpo.seed=11,12"])
    luck = {(setting, seed): np.random.default_rng([seed, len(setting)]).normal(0, 0.05)
            for setting in ("ce", "precision") for seed in (1, 2, 3)}  # fmt: skip
    runs = {run.signature: run for run in graph.runs.values() if run.stage == "grpo"}
    assert len(runs) == 12
    moved = iter(np.tile([-0.01, 0.01], 6))
    shifts = {signature: next(moved) for signature in runs}

    def reward(run: object, step: int) -> float:
        labels, seed = run.labels, run.config["seed"]  # type: ignore[attr-defined]
        return 0.4 + 0.01 * step + luck[labels["objective"], seed] + shifts[run.signature]  # type: ignore[attr-defined]

    study = with_curves(graph, store, reward)
    (table,) = [table for table in build_tables(study) if table.name == "variance-nano"]
    assert list(table.cells.index) == ["ce", "precision", "all settings"]
    row = table.cells.loc["all settings"]
    assert row["area", "RL seeds (sd)"].value == pytest.approx(np.sqrt(2))  # two values at -1 and +1
    means = [[luck[setting, seed] * 100 for seed in (1, 2, 3)] for setting in ("ce", "precision")]
    expected = np.mean([np.var(of_setting, ddof=1) for of_setting in means]) - 2 / 2
    assert row["area", "seeds (sd)"].value == pytest.approx(np.sqrt(expected))
    # Seeds count once: their RL seeds are no further seeds in the other tables.
    (learning,) = [table for table in build_tables(study) if table.name == "learning-nano"]
    assert learning.cells.loc["ce"]["over RL", "area"].n == 3
    single = read_study(*make_store(["objective=ce,precision", "seed=1,2,3"]))
    assert variance_table(single, "nano", "") is None


def test_without_luck_in_rl_all_of_the_variance_is_between_seeds() -> None:
    assert _share(2.0, 0.0, free=(2, 3), size=2.0) == Component(1.0, 1.0, 1.0)
    assert _share(0.0, 0.0, free=(2, 3), size=2.0) == Component(0.0, 0.0, 1.0)


def test_luck_is_that_of_the_models_own_runs_and_not_of_its_controls(tmp_path: Path) -> None:
    """Another model, and RL from a tempered start, have more of it."""
    words = ["objective=ce,precision", "seed=1,2", "grpo.seed=11,12", "evaluation.controls={tempered:[grpo]}"]
    cells = composed(tuple(words))
    small = [replace(cell, model=replace(cell.model, name="small", ffn=32)) for cell in cells]
    graph, store = plan([*cells, *small]), Store.create(tmp_path / "store")

    def reward(run: Any, step: int) -> float:
        size = 1 if run.labels["model"] == "nano" and not run.control else 7
        own = {11: -0.01, 12: 0.01}[run.config["grpo"]["seed"]] * size
        return 0.5 + {1: -0.03, 2: 0.03}[run.config["seed"]] * size + own

    for run in graph.runs.values():
        if run.stage != "grpo":
            write_run(store, run)
    study = with_curves(graph, store, reward)
    for model, size in (("nano", 1), ("small", 7)):
        table = variance_table(study, model, "")
        assert table is not None
        assert list(table.cells.index) == ["ce", "precision", "all settings"]
        for setting in table.cells.index:
            row = table.cells.loc[setting]
            for title in ("area", "held-out reward after RL"):
                # Within: two runs at -1 and +1. Between: means at -3 and +3, less half of the variance within.
                assert row[title, "RL seeds (sd)"].value == pytest.approx(size * np.sqrt(2))
                assert row[title, "seeds (sd)"].value == pytest.approx(size * np.sqrt(18 - 2 / 2))
                assert row[title, "seeds (sd)"].n == (4 if setting == "all settings" else 2)
