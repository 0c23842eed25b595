"""Settings with names that users choose are called by them in tables, claims, figures and controls."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from analysis.claim_sources import StudySource
from analysis.claims import judge, read_claims
from analysis.figures.all_figures import build_figures
from analysis.reproduce import Options, reproduce
from analysis.study import Study, read_stored
from analysis.table_builder import build_tables
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import Measured, composed, known, write_run

SHARP = 'sharp: "v2", a/b & <c>'
BASELINE = "our baseline"
KNOBS = {SHARP: {"beta": -0.4}, "flat": {"beta": 0.4}, BASELINE: {}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Cross-entropy and two other objectives, none with one of the study's five names."""
    (cell,) = composed(("objective=ce",))
    cells = [replace(cell, objective=replace(cell.objective, name=name, **knobs)) for name, knobs in KNOBS.items()]
    store = Store.create(tmp_path / "store")
    for run in plan(cells).runs.values():
        write_run(store, run)
    return store


@pytest.fixture
def study(store: Store) -> Study:
    return read_stored(store)


def test_tables_have_a_row_group_per_name(study: Study) -> None:
    tables = {table.name: table for table in build_tables(study)}
    names = tables["pretrain-other-nano"].cells.index.get_level_values("objective")
    assert list(dict.fromkeys(names)) == sorted([BASELINE, "flat", SHARP])
    table = tables[f"grpo-{SHARP}-nano"]
    value = 100 * known(Measured(SHARP, 1, "grpo", 20, "Chain-4", "avg@8"))
    assert table.cells.loc[(SHARP, 20), ("Chain-4", "Avg@8")].value == pytest.approx(value)


def test_the_control_is_found_whatever_the_names(study: Study) -> None:
    """Evaluations store the control under the parameters of the other objective, which are in its signature."""
    tables = {table.name: table for table in build_tables(study)}
    assert set(study.measurements["variant"]) >= {"", f"matched:{SHARP}", f"theory:{SHARP}"}
    control = tables[f"grpo-{SHARP}-nano"].cells.loc[f"{BASELINE}, entropy matched"].iloc[0]
    assert control["Chain-4", "Avg@8"].variant == f"matched:{SHARP}"
    assert not any("control is missing" in table.caption for table in tables.values())
    assert "The temperature-matched control, nano" not in dict(build_figures(study).missing)


def test_claims_use_the_names(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    holds = f"value({json.dumps(SHARP)}) > value({json.dumps(BASELINE)})"
    path.write_text(json.dumps({"claims": [{"name": "named", "statement": "s", "holds": holds}]}))
    ((comparison,),) = [verdict.comparisons for verdict in judge(read_claims(path), StudySource(study))]
    assert comparison.estimate is not None


def test_figures_and_page_show_the_names(store: Store, tmp_path: Path) -> None:
    options = Options(store=str(store.root), results=str(tmp_path / "results"), sweep=None)
    folder = reproduce(options, Console(quiet=True))
    page = (folder / "report.html").read_text()
    assert '<option value="our baseline">' in page
    assert "<c>" not in page
    assert "our baseline" in (folder / "figures" / "rl-nano.svg").read_text()
    assert len(list((folder / "tables").glob("grpo-*.csv"))) == len(KNOBS)
    reproduce(options, Console(quiet=True))  # results with such file names can be replaced


def test_equal_names_with_other_parameters_are_separate_settings(tmp_path: Path) -> None:
    (cell,) = composed(("objective=ce",))
    cells = [replace(cell, objective=replace(cell.objective, name="curve", beta=beta)) for beta in (0.1, 0.2)]
    store = Store.create(tmp_path / "store")
    for run in plan(cells).runs.values():
        write_run(store, run)
    assert sorted(read_stored(store).settings) == ["curve/objective.beta=0.1", "curve/objective.beta=0.2"]
