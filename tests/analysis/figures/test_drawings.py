"""Every figure as drawn: its marks, read from Vega's scene graph in the units of its axes, are the known numbers."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.figures.all_figures import FIGURES, build_figures
from analysis.figures.charts import COLOURS, Chart
from analysis.study import read_study
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import Measured, composed, known, measurements_of, write_run
from tests.analysis.figures.drawing import Mark, Panel, read_back
from tests.published import publish

SEEDS = (1, 2)
BETA = {"precision": -0.25, "ce": 0.0, "diversity": 0.5, "tail_penalty": 0.0, "head_reward": 0.0}
PRETRAIN, MIDTRAIN = {199_680: 195, 399_360: 390, 600_064: 586, 799_744: 781}, {399_360: 390, 799_744: 781}
SCORES = {"Modules": "accuracy", "Continuations": "accuracy", "Boolean": "avg@8", "Order": "avg@8",
          **{f"Chain-{length}": "pass@4" for length in (3, 4, 5)}, "Python": "pass@4"}  # fmt: skip
STAGES = {"pretrain": "after pre-training", "midtrain": "after mid-training", "grpo": "after RL"}
CHAINS = ("Chain-3", "Chain-4", "Chain-5")

Place = tuple[float | str, float | str, str]
"""x, y and colour."""


def ledger(measured_in: str, seed: int) -> list[dict[str, float]]:
    """RL's curves: entropy falls and responses shorten by an amount of each setting and seed."""
    fall = known(Measured(measured_in, seed, "grpo", 1, "curve", "entropy"))
    return [
        {"step": s, "reward": s / 10 + fall, "entropy": 2 - s * fall / 10, "response_length": 20 - s * fall}
        for s in range(1, 13)
    ]


