"""The table of theory against measurement, from evaluations with known numbers."""

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.estimates import Estimates
from analysis.study import Study, read_study
from analysis.tables import Table
from analysis.theory_table import theory_table
from tests.analysis.conftest import Measured, known, write_run

SEEDS = (1, 2, 3, 4)
ARGUMENTS = ["objective=ce,precision", f"seed={','.join(map(str, SEEDS))}"]
PREDICTED, MEASURED = (3.1, 3.2, 3.15, 3.05), (3.0, 3.15, 3.02, 2.99)
ENTROPIES = {("theory:precision", "ce"): PREDICTED, ("", "precision"): MEASURED}


def with_entropies(graph: Any, store: Any) -> Study:
    """The study of a store in which the prediction and the setting have these entropies; ce has others."""
    for run in graph.runs.values():
        if run.stage == "evaluate" and (run.control or "", run.labels["objective"]) in ENTROPIES:
            values = ENTROPIES[run.control or "", run.labels["objective"]]

            def number(measured: Measured, values: tuple[float, ...] = values) -> float:
                return values[measured.seed - 1] if measured.metric == "entropy" else known(measured)

            shutil.rmtree(store.run(run.stage, run.signature).folder)
            write_run(store, run, number)
    return read_study(graph, store)


def made(study: Study) -> Table | None:
    return theory_table(study, Estimates.of(study), "nano", provenance="Made by a test.")


def test_the_difference_is_paired_by_seed(make_store: Callable) -> None:
    table = made(with_entropies(*make_store(ARGUMENTS)))
    assert table is not None
    assert list(table.cells.index) == ["precision"]
    row = table.cells.loc["precision"]
    assert row["entropy, nats", "predicted"].value == pytest.approx(np.mean(PREDICTED))
    assert row["entropy, nats", "measured"].value == pytest.approx(np.mean(MEASURED))
    differences = np.subtract(MEASURED, PREDICTED)
    entry = row["entropy, nats", "measured - predicted"]
    assert entry.value == pytest.approx(differences.mean())
    # Student's interval over the seeds' differences, which the bootstrap's replicates estimate within a few percent
    half = stats.t.ppf(0.975, len(SEEDS) - 1) * stats.sem(differences)
    assert entry.high - entry.value == pytest.approx(half, rel=0.05)
    assert str(entry).startswith("-0.085 [")


def test_without_predictions_there_is_no_table(make_store: Callable) -> None:
    graph, store = make_store([*ARGUMENTS, "evaluation.controls.theory=[]"])
    assert made(read_study(graph, store)) is None


def test_a_prediction_whose_setting_is_not_measured_is_left_out(make_store: Callable) -> None:
    def unmeasured(run: Any) -> bool:
        return run.stage == "evaluate" and run.labels["objective"] == "precision"

    assert made(read_study(*make_store(ARGUMENTS, leave_out=unmeasured))) is None
