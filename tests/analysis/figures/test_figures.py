"""Figures: each is drawn from a store that has its data, and names what is missing from one that does not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.figures import all_figures
from analysis.figures.all_figures import FIGURES, build_figures
from analysis.figures.charts import OTHER_COLOURS, colour, panel_specs, setting_colours, setting_order
from analysis.figures.figure_data import Drawn, Figure, FigureData
from analysis.figures.vega_lite import draw
from analysis.study import NotMeasured, Study, read_study
from analysis.table_builder import build_tables
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import composed, known, measurements_of, write_run
from tests.published import publish


@pytest.fixture
def complete(tmp_path: Path) -> Study:
    """Two models, five settings and all that evaluations may add."""
    controls = "evaluation.controls={matched:[midtrain,grpo],theory:[pretrain],tempered:[grpo]}"
    cells = composed(("objective=ce,precision,diversity,tail_penalty,head_reward", controls))
    small = [replace(cell, model=replace(cell.model, name="small", ffn=32)) for cell in cells]
    graph, store = plan([*cells, *small]), Store.create(tmp_path / "store")
    for run in graph.runs.values():
        if run.stage == "evaluate":
            text = {"benchmark": "Docstrings", "group": "text", "metric": "calibration_error", "value": 0.1, "n": 1}
            extra = [] if run.control else [text]
            write_run(store, run, measurements=measurements_of(run, known) + extra)
        else:
            folder = write_run(store, run)
        if run.stage == "pretrain":
            parameters = 100 if run.labels["model"] == "small" else 366_384
            write_run(store, run, metrics={"parameters": parameters})
        if run.stage == "grpo":
            curve = [{"step": step, "held_out_reward": 0.5 + step / 40} for step in (0, 10, 20)]
            with (folder / "ledger.jsonl").open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in curve)
            rows = [{"step": 4, "by": "token", "token": token, "count": 3} for token in ("so", "thus")]
            (folder / "forking.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            publish(folder)
    return read_study(graph, store)


def test_every_figure_is_drawn_from_a_complete_store(complete: Study) -> None:
    began: list[str] = []
    built = build_figures(complete, on_chart=lambda chart: began.append(chart.name))
    assert built.missing == []
    names = [chart.name for chart in built.charts]
    expected = {f"{f.name}-{model}" if f.is_per_model else f.name for f in FIGURES for model in ("nano", "small")}
    assert set(names) == set(began) == expected
    assert [chart.number for chart in built.charts[:8]] == [1, 1, 3, 3, 5, 5, 7, 7]
    for chart in built.charts:
        assert len(chart.data)
        assert draw("a", panel_specs(chart)).svg.startswith("<svg")


def test_several_held_out_texts_are_averaged_and_have_a_column_each(complete: Study) -> None:
    rows = complete.measurements.astype({"benchmark": object})
    text = rows[rows["group"] == "text"]
    both = pd.concat([rows, text.assign(benchmark="Prose", value=text["value"] + 1.0)], ignore_index=True)
    studies = [complete, replace(complete, measurements=both.astype({"benchmark": "category"}))]
    one, two = ({chart.name: chart.data for chart in build_figures(study).charts} for study in studies)
    for name, column in (
        ("pretraining-nano", "mean"),
        ("collapse-nano", "prior_entropy"),
        ("calibration-nano", "mean"),
    ):
        assert two[name][column].to_numpy() == pytest.approx(one[name][column].to_numpy() + 0.5)
        assert two[name].get("seeds", pd.Series([1])).max() == 1
    tables = {table.name: table for table in build_tables(studies[1])}
    row = tables["table-03-nano"].cells.iloc[0]
    assert row["text", "Prose entropy"].value == pytest.approx(row["text", "Docstrings entropy"].value + 1)


def test_figures_without_data_name_what_is_missing(make_store: Callable) -> None:
    built = build_figures(read_study(*make_store(["objective=ce"], leave_out=lambda run: True)))
    assert built.charts == []
    reasons = dict(built.missing)
    assert len(reasons) == len(FIGURES)
    assert reasons["Forking tokens, nano"] == "no RL run kept forking.jsonl"
    assert reasons["Scaling over model sizes"] == "models of 0 size(s) with counted parameters; it needs two"


def test_a_further_figure_is_one_entry(make_store: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(data: FigureData) -> Drawn:
        if data.measured("pretrain").empty:
            raise NotMeasured("nothing in pre-training")
        return Drawn([{"title": "empty", "data": {"values": []}, "mark": "point"}], "A caption.", pd.DataFrame())

    monkeypatch.setattr(all_figures, "FIGURES", (Figure("further", "A further figure", draw),))
    (chart,) = build_figures(read_study(*make_store(["objective=ce"]))).charts
    assert (chart.name, chart.title, chart.number) == ("further-nano", "A further figure, nano", None)


def test_known_settings_come_first_and_others_by_name() -> None:
    assert setting_order(["zeta", "diversity", "alpha", "ce"]) == ["ce", "diversity", "alpha", "zeta"]


def test_a_setting_has_one_colour_in_all_figures_of_a_study() -> None:
    settings = ["ce", "sharp: v2", "beta=0.25", "a, b"]
    colours = setting_colours(settings)
    assert len(set(colours.values())) == len(settings)
    scale = colour(["beta=0.25", "ce"], settings=settings)["scale"]
    assert scale == {"domain": ["ce", "beta=0.25"], "range": ["#808080", colours["beta=0.25"]]}
    assert setting_colours(["beta=0.25"]) == {"beta=0.25": colours["beta=0.25"]}  # the name decides, not the study


def test_tempered_cross_entropy_has_one_colour_of_its_own() -> None:
    tempered = [f"ce, tempered to {name}" for name in ("precision", "diversity")]
    colours = setting_colours(["ce", "precision", "diversity", "beta=0.25", *tempered])
    assert colours[tempered[0]] == colours[tempered[1]]
    assert list(colours.values()).count(colours[tempered[0]]) == 2


def test_more_settings_than_colours_share_them() -> None:
    colours = setting_colours(f"setting-{number}" for number in range(50))
    assert set(colours.values()) == set(OTHER_COLOURS)