@pytest.fixture(scope="module")
def charts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chart]:
    """All figures of five settings with two seeds on two models; controls have half of the plain numbers."""
    cells = composed(("objective=ce,precision,diversity,tail_penalty,head_reward", "seed=1,2"))
    small = [replace(cell, model=replace(cell.model, name="small", ffn=32)) for cell in cells]
    graph, store = plan([*cells, *small]), Store.create(tmp_path_factory.mktemp("figures") / "store")
    for run in graph.runs.values():
        objective, seed = run.labels["objective"], run.config["seed"]
        if run.stage == "evaluate":
            rows = measurements_of(run, (lambda m: known(m) / 2) if run.control else known)
            if not run.control and run.parent:  # the same at all steps of a stage
                number = known(Measured(objective, seed, run.parent[0], 0, "Docstrings", "calibration_error"))
                row = {"benchmark": "Docstrings", "group": "text", "metric": "calibration_error", "n": 64}
                rows.append({**row, "value": number})
            write_run(store, run, measurements=rows)
        else:
            metrics = {"parameters": 1000 if run.labels["model"] == "small" else 100_000}
            folder = write_run(store, run, metrics=metrics if run.stage == "pretrain" else {})
            if run.stage == "grpo":
                (folder / "ledger.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in ledger(objective, seed)))
                rows = [{"step": 4, "by": "token", "token": t, "count": c} for t, c in (("so", seed), ("thus", 3))]
                (folder / "forking.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
                publish(folder)
    built = build_figures(read_study(graph, store))
    assert {title.split(",")[0] for title, _ in built.missing} == {"RL from tempered cross-entropy"}
    return {chart.name: chart for chart in built.charts}


def value(
    measured: tuple[str, str, int], benchmarks: Iterable[str], metric: str, *, seeds: Iterable[int] = SEEDS
) -> float:
    """The mean over benchmarks and seeds of a setting's metric; `measured` is (setting, stage, step)."""
    objective, stage, step = measured
    if (stage, step, metric in ("avg@8", "pass@4")) == ("grpo", 0, True):  # RL starts from the mid-trained model
        stage, step = "midtrain", MIDTRAIN[799_744]
    return fmean(known(Measured(objective, s, stage, step, b, metric)) for b in benchmarks for s in seeds)


def score(objective: str, stage: str, step: int) -> float:
    return 100 * fmean(value((objective, stage, step), [b], metric) for b, metric in SCORES.items())


def facts(objective: str, seed: int) -> dict[str, float]:
    """What RL does to a cell, from its ledger."""
    rows = ledger(objective, seed)
    first, last = ({name: fmean(row[name] for row in part) for name in rows[0]} for part in (rows[:5], rows[-5:]))
    return {
        "prior": value((objective, "midtrain", 781), ["Docstrings"], "entropy", seeds=[seed]),
        "fall": 1 - last["entropy"] / first["entropy"],
        "length": last["response_length"] / first["response_length"],
    }


def smooth(objective: str, column: str) -> Iterator[tuple[int, float]]:
    """The mean over seeds at each step, averaged over the two steps before and after."""
    means = [fmean(ledger(objective, seed)[i][column] for seed in SEEDS) for i in range(12)]
    for i in range(12):
        yield i + 1, fmean(means[max(0, i - 2) : i + 3])


def expected(figure: str, panel: int) -> list[Place]:
    """The marks of a figure's panel, by the known numbers."""
    places: list[Place] = []
    for objective, colour in COLOURS.items():
        match figure, panel:
            case "pretraining", _:
                metric = ("perplexity", "entropy")[panel]
                for tokens, step in PRETRAIN.items():
                    places.append((tokens, value((objective, "pretrain", step), ["Docstrings"], metric), colour))
            case "scores", _:
                stage, steps = (("pretrain", PRETRAIN), ("midtrain", MIDTRAIN))[panel]
                places += [(tokens, score(objective, stage, step), colour) for tokens, step in steps.items()]
            case "rl-scores", _:
                metric = ("avg@8", "pass@4")[panel]
                for step in (0, 10, 20):
                    places.append((step, 100 * value((objective, "grpo", step), CHAINS, metric), colour))
            case "rl", _:
                column = ("reward", "entropy", "response_length")[panel]
                places += [(step, number, colour) for step, number in smooth(objective, column)]
            case "collapse", _:
                for cell in (facts(objective, seed) for seed in SEEDS):
                    places.append((cell["prior"], cell[("fall", "length")[panel]], colour))
            case "theory", 0 if objective != "ce":
                for seed in SEEDS:  # predicted by half of ce's entropy
                    x, y = (
                        value((o, "pretrain", 781), ["Docstrings"], "entropy", seeds=[seed]) for o in ("ce", objective)
                    )
                    places.append((x / 2, y, colour))
            case "control", _ if objective != "ce":
                step = (0, 20)[panel]
                numbers = [100 * value((o, "grpo", step), CHAINS, "pass@4") for o in (objective, "ce")]
                places += [(numbers[0], objective, colour), (numbers[1] / 2, objective, COLOURS["ce"])]
            case "calibration", 0:
                for stage, label in STAGES.items():
                    number = value((objective, stage, 0), ["Docstrings"], "calibration_error")
                    places.append((label, number, colour))
            case "forking", 0:
                shares = {"'so'": fmean(s / (s + 3) for s in SEEDS), "'thus'": fmean(3 / (s + 3) for s in SEEDS)}
                places += [(share, token, colour) for token, share in shares.items()]
            case "scaling", _:
                ends = [score(objective, "pretrain", 781), score(objective, "midtrain", 781)]
                ends.append(100 * value((objective, "grpo", 20), CHAINS, "pass@4"))
                places += [(size, ends[panel], colour) for size in (1000, 100_000)]
    return places


def assert_same(marks: list[Mark], places: list[Place]) -> None:
    """Each expected place has one mark, to a hundredth of the range of the numbers."""
    assert len(marks) == len(places)
    ranges = [np.ptp([p[i] for p in places]) if not isinstance(places[0][i], str) else 0.0 for i in (0, 1)]
    left = list(marks)
    for place in places:
        near = [mark for mark in left if mark.colour == place[2] and is_at(mark, place, ranges)]
        assert near, (place, sorted(left, key=lambda mark: str(mark.x))[:40])
        left.remove(near[0])


def is_at(mark: Mark, place: Place, ranges: list[float]) -> bool:
    for drawn, true, size in zip((mark.x, mark.y), place[:2], ranges, strict=True):
        if isinstance(true, str) or isinstance(drawn, str):
            if drawn != true:
                return False
        elif abs(drawn - true) > 0.01 * max(size, abs(true) / 100):
            return False
    return True


def panels(charts: dict[str, Chart], name: str) -> list[Panel]:
    return [read_back(panel) for panel in charts[name].panels]


DRAWN = {"pretraining": 2, "scores": 2, "rl-scores": 2, "rl": 3, "collapse": 2, "theory": 1, "control": 2,
         "calibration": 1, "forking": 1, "scaling": 3}  # fmt: skip
"""Figure -> its panels. The marks of maps and predictors are colours and correlations, and RL from tempered models has
curves of its own; their tests are elsewhere."""


def test_every_figure_has_a_test_here() -> None:
    assert {figure.name for figure in FIGURES} == {*DRAWN, "maps", "predictors", "tempered"}


@pytest.mark.parametrize("figure", DRAWN)
def test_marks_are_the_known_numbers_in_the_settings_colours(charts: dict[str, Chart], figure: str) -> None:
    drawn = panels(charts, figure if figure == "scaling" else f"{figure}-nano")
    assert len(drawn) == DRAWN[figure]
    for number, panel in enumerate(drawn):
        # Points on lines repeat the lines' corners, and the diagonal of a scatter has no setting's colour.
        shapes = {mark.shape for mark in panel.marks if mark.colour in COLOURS.values()}
        for shape in shapes:
            marks = [mark for mark in panel.marks if mark.shape == shape and mark.colour in COLOURS.values()]
            assert_same(marks, expected(figure, number))


@pytest.mark.parametrize(
    ("figure", "x_titles", "y_titles"),
    [
        ("pretraining", ["pre-training tokens"] * 2, ["", ""]),
        ("scores", ["pre-training tokens", "mid-training tokens"], ["", ""]),
        ("rl-scores", ["RL step"] * 2, ["", ""]),
        ("rl", ["RL step"] * 3, [""] * 3),
        ("control", ["Pass@k (percent)"] * 2, ["", ""]),
        ("collapse", ["text entropy before RL (nats)"] * 2,
         ["share of entropy lost in RL", "last response length / first"]),
        ("theory", ["predicted entropy (nats)"], ["measured entropy (nats)"]),
        ("calibration", [""], ["expected calibration error"]),
        ("forking", ["share of the listed forking tokens"], [""]),
        ("predictors", ["Spearman with Pass@k after RL"] * 2, ["", ""]),
        ("maps", ["beta"] * 3, ["lambda head / tail"] * 3),
        ("scaling", ["parameters"] * 3, ["percent"] * 3),
    ],
)  # fmt: skip
def test_axes_say_what_they_show(
    charts: dict[str, Chart], figure: str, x_titles: list[str], y_titles: list[str]
) -> None:
    drawn = panels(charts, figure if figure == "scaling" else f"{figure}-nano")
    assert [panel.x_title for panel in drawn] == x_titles
    assert [panel.y_title for panel in drawn] == y_titles
    assert all(panel.title for panel in drawn)


@pytest.mark.parametrize("figure", ["calibration", "forking", "predictors"])
def test_no_bar_covers_another_and_all_begin_at_zero(charts: dict[str, Chart], figure: str) -> None:
    """Stacked bars would begin where others end, and bars at one place would hide each other."""
    for spec in charts[f"{figure}-nano"].panels:
        panel = read_back(spec)
        along = "y" if figure == "calibration" else "x"
        across, size = ("x", "width") if along == "y" else ("y", "height")
        length = "height" if along == "y" else "width"
        sides = [{round(r[along], 3), round(r[along] + r[length], 3)} for r in panel.rectangles]
        assert set.intersection(*sides), "no end is shared by all bars"
        spans = sorted((r[across], r[across] + r[size]) for r in panel.rectangles)
        assert all(first[1] <= second[0] + 1e-6 for first, second in pairwise(spans))


def test_pairs_of_the_control_are_at_their_labels_with_their_intervals(charts: dict[str, Chart]) -> None:
    titles = []
    for spec in charts["control-nano"].panels:
        panel = read_back(spec)
        titles.append(panel.title)
        for setting in set(BETA) - {"ce"}:
            pair = [mark for mark in panel.marks if mark.y == setting]
            assert [mark.colour for mark in pair] == [COLOURS[setting], COLOURS["ce"]]
        rows = pd.DataFrame(spec["data"]["values"])
        assert ((rows["low"] < rows["mean"]) & (rows["mean"] < rows["high"])).all()
        assert rows["low"].min() >= 0
        assert rows["high"].max() <= 100
    assert titles == ["RL step 0", "RL step 20"]


@pytest.mark.parametrize("figure", ["control", "calibration", "forking", "scaling", "collapse", "theory"])
def test_every_mark_has_an_interval(charts: dict[str, Chart], figure: str) -> None:
    """A rule that spans the number in each row of the data."""
    for spec in charts[figure if figure == "scaling" else f"{figure}-nano"].panels:
        rules = [
            layer for layer in spec["layer"] if isinstance(layer["mark"], dict) and layer["mark"]["type"] == "rule"
        ]
        assert rules
        for rule in rules:
            (along,) = [axis for axis in ("x", "y") if f"{axis}2" in rule["encoding"]]
            number = spec["layer"][0]["encoding"][along]["field"]
            low, high = rule["encoding"][along]["field"], rule["encoding"][f"{along}2"]["field"]
            assert all(row[low] <= row[number] <= row[high] for row in spec["data"]["values"])
            assert any(row[low] < row[high] for row in spec["data"]["values"])


def test_the_stages_are_in_their_order(charts: dict[str, Chart]) -> None:
    panel = read_back(charts["calibration-nano"].panels[0])
    middles = {rect["x"] + rect["width"] / 2: mark.x for rect, mark in zip(panel.rectangles, panel.marks, strict=True)}
    assert list(dict.fromkeys(middles[x] for x in sorted(middles))) == list(STAGES.values())


@pytest.mark.parametrize("noise", [0.001, 0.5])
def test_lines_that_coincide_are_shown_as_small_differences(noise: float, tmp_path: Path) -> None:
    """Perplexities that fall from 60 to 20 and differ between the settings by little or by much."""

    def number(measured: Measured) -> float:
        if measured.metric == "perplexity":
            return (60 - measured.step / 20) * (1 + noise * known(measured._replace(seed=0, step=0)))
        return known(measured)

    graph, store = plan(composed(("objective=ce,precision,diversity", "seed=1,2"))), Store.create(tmp_path / "store")
    for run in graph.runs.values():
        write_run(store, run, number)
    chart = next(c for c in build_figures(read_study(graph, store)).charts if c.name == "pretraining-nano")
    titles = [panel["title"] for panel in chart.panels]
    small = [["perplexity − ce’s", "precision"], ["perplexity − ce’s", "diversity"]]
    assert titles == ["perplexity", *(small if noise < 0.01 else []), "entropy (nats)"]
    for panel in chart.panels[1:-1]:
        for row in panel["data"]["values"]:
            step = next(step for tokens, step in PRETRAIN.items() if abs(tokens / row["tokens"] - 1) < 0.001)
            ours, ce = (
                fmean(number(Measured(name, seed, "pretrain", step, "Docstrings", "perplexity")) for seed in SEEDS)
                for name in (row["objective"], "ce")
            )
            assert row["mean"] == pytest.approx(ours - ce, abs=1e-4)


def test_figures_of_another_kind_of_model_say_so() -> None:
    built = build_figures(read_study(plan(composed(("objective=ce,precision,diversity", "seed=1,2"))), None))
    titles, reasons = zip(*built.other_models, strict=True)
    assert titles == (
        "Figure 2: Perplexity and entropy", "Figure 4: Base-model scores", "Figure 6: RL results"
    )  # fmt: skip
    assert "it is figure 1 for a mixture of experts, which this study does not have" in reasons[0]


def test_maps_have_a_tile_at_each_setting_with_its_value(charts: dict[str, Chart]) -> None:
    for spec, what in zip(charts["maps-nano"].panels, ("entropy", "pass", "fall"), strict=True):
        numbers = {}
        for objective, beta in BETA.items():
            numbers["entropy"] = value((objective, "pretrain", 781), ["Docstrings"], "entropy")
            numbers["pass"] = 100 * value((objective, "grpo", 20), CHAINS, "pass@4")
            numbers["fall"] = fmean(facts(objective, seed)["fall"] for seed in SEEDS)
            (row,) = [row for row in spec["data"]["values"] if row["objective"] == objective]
            assert row["mean"] == pytest.approx(numbers[what], rel=1e-3)
            assert row["beta"] == beta
        panel = read_back(spec)
        points = {(mark.x, mark.y) for mark in panel.marks if mark.shape == "symbol"}
        tiles = {(mark.x, mark.y) for mark in panel.marks if mark.shape == "rect"}
        assert points == tiles == {(f"{row['beta']:g}", row["knobs"]) for row in spec["data"]["values"]}


def test_predictors_are_the_correlations_of_the_settings_means(charts: dict[str, Chart]) -> None:
    results = [100 * value((objective, "grpo", 20), CHAINS, "pass@4") for objective in BETA]
    for spec, (stage, step) in zip(
        charts["predictors-nano"].panels, (("midtrain", 781), ("pretrain", 781)), strict=True
    ):
        panel = read_back(spec)
        assert panel.title == f"after {stage}"
        for mark in panel.marks:
            benchmark, metric = str(mark.y).split(" ")
            measured_at = 0 if metric == "calibration_error" else step
            numbers = [value((objective, stage, measured_at), [benchmark], metric) for objective in BETA]
            assert mark.x == pytest.approx(stats.spearmanr(numbers, results).statistic, abs=0.01)
            assert mark.colour == "#b0b0b0"  # five settings and many metrics: nothing can be significant


def test_bands_are_intervals_around_the_lines(charts: dict[str, Chart]) -> None:
    for name in ("pretraining", "scores", "rl-scores", "rl"):
        for spec in charts[f"{name}-nano"].panels:
            band, line = spec["layer"]
            assert (band["mark"]["type"], line["mark"]["type"]) == ("area", "line")
            assert (band["encoding"]["y"]["field"], band["encoding"]["y2"]["field"]) == ("low", "high")
            rows = pd.DataFrame(spec["data"]["values"])
            assert (rows["low"] <= rows["mean"]).all()
            assert (rows["mean"] <= rows["high"]).all()
            assert (rows["low"] < rows["high"]).all()
            assert set(rows["seeds"]) == {2}


TITLES = {
    "pretraining": ["perplexity", "entropy (nats)"],
    "scores": ["average score (percent)"] * 2,
    "rl-scores": ["Avg@8 (percent)", "Pass@4 (percent)"],
    "rl": ["reward", "entropy (nats)", "response length (tokens)"],
    "collapse": ["share of entropy lost in RL", "last response length / first"],
    "theory": ["measured entropy (nats)"],
    "maps": ["entropy after pre-training (nats)", "Pass@k after RL (percent)", "share of entropy lost in RL"],
    "control": ["RL step 0", "RL step 20"],
    "predictors": ["after midtrain", "after pretrain"],
    "calibration": ["expected calibration error"],
    "forking": ["forking tokens after RL"],
    "scaling": ["after pre-training", "after mid-training", "after RL"],
}


def test_panels_are_named_by_what_they_show(charts: dict[str, Chart]) -> None:
    assert set(TITLES) == {figure.name for figure in FIGURES} - {"tempered"}
    for figure, titles in TITLES.items():
        chart = charts[figure if figure == "scaling" else f"{figure}-nano"]
        assert [panel["title"] for panel in chart.panels] == titles


def test_perplexity_and_sizes_have_logarithmic_axes_and_nothing_else(charts: dict[str, Chart]) -> None:
    for name, chart in charts.items():
        for number, panel in enumerate(chart.panels):
            encodings = [layer["encoding"] for layer in panel.get("layer", [panel])]
            logarithmic = {
                axis
                for encoding in encodings
                for axis in ("x", "y")
                if encoding.get(axis, {}).get("scale", {}).get("type") == "log"
            }
            is_perplexity = name.startswith("pretraining") and number == 0
            assert logarithmic == ({"y"} if is_perplexity else {"x"} if name == "scaling" else set())
