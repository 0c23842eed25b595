"""The numbers that figures draw, each computed by hand: differences, averages, smoothing, ranges and axes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.figures.charts import Axis, coincides, domain, small_multiples, tips
from analysis.figures.figure_data import (
    averages,
    interval_columns,
    last_values,
    measured,
    minus_baseline,
    over_seeds,
    text_errors,
)
from analysis.figures.paper_figures import _minus, _smoothed, thinned
from analysis.tables import Entry


def entry(values: list[float], **fields: Any) -> Entry:
    return Entry(float(np.nanmean(values)), n=int(np.isfinite(values).sum()), by_seed=tuple(values), **fields)


def curve(**settings: Entry) -> pd.DataFrame:
    rows = [{"objective": name, "step": 10.0, "entry": e, "mean": e.value} for name, e in settings.items()]
    return pd.DataFrame(rows)


def test_a_difference_from_the_baseline_is_paired_and_has_students_interval() -> None:
    """Seeds 1 to 4, of which one setting lacks the second: three differences, 3, 5 and 7."""
    frame = curve(ce=entry([1.0, 9.0, 2.0, 4.0]), x=entry([4.0, np.nan, 7.0, 11.0]))
    (row,) = minus_baseline(frame, "step", "ce").to_dict("records")
    half = stats.t.ppf(0.975, 2) * 2 / np.sqrt(3)
    assert row == {
        "objective": "x", "step": 10.0, "mean": 5.0, "low": pytest.approx(5 - half), "high": pytest.approx(5 + half),
        "seeds": 3,
    }  # fmt: skip


def test_the_resolution_of_both_widens_a_difference() -> None:
    frame = curve(ce=entry([1.0, 1.0], resolution=3.0), x=entry([2.0, 2.0], resolution=4.0))
    (row,) = minus_baseline(frame, "step", "ce").to_dict("records")
    assert row["high"] - row["mean"] == pytest.approx(stats.t.ppf(0.975, 1) * 5 / np.sqrt(2))


def test_with_one_seed_a_difference_has_the_interval_of_independent_numbers() -> None:
    frame = curve(ce=entry([1.0], low=-2.0, high=4.0), x=entry([5.0], low=1.0, high=9.0))
    (row,) = minus_baseline(frame, "step", "ce").to_dict("records")
    assert (row["mean"], row["low"], row["high"], row["seeds"]) == (4.0, -1.0, 9.0, 1)


def test_without_a_common_seed_or_place_there_is_no_difference() -> None:
    apart = curve(ce=entry([1.0, np.nan]), x=entry([np.nan, 2.0]))
    assert minus_baseline(apart, "step", "ce").empty
    elsewhere = curve(ce=entry([1.0, 2.0]), x=entry([1.0, 2.0]))
    elsewhere.loc[1, "step"] = 20.0
    assert minus_baseline(elsewhere, "step", "ce").empty


def test_a_number_without_an_interval_has_its_ends_there() -> None:
    assert interval_columns(Entry(2.0, 1.0, 4.0, n=3)) == {"mean": 2.0, "low": 1.0, "high": 4.0, "seeds": 3}
    assert interval_columns(Entry(2.0, n=1)) == {"mean": 2.0, "low": 2.0, "high": 2.0, "seeds": 1}


def test_over_seeds_are_the_mean_and_the_range() -> None:
    frame = pd.DataFrame({"objective": ["a", "a", "a", "b"], "value": [1.0, 2.0, 6.0, 5.0]})
    assert over_seeds(frame, ["objective"]).to_dict("records") == [
        {"objective": "a", "mean": 3.0, "low": 1.0, "high": 6.0, "seeds": 3},
        {"objective": "b", "mean": 5.0, "low": 5.0, "high": 5.0, "seeds": 1},
    ]


def rows(*records: tuple[str, int, int, str, str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(records, columns=["objective", "seed", "step", "group", "benchmark", "metric", "value"])


def test_an_average_is_over_all_benchmarks_at_their_largest_size_in_percent() -> None:
    frame = rows(
        ("a", 1, 10, "math", "X", "pass@4", 0.2),
        ("a", 1, 10, "math", "X", "pass@16", 0.6),
        ("a", 1, 10, "math", "X", "avg@16", 0.1),
        ("a", 1, 10, "math", "Y", "pass@16", 0.8),
        ("a", 1, 10, "code", "Z", "pass@16", 0.0),
        ("a", 1, 20, "math", "X", "pass@16", 0.9),  # without Y
        ("b", 1, 20, "math", "X", "pass@16", 0.4),
        ("b", 1, 20, "math", "Y", "pass@16", 0.6),
    )
    assert averages(frame, "step", "pass").values.tolist() == [["a", 1, 10, pytest.approx(70)], ["b", 1, 20, 50.0]]
    assert averages(frame, "step", "cons").empty


def test_the_last_value_is_that_of_the_last_step_averaged_over_texts() -> None:
    frame = rows(
        ("a", 1, 20, "text", "X", "entropy", 2.0),
        ("a", 1, 10, "text", "X", "entropy", 9.0),
        ("a", 1, 20, "text", "Y", "entropy", 4.0),
        ("a", 2, 10, "text", "X", "entropy", 5.0),
    )
    assert last_values(frame, ["objective", "seed"]).to_dict() == {("a", 1): 3.0, ("a", 2): 5.0}


def test_variants_and_other_stages_and_models_are_left_out() -> None:
    frame = pd.DataFrame(
        [
            ("m", "pretrain", "", 1.0),
            ("m", "pretrain", "matched:x", 2.0),
            ("m", "grpo", "", 3.0),
            ("n", "pretrain", "", 4.0),
        ],
        columns=["model", "stage", "variant", "value"],
    )
    study: Any = SimpleNamespace(measurements=frame)
    assert measured(study, "m", "pretrain")["value"].tolist() == [1.0]


def test_half_an_interval_over_texts_is_1_96_standard_errors_at_the_last_step() -> None:
    frame = rows(
        ("a", 1, 20, "text", "X", "entropy", 2.0),
        ("a", 1, 10, "text", "X", "entropy", 2.0),
        ("a", 1, 20, "text", "X", "perplexity", 2.0),
        ("a", 1, 20, "math", "X", "entropy", 2.0),
        ("b", 1, 20, "text", "X", "entropy", 2.0),
    ).assign(stderr=[0.1, 0.7, 0.8, 0.9, np.nan])
    data: Any = SimpleNamespace(measured=lambda stage: frame)
    halves = text_errors(data, "pretrain", "entropy")
    assert halves.values.tolist() == [["a", 1, pytest.approx(0.19600, abs=1e-5)], ["b", 1, 0.0]]


def test_rl_curves_are_means_over_five_steps_around_each_and_bands_their_range() -> None:
    steps = list(range(1, 9))
    frame = pd.DataFrame(
        [
            {"objective": o, "seed": s, "step": t, "reward": t * s + shift}
            for o, shift in (("b", 100), ("a", 0))
            for s in (1, 3)
            for t in steps
        ]
    )
    drawn = _smoothed(frame, "reward")
    assert drawn["objective"].tolist() == ["a"] * 8 + ["b"] * 8
    for objective, shift in (("a", 0), ("b", 100)):
        part = drawn[drawn["objective"] == objective]
        for step, mean, low, high in part[["step", "mean", "low", "high"]].itertuples(index=False):
            around = [t for t in steps if abs(t - step) <= 2]
            assert mean == pytest.approx(2 * np.mean(around) + shift)
            assert (low, high) == (min(around) + shift, 3 * max(around) + shift)


def test_differences_of_rl_curves_are_paired_by_seed_and_step() -> None:
    frame = pd.DataFrame(
        [
            ("ce", 1, 1, 1.0),
            ("ce", 2, 1, 2.0),
            ("ce", 1, 2, np.nan),
            ("x", 1, 1, 5.0),
            ("x", 2, 1, 9.0),
            ("x", 1, 2, 7.0),
        ],
        columns=["objective", "seed", "step", "reward"],
    )
    difference = _minus(frame, "reward", "ce")
    assert difference[["objective", "seed", "step", "reward"]].values.tolist() == [["x", 1, 1, 4.0], ["x", 2, 1, 7.0]]


@pytest.mark.parametrize(("count", "kept"), [(60, 60), (61, 31), (600, 61)])
def test_long_curves_keep_their_ends_and_about_sixty_points(count: int, kept: int) -> None:
    frame = pd.DataFrame({"step": [*range(count), *range(count)], "objective": ["a"] * count + ["b"] * count})
    thin = thinned(frame, "step")
    assert len(thin) == 2 * kept
    assert (thin["step"].min(), thin["step"].max()) == (0, count - 1)


def test_an_axis_fits_the_curves_and_cuts_wide_intervals() -> None:
    """Numbers from 10 to 20: intervals may widen it by 6 at either end, and 4 % are added for the eye."""
    wide = pd.DataFrame({"mean": [10.0, 20.0], "low": [-90.0, 15.0], "high": [12.0, 90.0]})
    assert domain(wide) == [pytest.approx(4 - 0.04 * 22, abs=0.01), pytest.approx(26 + 0.04 * 22, abs=0.01)]
    narrow = pd.DataFrame({"mean": [10.0, 20.0], "low": [9.0, 19.0], "high": [11.0, 22.0]})
    assert domain(narrow) == [pytest.approx(9 - 0.04 * 13, abs=0.01), pytest.approx(22 + 0.04 * 13, abs=0.01)]
    equal = pd.DataFrame({"mean": [10.0, 10.0], "low": [10.0, 10.0], "high": [10.0, 10.0]})
    assert domain(equal) == [9.5, 10.5]
    decades = pd.DataFrame({"mean": [10.0, 1000.0], "low": [10.0, 1000.0], "high": [10.0, 1000.0]})
    assert domain(decades, log=True) == [pytest.approx(10 ** (1 - 0.08), rel=1e-3), pytest.approx(10**3.08, rel=1e-3)]


@pytest.mark.parametrize(("apart", "expected"), [(1.1, True), (1.3, False)])
def test_lines_coincide_below_an_eighth_of_the_panel(apart: float, expected: bool) -> None:
    """Both fall from about 10 to 0; the median of their distances is `apart`, 12 % of the range is about 1.2."""
    mean = [10.0, 5.0, 0.0]
    frame = pd.DataFrame(
        {"objective": ["a"] * 3 + ["b"] * 3, "step": [1, 2, 3] * 2, "mean": [*mean, 10.0, 5.0 + apart, apart]}
    )
    assert coincides(frame, "step") == expected
    assert not coincides(frame[frame["objective"] == "a"], "step")


def test_the_text_under_the_pointer() -> None:
    frame = pd.DataFrame(
        {
            "objective": ["a", "b"],
            "step": [1000.0, 2.5],
            "mean": [12.34567, 2.0],
            "low": [1.0, 2.0],
            "high": [20.0, 2.0],
            "seeds": [1, 5],
        }
    )
    assert tips(frame, "step", "RL step") == [
        "a; RL step: 1,000; 12.35 [1, 20]; 1 seed",
        "b; RL step: 2.5; 2 [2, 2]; 5 seeds",
    ]


def test_small_panels_share_an_axis_that_has_zero() -> None:
    frame = pd.DataFrame(
        {
            "objective": ["a", "b"],
            "step": [1.0, 1.0],
            "mean": [2.0, 4.0],
            "low": [1.0, 3.0],
            "high": [3.0, 5.0],
            "seeds": 3,
        }
    )
    panels = small_multiples(frame, Axis("step", "step"), "entropy", settings=["a", "b"])
    assert [panel["title"] for panel in panels] == [["entropy", "a"], ["entropy", "b"]]
    domains = [layer["encoding"]["y"]["scale"]["domain"] for panel in panels for layer in panel["layer"][:-1]]
    assert all(ends == domains[0] for ends in domains)
    assert domains[0][0] < 0 < 4 < domains[0][1]
    assert [panel["layer"][-1]["encoding"] for panel in panels] == [{"y": {"datum": 0}}] * 2
