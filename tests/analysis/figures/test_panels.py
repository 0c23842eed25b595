"""The panels that the stores of the other tests do not fill, from numbers given by hand: labels, intervals, places."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.figures import further_figures, paper_figures
from analysis.figures.charts import Axis, scatter_panel
from analysis.figures.extra_figures import SIGNIFICANT, entropy_collapse, parameter_maps, predictors
from analysis.figures.further_figures import (
    CONTROL,
    SHAPED,
    _control_panel,
    _score,
    calibration,
    forking_tokens,
    temperature_control,
    theory,
)
from analysis.figures.headline_figure import first_rows, headline_chart, with_seeds
from analysis.figures.paper_figures import rl_curves, rl_scores
from analysis.headline import (
    HIGHER,
    LOWER,
    NOT_TOLD_APART,
    Difference,
    Headline,
    HeadlineRow,
    Measure,
    with_words,
)
from analysis.learning import RLCurve
from analysis.measurement_grid import Benchmark
from analysis.statistics import Estimate, Sampled
from analysis.tables import Entry

FIVE = ["ce", "precision", "diversity", "tail_penalty", "head_reward"]


def points(panel: Any, *columns: str) -> list[tuple[Any, ...]]:
    return [
        tuple(round(row[c], 4) if isinstance(row[c], float) else row[c] for c in columns)
        for row in panel["data"]["values"]
    ]


def texts(*rows: tuple[str, int, str, str, float, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["objective", "seed", "variant", "metric", "value", "stderr"])
    return frame.assign(stage="pretrain", group="text", benchmark="Prose", step=10)


def test_a_map_names_its_knobs_and_has_the_mean_and_the_range_on_its_tiles() -> None:
    rows = [
        ("a", 1, 0.5, 0.1, -0.2, 8.0, 1.0),
        ("a", 2, 0.5, 0.1, -0.2, 8.0, 2.0),
        ("b", 1, -0.25, 0.0, 0.0, np.nan, 3.0),
    ]
    facts = pd.DataFrame(rows, columns=["objective", "seed", "beta", "lam_head", "lam_tail", "top_k", "entropy"])
    data: Any = SimpleNamespace(facts=facts.assign(rl_pass=np.nan, entropy_fall=facts["entropy"] / 10))
    entropy, fall = parameter_maps(data).panels
    assert (entropy["title"], fall["title"]) == ("entropy after pre-training (nats)", "share of entropy lost in RL")
    columns = ("objective", "beta", "knobs", "mean", "text", "range")
    assert points(entropy, *columns) == [
        ("a", 0.5, "0.1 / -0.2, k = 8", 1.5, "1.5", "1 to 2"), ("b", -0.25, "0 / 0", 3.0, "3", "")
    ]  # fmt: skip
    assert points(fall, "mean", "text", "range") == [(0.15, "0.15", "0.1 to 0.2"), (0.3, "0.3", "")]
    for panel in (entropy, fall):
        tile, _, *numbers = (layer["encoding"] for layer in panel["layer"])
        assert tile["color"]["field"] == "mean"
        assert [layer["text"]["field"] for layer in numbers] == ["text", "text", "range", "range"]


def test_collapse_has_the_interval_of_its_entropy_and_corrects_its_two_correlations() -> None:
    facts = pd.DataFrame(
        [
            (name, seed, 2.0 + i + seed / 10, 0.1 * i + seed / 100, 1.5 - 0.1 * i - seed / 100)
            for i, name in enumerate(FIVE)
            for seed in (1, 2)
        ],
        columns=["objective", "seed", "prior_entropy", "entropy_fall", "length_change"],
    )
    rows = texts(*((name, seed, "", "entropy", 1.0, 0.1 * seed) for name in FIVE for seed in (1, 2)))
    data: Any = SimpleNamespace(
        facts=facts, settings=FIVE, measured=lambda stage: rows if stage == "midtrain" else None
    )
    drawn = entropy_collapse(data)
    fall, length = drawn.panels
    for panel, column in ((fall, "entropy_fall"), (length, "length_change")):
        assert points(panel, "objective", "seed", "low_x", "prior_entropy", "high_x", column)[:2] == [
            ("ce", 1, pytest.approx(2.1 - 0.196, abs=1e-3), 2.1, pytest.approx(2.1 + 0.196, abs=1e-3),
             facts[column][0]),
            ("ce", 2, pytest.approx(2.2 - 0.392, abs=1e-3), 2.2, pytest.approx(2.2 + 0.392, abs=1e-3),
             facts[column][1]),
        ]  # fmt: skip
        rule = panel["layer"][1]["encoding"]
        assert (rule["x"]["field"], rule["x2"]["field"]) == ("low_x", "high_x")
    assert "share of entropy lost in RL: Spearman +1.00 over the means of 5 settings (p = 0.033)" in drawn.caption
    assert "last response length / first: Spearman -1.00 over the means of 5 settings (p = 0.033)" in drawn.caption


def test_theory_has_a_panel_for_each_metric_with_the_interval_of_what_is_measured() -> None:
    rows = texts(
        *(("ce", 1, "theory:a", metric, value, 0.5) for metric, value in (("entropy", 2.0), ("tail_mass", 0.3))),
        *(("a", 1, "", metric, value, 0.01) for metric, value in (("entropy", 2.5), ("tail_mass", 0.4))),
        ("ce", 1, "", "entropy", 9.0, 0.7),
    )
    plain = rows[rows["variant"] == ""]
    data: Any = SimpleNamespace(rows=rows, settings=["ce", "a"], measured=lambda stage: plain)
    drawn = theory(data)
    titles = [[panel["layer"][0]["encoding"][axis]["title"] for axis in ("x", "y")] for panel in drawn.panels]
    assert titles == [[f"predicted {name}", f"measured {name}"] for name in ("entropy (nats)", "tail mass")]
    columns = ("objective", "predicted", "low_y", "measured", "high_y")
    places = [points(panel, *columns) for panel in drawn.panels]
    assert places == [[("a", 2.0, 2.4804, 2.5, 2.5196)], [("a", 0.3, 0.3804, 0.4, 0.4196)]]
    for panel in drawn.panels:
        rule = panel["layer"][1]["encoding"]
        assert (rule["y"]["field"], rule["y2"]["field"]) == ("low_y", "high_y")


def test_the_diagonal_of_a_scatter_is_where_both_are_equal() -> None:
    frame = pd.DataFrame({"objective": ["ce", "a"], "seed": [1, 1], "x": [1.0, 4.0], "y": [2.0, 7.0]})
    panel = scatter_panel(frame, Axis("x", "ours"), Axis("y", "theirs"), settings=["ce", "a"], diagonal=True)
    (point, line) = panel["layer"]
    assert line["data"]["values"] == [{"x": 1.0, "y": 1.0}, {"x": 7.0, "y": 7.0}]
    assert [line["encoding"][axis]["field"] for axis in ("x", "y")] == ["x", "y"]
    assert (point["encoding"]["x"]["title"], point["encoding"]["y"]["title"]) == ("ours", "theirs")
    assert points(panel, "tip")[0] == ("ce, seed 1; ours: 1; theirs: 2",)
    plain = scatter_panel(frame, Axis("x", "ours"), Axis("y", "theirs"), settings=["ce", "a"])
    assert len(plain["layer"]) == 1


def test_the_control_of_a_pair_is_hollow_and_below_its_setting() -> None:
    drawn = pd.DataFrame(
        [("a", SHAPED, "a", 10.0, 8.0, 13.0, 2), ("a", CONTROL, "ce", 20.0, 19.0, 24.0, 2)],
        columns=["setting", "role", "objective", "mean", "low", "high", "seeds"],
    )
    data: Any = SimpleNamespace(settings=["ce", "a"])
    panel = _control_panel(drawn, 20, data)
    point, rule = panel["layer"]
    hollow = point["encoding"]["fill"]["condition"]
    assert hollow == {"test": "datum.role === 'cross-entropy at its entropy'", "value": "transparent"}
    assert point["encoding"]["yOffset"]["sort"] == ["the setting", "cross-entropy at its entropy"]
    assert (rule["encoding"]["x"]["field"], rule["encoding"]["x2"]["field"]) == ("low", "high")
    assert points(panel, "role", "objective", "low", "mean", "high") == [
        ("the setting", "a", 8.0, 10.0, 13.0), ("cross-entropy at its entropy", "ce", 19.0, 20.0, 24.0)
    ]  # fmt: skip


def test_tempered_curves_are_means_over_seeds_in_percent_with_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    def curves(level: float) -> list[RLCurve]:
        steps = np.array([0.0, 10.0])
        return [RLCurve(seed, 1, "", {}, steps, np.array([0.1, level + seed / 100])) for seed in (1, 2)]

    found = {("m", "ce", ""): curves(0.2), ("m", "a", ""): curves(0.3), ("m", "ce", "tempered:a"): curves(0.5)}
    monkeypatch.setattr(
        further_figures, "rl_curves", lambda study: found | {("other", "ce", "tempered:b"): curves(0.9)}
    )
    data: Any = SimpleNamespace(study=None, model="m", settings=["ce", "a"])
    (panel,) = further_figures.tempered_rl(data).panels
    assert panel["title"] == "a: held-out reward (percent)"
    expected = [
        place
        for name, last in (("a", 31.5), ("ce", 21.5), ("ce, tempered to a", 51.5))
        for place in ((name, 0.0, 10.0, 10.0, 10.0), (name, 10.0, last - 0.5, last, last + 0.5))
    ]
    assert points(panel, "objective", "step", "low", "mean", "high") == expected


def test_rl_has_panels_of_the_largest_pass_and_of_held_out_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame(
        [("m", "grpo", name, seed, step, 0.1 * step, 3.0, 9.0, 0.2 * step, 0.3 * step, 0.4)
         for name in ("ce", "a") for seed in (1, 2) for step in (1, 2, 3)],
        columns=["model", "stage", "objective", "seed", "step", "reward", "entropy", "response_length", "pass@2",
                 "pass@16", "pass@4"],
    )  # fmt: skip
    held_out = Sampled((1, 2), np.array([40.0, 60.0]), (("held-out problems", None, np.zeros(2)),), 10.0, (0.0, 100.0))
    monkeypatch.setattr(
        paper_figures, "held_out_rewards", lambda study: {("m", "a"): {10: held_out}, ("other", "a"): {20: held_out}}
    )
    data: Any = SimpleNamespace(study=SimpleNamespace(curves=frame), model="m", settings=["ce", "a"], baseline=None)
    panels = rl_curves(data).panels
    assert [panel["title"] for panel in panels] == [
        "reward", "entropy (nats)", "response length (tokens)", "pass@16 of the training groups",
        "held-out reward (percent)",
    ]  # fmt: skip
    assert points(panels[0], "objective", "step", "mean")[1] == ("a", 2.0, 0.2)
    assert points(panels[3], "objective", "step", "mean")[1] == ("a", 2.0, 0.6)
    ((name, step, low, mean, high, seeds),) = points(panels[4], "objective", "step", "low", "mean", "high", "seeds")
    assert (name, step, mean, seeds) == ("a", 10.0, 50.0, 2)
    assert 0 <= low < 40 < 60 < high <= 100


def test_rl_scores_are_those_of_the_largest_size_with_its_name() -> None:
    asked: list[tuple[tuple[str, str], ...]] = []

    def curve(stage: str, scores: Any) -> pd.DataFrame:
        asked.append(scores.pairs)
        place = {"objective": "ce", "step": 5.0, "tokens": 5, "mean": 1.0, "low": 0.0, "high": 2.0, "seeds": 2}
        return pd.DataFrame([{**place, "entry": None}])

    metrics = ["pass@16", "avg@2", "pass@2", "avg@16"]
    data: Any = SimpleNamespace(
        benchmarks=lambda stage: {"X": Benchmark("math", metrics)}, curve=curve, settings=["ce"], baseline=None
    )
    panels = rl_scores(data).panels
    assert asked == [(("X", "avg@16"),), (("X", "pass@16"),)]
    assert [panel["title"] for panel in panels] == ["Avg@16 (percent)", "Pass@16 (percent)"]
    assert points(panels[1], "step", "mean") == [(5.0, 1.0)]


def test_calibration_is_that_of_the_last_checkpoint_and_step_0_is_not_after_rl() -> None:
    def curve(stage: str, scores: Any) -> pd.DataFrame:
        steps = {"pretrain": [20.0, 10.0], "midtrain": [5.0], "grpo": [0.0]}[stage]
        rows = [("ce", s, s, s / 100, s / 200, s / 50, 2, None) for s in steps]
        return pd.DataFrame(rows, columns=["objective", "step", "tokens", "mean", "low", "high", "seeds", "entry"])

    data: Any = SimpleNamespace(
        benchmarks=lambda stage: {"Prose": Benchmark("text", ["calibration_error"])}, curve=curve, settings=["ce"]
    )
    (panel,) = calibration(data).panels
    assert points(panel, "stage", "low", "mean", "high") == [
        ("after pre-training", 0.1, 0.2, 0.4), ("after mid-training", 0.025, 0.05, 0.1)
    ]  # fmt: skip
    bar, rule = panel["layer"]
    assert bar["encoding"]["y"]["scale"] == {"domain": [0, 0.4]}  # twice the highest, or the highest end
    assert (rule["encoding"]["y"]["field"], rule["encoding"]["y2"]["field"]) == ("low", "high")


def test_forking_tokens_are_the_most_frequent_at_the_last_step_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    last = [{"step": 8, "by": "token", "token": f"t{i}", "count": 13 - i} for i in range(13)]
    earlier = [{"step": 4, "by": "token", "token": "t0", "count": 1000}, {"step": 8, "by": "place", "count": 5000}]
    rows = [{**row, "objective": "ce", "seed": seed} for seed in (1, 2) for row in [*earlier, *last]]
    rows[-1] = {**rows[-1], "count": 10}  # of seed 2: 100 tokens instead of 91
    monkeypatch.setattr(further_figures, "_forking_rows", lambda data: rows)
    data: Any = SimpleNamespace(settings=["ce"])
    (panel,) = forking_tokens(data).panels
    shares = {token: (low, mean, high) for token, low, mean, high in points(panel, "token", "low", "mean", "high")}
    assert len(shares) == 12
    assert shares["'t0'"] == (0.13, pytest.approx((13 / 91 + 13 / 100) / 2, abs=1e-4), pytest.approx(13 / 91, abs=1e-4))
    assert "'t11'" not in shares  # 2 + 2 of them, and 1 + 10 of t12
    assert panel["layer"][0]["encoding"]["y"]["sort"][0] == "'t0'"


def test_significant_predictors_are_blue_and_the_strongest_first() -> None:
    settings = [*FIVE, "other"]
    results = pd.DataFrame({"objective": settings, "seed": 1, "rl_pass": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]})
    other = [1.0, 3.0, 2.0, 6.0, 4.0, 5.0]  # Spearman 1 - 6 * 8 / 210 = 0.771
    rows = pd.DataFrame(
        [(name, 1, 9, metric, x) for metric, x_of in (("mixed", other), ("falling", [6.0, 5, 4, 3, 2, 1]))
         for name, x in zip(settings, x_of, strict=True)],
        columns=["objective", "seed", "step", "metric", "value"],
    ).assign(benchmark="X")  # fmt: skip
    data: Any = SimpleNamespace(facts=results, measured=lambda stage: rows if stage == "pretrain" else rows[:0])
    drawn = predictors(data)
    (panel,) = drawn.panels
    assert panel["title"] == "after pretrain"
    (strong, weak) = points(panel, "what", "rho", "significant")
    assert strong == ("X falling", -1.0, SIGNIFICANT)
    assert weak == ("X mixed", pytest.approx(0.7714, abs=1e-4), "not significant")
    scale = panel["encoding"]["color"]["scale"]
    assert scale == {"domain": ["significant (5 %, corrected)", "not significant"], "range": ["#0072b2", "#b0b0b0"]}
    assert "1 of 2 metrics are significant. The strongest is X falling after pretrain, -1.00 (p = 0.0056" in (
        drawn.caption
    )


def test_of_several_sizes_the_control_and_the_models_sizes_show_the_largest() -> None:
    asked: list[tuple[str, str, Any]] = []

    def entry(checkpoint: Any, scores: Any, variant: str) -> Entry:
        asked.append((checkpoint.objective, variant, scores.pairs))
        return Entry(40.0, 30.0, 55.0, 2) if variant else Entry(50.0, 45.0, 60.0, 2)

    rows = pd.DataFrame(
        [("grpo", "matched:a", "ce", 20), ("grpo", "", "a", 20), ("grpo", "", "ce", 20)],
        columns=["stage", "variant", "objective", "step"],
    )
    data: Any = SimpleNamespace(
        rows=rows, model="m", settings=["ce", "a"], estimates=SimpleNamespace(entry=entry),
        benchmarks=lambda stage: {"X": Benchmark("math", ["pass@16", "avg@16", "pass@2"])},
    )  # fmt: skip
    (panel,) = temperature_control(data).panels
    assert asked == [("a", "", (("X", "pass@16"),)), ("ce", "matched:a", (("X", "pass@16"),))]
    assert points(panel, "role", "objective", "low", "mean", "high") == [
        ("the setting", "a", 45.0, 50.0, 60.0), ("cross-entropy at its entropy", "ce", 30.0, 40.0, 55.0)
    ]  # fmt: skip
    assert _score(data, "grpo").pairs == (("X", "pass@16"),)


def headline_of(*rows: HeadlineRow, baselines: dict[str, str]) -> Headline:
    return Headline(list(rows), baselines, Measure("result", "reward", "reward", "percent", 1), [1], has_rl=True)


def test_the_headlines_differences_are_points_around_a_line_at_zero() -> None:
    def difference(value: float) -> Difference:
        return Difference(Estimate(value, value - 1, value + 2, None, 1), (value,), (1,))

    nothing = Entry(None)
    ce = HeadlineRow("m", "ce", nothing, nothing, nothing, nothing)
    shaped = replace(ce, setting="a", differences={"entropy": difference(0.5), "result": difference(-3.0)})
    chart = headline_chart(headline_of(ce, shaped, baselines={"m": "ce"}))
    entropy, after = chart.panels
    assert [entropy["title"], after["title"]] == [["entropy", "minus ce’s (nats)"], ["after RL", "minus ce’s (points)"]]
    assert points(entropy, "row", "low", "mean", "high") == [("a", -0.5, 0.5, 2.5)]
    assert points(after, "row", "low", "mean", "high") == [("a", -4.0, -3.0, -1.0)]
    for panel in chart.panels:
        zero, rule, point = (layer["encoding"] for layer in panel["layer"])
        assert zero == {"x": {"datum": 0}}
        assert [rule["x"]["field"], rule["x2"]["field"], point["x"]["field"]] == ["low", "high", "mean"]
    assert [panel["layer"][1]["encoding"]["y"]["axis"].get("labels", True) for panel in chart.panels] == [True, False]


def test_the_headline_of_one_setting_has_its_numbers_with_their_units() -> None:
    row = HeadlineRow("m", "a", Entry(2.0, 1.5, 2.75, 1), Entry(9.0), Entry(8.0), Entry(40.0, 30.0, 55.0, 1))
    chart = headline_chart(headline_of(row, baselines={}))
    assert [panel["title"] for panel in chart.panels] == [["entropy", "(nats)"], ["after RL", "(percent)"]]
    places = [points(panel, "row", "low", "mean", "high") for panel in chart.panels]
    assert places == [[("a", 1.5, 2.0, 2.75)], [("a", 30.0, 40.0, 55.0)]]
    assert all(len(panel["layer"]) == 2 for panel in chart.panels)  # no line of no difference


def test_all_differences_of_the_headline_are_corrected_together() -> None:

    def found(p: float | None, value: float = 1.0) -> Difference:
        return Difference(Estimate(value, None, None, p, 5), (value,) * 5, (1, 2, 3, 4, 5))

    worded = with_words([found(0.03), found(0.5), found(0.01, -1.0)])
    assert [one.word for one in worded] == [NOT_TOLD_APART, NOT_TOLD_APART, LOWER]
    assert [one.p for one in worded] == pytest.approx([0.06, 0.5, 0.03])
    assert [one.word for one in with_words([found(0.03)])] == [HIGHER]
    (alone,) = with_words([found(None)])
    assert (alone.word, alone.p) == (NOT_TOLD_APART, None)


def test_one_wide_interval_of_calibration_is_cut_at_twice_the_highest_number() -> None:
    def curve(stage: str, scores: Any) -> pd.DataFrame:
        rows = [("ce", 1.0, 1.0, 0.1, 0.05, 0.9, 2, None), ("a", 1.0, 1.0, 0.2, 0.1, 0.3, 2, None)]
        names = ["objective", "step", "tokens", "mean", "low", "high", "seeds", "entry"]
        return pd.DataFrame(rows if stage == "pretrain" else [], columns=names)

    data: Any = SimpleNamespace(
        benchmarks=lambda stage: {"Prose": Benchmark("text", ["calibration_error"])}, curve=curve, settings=["ce", "a"]
    )
    (panel,) = calibration(data).panels
    assert panel["layer"][0]["encoding"]["y"]["scale"] == {"domain": [0, 0.4]}
    assert points(panel, "objective", "low", "high") == [("ce", 0.05, 0.4), ("a", 0.1, 0.3)]


@pytest.mark.parametrize(("seeds", "is_labelled"), [(5, True), (6, False)])
def test_up_to_five_seeds_of_a_row_have_their_numbers(seeds: int, *, is_labelled: bool) -> None:
    """Those that are together have one label."""
    panel = {"layer": [{"encoding": {}}, {"encoding": {"y": {}, "x": {}, "color": {}}}]}
    values = [1.0, 9.0, 1.1, 5.0, 20.0, 13.0][:seeds]
    records: list[dict[str, object]] = [
        {"row": "a", "objective": "a", "seed": seed, "value": value, "tip": ""} for seed, value in enumerate(values, 1)
    ]
    layers = with_seeds(panel, records, ends=np.array([[0.0, 20.0]]))["layer"]
    labels = [row["label"] for layer in layers for row in layer.get("data", {}).get("values", []) if "label" in row]
    assert labels == (["1,3", "4", "2", "5"] if is_labelled else [])


def test_the_first_rows_have_the_largest_differences_of_either_sign() -> None:
    def row(setting: str, value: float) -> HeadlineRow:
        found = Difference(Estimate(value, None, None, None, 1), (value,), (1,))
        nothing = Entry(None)
        return HeadlineRow("m", setting, nothing, nothing, nothing, nothing, {"result": found})

    baseline = replace(row("ce", 0.0), differences={})
    rows = [row(f"s{i}", value) for i, value in enumerate((1.0, -9.0, 2.0, 3.0, -8.0, 4.0, 0.5, 5.0, -0.1))]
    shown = first_rows(headline_of(baseline, *rows, baselines={"m": "ce"}))
    assert [one.setting for one in shown] == ["ce", "s0", "s1", "s2", "s3", "s4", "s5", "s7"]
