"""The headline: the tables' numbers, differences by hand, words by tests, and what hides differences."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from io import StringIO
from statistics import fmean

import numpy as np
import pytest
from jinja2 import Environment, FileSystemLoader
from rich.console import Console

from analysis.dashboard import headline_rows
from analysis.estimates import Precision, seed_mean
from analysis.figures.headline_figure import MOST_ROWS, first_rows, headline_chart
from analysis.headline import (
    HIGHER,
    LOWER,
    NOT_TOLD_APART,
    Difference,
    Headline,
    HeadlineRow,
    Measure,
    headline,
    held_out_rewards,
    sampled_entry,
)
from analysis.headline_words import (
    cautions,
    forecast,
    nearest_to_decision,
    result_sentence,
    seed_count,
    seeds_that_decide,
)
from analysis.page.headline_view import headline_view
from analysis.seed_spread import furthest_seed, odd_seeds
from analysis.statistics import Estimate, Sampled
from analysis.study import read_study
from analysis.table_builder import build_tables
from analysis.tables import Entry
from analysis.terminal import cells, headline_table, print_headline
from sweeps.plan.graph import StageRun
from tests.analysis.conftest import Measured, known, write_run
from tests.analysis.test_learning import with_curves
from tests.published import publish

FIVE = ["objective=ce,precision,diversity", "seed=1,2,3,4,5"]


def numbers(measured: Measured) -> float:
    """Entropy by setting with little noise over seeds; the results of RL only vary over seeds."""
    noise = known(measured._replace(objective="", step=0)) / 100
    if measured.metric == "entropy":
        return 3 + {"precision": -0.2, "ce": 0.0, "diversity": 0.3}[measured.objective] + noise
    if measured.metric == "perplexity":
        return 25 + noise
    return 0.5 + known(measured) / 100 + noise


def with_rewards(graph: object, store: object, reward: Callable[[str, int, int], float]) -> None:
    """Write ledgers with held-out rewards of each (setting, seed, step)."""
    for run in graph.runs.values():  # type: ignore[attr-defined]
        if run.stage == "grpo":
            folder = write_run(store, run)  # type: ignore[arg-type]
            setting, seed = run.labels["objective"], run.config["seed"]
            rows = [{"step": step, "held_out_reward": reward(setting, seed, step)} for step in (0, 10, 20)]
            for row in rows:
                row["held_out_pass@2"] = 1 - (1 - row["held_out_reward"]) ** 2
            (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            publish(folder)


def rows_by_setting(result: Headline) -> dict[str, object]:
    return {row.setting: row for row in result.rows}


def test_numbers_are_those_of_the_tables_and_differences_those_of_the_seeds(make_store: Callable) -> None:
    study = read_study(*make_store(FIVE, number=numbers))
    result = headline(study)
    assert [row.setting for row in result.rows] == ["ce", "precision", "diversity"]
    table = next(table for table in build_tables(study) if table.number == 3)
    for row in result.rows:
        last = table.cells.loc[row.setting].iloc[-1]
        for entry, name in ((row.entropy, "entropy"), (row.perplexity, "perplexity")):
            shown = last["text", name]
            assert (entry.value, entry.low, entry.high) == pytest.approx((shown.value, shown.low, shown.high))
        rl = next(t for t in build_tables(study) if t.stage == "grpo" and t.objectives == (row.setting,))
        assert row.before.value == pytest.approx(rl.cells.loc[row.setting].iloc[0]["average", "Avg@8"].value)
        assert row.after.value == pytest.approx(rl.cells.loc[row.setting].iloc[-1]["average", "Avg@8"].value)
    by_setting = rows_by_setting(result)
    difference = by_setting["precision"].differences["entropy"]  # type: ignore[attr-defined]
    assert difference.estimate.value == pytest.approx(-0.2, abs=1e-6)
    assert difference.word == LOWER
    assert by_setting["diversity"].differences["entropy"].word == HIGHER  # type: ignore[attr-defined]
    for row in result.rows[1:]:
        expected = fmean(np.subtract(row.after.by_seed, result.rows[0].after.by_seed))
        assert row.differences["result"].estimate.value == pytest.approx(expected)
    sentence = result_sentence(result)
    assert "Over 5 seeds" in sentence
    assert "lower than cross-entropy’s with precision (−0.20 nats" in sentence
    assert "higher with diversity (+0.30 nats" in sentence


def test_held_out_rewards_come_first_and_their_error_is_that_over_problems(make_store: Callable) -> None:
    """Problems with known shares of right samples: the error from Pass@2 is that of their mean."""
    graph, store = make_store(["objective=ce,precision"], number=numbers)
    problems = next(run.config["grpo"]["held_out_problems"] for run in graph.runs.values() if run.stage == "grpo")
    shares = np.random.default_rng(0).beta(0.5, 0.5, problems)
    with_rewards(graph, store, lambda setting, seed, step: float(shares.mean()))
    for run in graph.runs.values():
        if run.stage == "grpo":
            path = store.run("grpo", run.signature).folder / "ledger.jsonl"
            rows = [
                json.loads(line) | {"held_out_pass@2": float(np.mean(1 - (1 - shares) ** 2))} for line in path.open()
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            publish(path.parent)
    study = read_study(graph, store)
    sampled = held_out_rewards(study)["nano", "ce"][20]
    error = 100 * np.sqrt((shares.var() + (shares * (1 - shares)).mean() / 16) / (problems - 1))
    assert sampled.parts[0][2][0] == pytest.approx(error)
    result = headline(study)
    assert result.result.title == "reward on held-out problems at temperature 1"
    assert result.rows[0].after.value == pytest.approx(100 * shares.mean())


def test_one_seed_decides_nothing(make_store: Callable) -> None:
    result = headline(read_study(*make_store(["objective=ce,precision"], number=numbers)))
    (difference,) = [row.differences["entropy"] for row in result.rows if row.differences]
    assert difference.estimate.value == pytest.approx(-0.2, abs=1e-6)
    assert difference.word == NOT_TOLD_APART
    assert result_sentence(result).endswith("one seed decides nothing.")
    assert seeds_that_decide(result) == 5


def test_pre_training_may_have_more_seeds_than_rl(make_store: Callable) -> None:
    def later(run: StageRun) -> bool:
        stage = run.parent[0] if run.stage == "evaluate" and run.parent else run.stage
        return stage != "pretrain" and run.config["seed"] > 1

    sentence = result_sentence(headline(read_study(*make_store(FIVE, later, number=numbers))))
    assert sentence.startswith("Over 5 seeds, entropy after pre-training is lower than cross-entropy’s with precision")
    assert "; after RL, with one seed, the " in sentence
    assert sentence.endswith("; one seed decides nothing.")


def test_an_odd_seed_saturation_and_noise_are_said(make_store: Callable) -> None:
    graph, store = make_store(FIVE, number=numbers)
    with_rewards(graph, store, lambda s, seed, step: 0.3 if (s, seed) == ("ce", 4) else 0.96 + seed / 200)
    result = headline(read_study(graph, store))
    (odd,) = odd_seeds(result)
    assert (odd.setting, odd.seed, odd.value) == ("ce", 4, pytest.approx(30))
    text = " ".join(cautions(result))
    assert "Odd seed after RL: ce seed 4 at 30 %" in text
    assert "Saturated: 2 of 3 settings" in text
    assert "Noisy: the 95 % intervals of the differences from cross-entropy after RL (median: ±" in text


def test_nothing_is_said_of_seeds_that_vary_as_usual(make_store: Callable) -> None:
    graph, store = make_store(FIVE, number=numbers)
    noise = np.random.default_rng(3).normal(0, 0.02, 16)
    with_rewards(
        graph, store, lambda s, seed, step: 0.6 + {"ce": 0, "precision": 0.1}.get(s, 0.2) + noise[seed + len(s)]
    )
    result = headline(read_study(graph, store))
    assert odd_seeds(result) == []
    assert cautions(result) == []


@pytest.mark.parametrize(("value", "is_odd"), [(71, True), (70, False), (29, True), (30, False)])
def test_a_seed_is_odd_beyond_three_and_a_half_standard_deviations(
    value: float, *, is_odd: bool, make_store: Callable
) -> None:
    """The median distance from the median is 4, so the standard deviation is 5.93 and the bound 20.76."""
    result = headline(read_study(*make_store(["objective=ce"], number=numbers)))
    after = {1: 46.0, 2: 54.0, 3: 50.0, 4: 47.0, 5: 50.0, 6: 54.0, 7: float(value)}
    (odd,) = odd_seeds(replace(result, rows=[replace(result.rows[0], by_seed={"after": after})])) or (None,)
    assert (odd is not None) == is_odd
    if odd is not None:
        assert (odd.seed, odd.value, odd.others) == (7, value, (46.0, 54.0))


def test_the_seed_that_deviates_most_is_named_and_of_two_none_is_called_odd(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce,diversity", "seed=1,2,3"], number=numbers)
    rewards = {("diversity", 1): 0.7, ("diversity", 2): 0.3, ("diversity", 3): 0.6}
    with_rewards(graph, store, lambda s, seed, step: rewards.get((s, seed), 0.8 + seed / 100))
    result = headline(read_study(graph, store))
    assert "seed 2 of diversity at 30.0 %, 35.0 points from the mean of the others" in furthest_seed(result)

    two = replace(result, rows=[
        replace(row, by_seed={n: {s: v for s, v in values.items() if s < 3} for n, values in row.by_seed.items()})
        for row in result.rows
    ])  # fmt: skip
    assert "seeds 1 and 2 of diversity differ by 40.0 points (seed 1 70.0 %, seed 2 30.0 %)" in furthest_seed(two)
    assert furthest_seed(two).endswith("two seeds cannot show which is odd.")
    one = replace(result, rows=[replace(row, by_seed={"after": {1: 50.0}}) for row in result.rows])
    assert furthest_seed(one) == ""


def test_what_rl_tells_apart_is_in_the_sentence(make_store: Callable) -> None:
    """Three seeds: diversity 20 points lower with little spread, precision about the same."""
    graph, store = make_store(["objective=ce,precision,diversity", "seed=1,2,3"], number=numbers)
    rewards = {"ce": (0.60, 0.62, 0.61), "precision": (0.63, 0.60, 0.61), "diversity": (0.401, 0.419, 0.411)}
    with_rewards(graph, store, lambda s, seed, step: rewards[s][seed - 1])
    result = headline(read_study(graph, store))
    sentence = result_sentence(result)
    assert (
        "; after RL, the reward on held-out problems at temperature 1 is lower than cross-entropy’s with " in sentence
    )
    assert "with diversity (−20.0 points [" in sentence
    alike = replace(result, rows=[row for row in result.rows if row.setting != "diversity"])
    no_difference = "no setting’s reward on held-out problems at temperature 1 can be told apart from cross-entropy’s"
    assert f"; after RL, {no_difference}." in result_sentence(alike)


def test_perplexities_are_said_as_computed(make_store: Callable) -> None:
    result = headline(read_study(*make_store(FIVE, number=numbers)))
    first, *others = result.rows
    rows = [replace(first, perplexity=replace(first.perplexity, value=29.0)), *others]
    rows[1] = replace(rows[1], perplexity=replace(rows[1].perplexity, value=28.07))
    rows[2] = replace(rows[2], perplexity=replace(rows[2].perplexity, value=28.5))
    assert "at perplexities from 28.1 to 29.0 (3.3 % apart)" in result_sentence(replace(result, rows=rows))


def test_the_forecast_names_the_difference_it_is_of(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce,precision,diversity", "seed=1,2,3"], number=numbers)
    own = {"precision": (0.70, 0.50, 0.62), "diversity": (0.605, 0.600, 0.58)}
    with_rewards(graph, store, lambda s, seed, step: own.get(s, (0.6, 0.5, 0.55))[seed - 1])
    result = headline(read_study(graph, store))
    nearest = nearest_to_decision(result)
    assert nearest is not None
    row, count = nearest
    needed = {r.setting: d.seeds_needed for r in result.rows if (d := r.differences.get("result"))}
    assert count == min(n for n in needed.values() if n)
    assert forecast(result, "").startswith(f"{count} seeds, would tell {row.setting} from cross-entropy after RL")
    assert (seed_count(12), seed_count(200), seed_count(5953)) == ("about 12", "about 200", "more than 200")


def test_the_figure_has_a_labelled_dot_for_each_seed(make_store: Callable) -> None:
    result = headline(read_study(*make_store(["objective=ce,precision,diversity", "seed=1,2"], number=numbers)))
    for panel, name in zip(headline_chart(result).panels, ("entropy", "result"), strict=True):
        dots = [row for layer in panel["layer"] for row in layer.get("data", {}).get("values", []) if "seed" in row]
        expected = [
            (row.setting, seed, value)
            for row in result.rows
            if (found := row.differences.get(name))
            for seed, value in zip(found.seeds, found.by_seed, strict=True)
        ]
        assert [(dot["objective"], dot["seed"]) for dot in dots] == [(s, seed) for s, seed, _ in expected]
        assert [dot["value"] for dot in dots] == pytest.approx([value for _, _, value in expected], rel=1e-4)
        assert all(dot["tip"].startswith(f"{dot['objective']}, seed {dot['seed']}; ") for dot in dots)
        labels = [
            row["label"]
            for layer in panel["layer"]
            for row in layer.get("data", {}).get("values", [])
            if "label" in row
        ]
        assert sorted(",".join(labels).split(",")) == ["1", "1", "2", "2"]


def test_the_figure_has_the_interval_of_each_difference_or_its_point(make_store: Callable) -> None:
    result = headline(read_study(*make_store(["objective=ce,precision,diversity"], number=numbers)))
    (first, *others) = [row for row in result.rows if row.differences]
    bare = {n: replace(d, estimate=replace(d.estimate, low=None, high=None)) for n, d in first.differences.items()}
    unknown = replace(result, rows=[result.rows[0], replace(first, differences=bare), *others])
    for panel, name in zip(headline_chart(unknown).panels, ("entropy", "result"), strict=True):
        drawn = [[row[key] for key in ("objective", "low", "mean", "high")] for row in panel["data"]["values"]]
        expected = []
        for row in unknown.rows[1:]:
            estimate = row.differences[name].estimate
            low, high = estimate.low or estimate.value, estimate.high or estimate.value
            expected.append([row.setting, *(pytest.approx(x, rel=1e-4) for x in (low, estimate.value, high))])
        assert drawn == expected
        assert drawn[0][1] == drawn[0][2] == drawn[0][3]
        assert drawn[1][1] < drawn[1][2] < drawn[1][3]


def test_the_terminal_names_the_baseline_and_what_was_not_run(make_store: Callable) -> None:
    graph, store = make_store(
        ["objective=ce,precision,diversity", "seed=1,2"],
        number=numbers,
        leave_out=lambda run: run.labels["objective"] == "diversity" and run.stage != "pretrain",
    )
    result = headline(read_study(graph, store))
    shown = {row.setting: cells(result, row)[-2:] for row in result.rows}
    assert shown["ce"] == ["", "baseline"]
    assert shown["precision"][1] == result.rows[1].differences["result"].word
    assert shown["diversity"] == ["", "not run"]


def test_many_settings_show_the_largest_differences_first(make_store: Callable) -> None:
    result = headline(read_study(*make_store(["objective=ce,precision,diversity"], number=numbers)))
    rows = [replace(row, setting=f"{row.setting}-{i}") for i in range(5) for row in result.rows]
    many = replace(result, rows=rows)
    first = first_rows(many)
    assert len(first) == MOST_ROWS
    assert sum(not row.differences for row in first) == 5
    assert headline_chart(many).panels


@pytest.mark.parametrize(
    ("arguments", "panels"),
    [(["objective=precision"], 2), (["objective=precision,diversity"], 2), (["objective=ce"], 2)],
)
def test_without_a_baseline_the_numbers_themselves_are_shown(
    make_store: Callable, arguments: list[str], panels: int
) -> None:
    result = headline(read_study(*make_store(arguments, number=numbers)))
    assert not any(row.differences for row in result.rows)
    chart = headline_chart(result)
    assert len(chart.panels) == panels
    assert "minus" not in str(chart.panels[0]["title"])
    assert result_sentence(result).startswith("With one seed")


def test_an_empty_store_says_so(make_store: Callable) -> None:
    result = headline(read_study(*make_store(["objective=ce,precision"], leave_out=lambda run: True)))
    assert result_sentence(result) == "Nothing is measured yet."
    assert headline_chart(result).panels == ()


def test_without_rl_in_the_study_there_is_no_before_and_after(make_store: Callable) -> None:
    """What is not planned is no gap: the terminal, W&B and the page compare entropies, and leave RL's columns out."""
    result = headline(read_study(*make_store([*FIVE, "until=pretrain", "evaluation=text"], number=numbers)))
    assert not result.has_rl
    names, rows = headline_rows(result)
    assert names == ["setting", "entropy (nats)", "perplexity", "minus baseline", "word"]
    by_setting = {name: values for name, *values in rows}
    assert by_setting["ce"][-2:] == ["", "baseline"]
    assert by_setting["precision"][2].startswith("−0.20")
    assert [by_setting[name][-1] for name in ("precision", "diversity")] == [LOWER, HIGHER]
    out = StringIO()
    print_headline(result, Console(file=out, width=120))
    assert "after pre-training, nats" in out.getvalue()
    assert "RL" not in out.getvalue()
    templates = Environment(loader=FileSystemLoader(files("analysis") / "page" / "templates"), autoescape=True)
    view = headline_view(result, dict.fromkeys(by_setting, "red"), [])
    html = templates.get_template("headline.html.j2").render(headline=view, facts={})
    assert html.count("RL") == 0
    assert html.count("not run") == 0
    assert html.count("−0.20") == 2  # in the sentence and in the table

    planned_only = headline(read_study(*make_store(FIVE, leave_out=lambda run: run.stage == "grpo", number=numbers)))
    assert planned_only.has_rl
    assert headline_rows(planned_only)[0][3] == "before -> after RL"


def test_long_names_leave_the_numbers_room(make_store: Callable) -> None:
    """In a terminal of 80 columns nothing is cut short: the name wraps where its parameters end."""
    heads = ["objective.lam_head=0,0.1", "objective.lam_tail=-0.1,0", "objective.top_k=64", "seed=1,2"]
    result = headline(read_study(*make_store(heads, number=lambda _: 0.5)))
    out = StringIO()
    Console(file=out, width=80).print(headline_table(result))
    assert "…" not in out.getvalue()
    words = out.getvalue().split()
    assert {"lam_head=0.1,", "lam_tail=-0.1,", "k=64"} <= set(words)


@pytest.mark.parametrize(("value", "is_odd"), [(54.9, False), (55.1, True)])
@pytest.mark.parametrize("resolution", [0.5, 1.0])
def test_a_seed_among_equal_ones_is_odd_beyond_five_points(
    value: float, resolution: float, *, is_odd: bool, make_store: Callable
) -> None:
    result = headline(read_study(*make_store(["objective=ce"], number=numbers)))
    row = replace(result.rows[0], by_seed={"after": {1: 50.0, 2: 50.0, 3: 50.0, 4: value}})
    row = replace(row, after=replace(row.after, resolution=resolution))
    assert bool(odd_seeds(replace(result, rows=[row]))) == is_odd
    fewer = replace(row, by_seed={"after": {1: 50.0, 2: 50.0, 4: 90.0}})
    assert odd_seeds(replace(result, rows=[fewer])) == []  # of three none can be told
    coarse = replace(row, after=replace(row.after, resolution=2.0))  # one of fifty problems
    assert odd_seeds(replace(result, rows=[coarse])) == []


def open_row(
    setting: str, value: float, *, half: float = 1.0, word: str = NOT_TOLD_APART, by: float = 1.0
) -> HeadlineRow:
    """A setting whose differences are `value`, with an interval of `half` on either side, and `by` between seeds."""
    nothing, measured = Entry(None), Entry(1.0, n=5)
    by_seed = tuple(value + by * z for z in (-1.5, -0.5, 0.0, 0.5, 1.5))
    found = Difference(Estimate(value, value - half, value + half, 0.5, 5), by_seed, (1, 2, 3, 4, 5), word)
    return HeadlineRow("m", setting, measured, nothing, measured, measured, {"entropy": found, "result": found})


def headline_with(*rows: HeadlineRow) -> Headline:
    ce = HeadlineRow("m", "ce", Entry(1.0, n=5), Entry(None), Entry(1.0, n=5), Entry(1.0, n=5))
    measure = Measure("result", "reward", "reward", "percent", 1)
    return Headline([ce, *rows], {"m": "ce"}, measure, [1, 2, 3, 4, 5], has_rl=True)


def test_of_many_settings_that_differ_three_are_named_and_the_others_counted() -> None:
    names = "abcdef"
    rows = [open_row(name, 7.0 - i, word=HIGHER) for i, name in enumerate(names)]
    text = "higher than cross-entropy’s with a (+7.00 nats [+6.00, +8.00]), b, c and 3 more"
    assert f"entropy after pre-training is {text}" in result_sentence(headline_with(*rows))
    four = result_sentence(headline_with(*rows[:4]))
    assert "), b, c and 1 more" in four
    assert "), b and c;" in result_sentence(headline_with(*rows[:3]))


def test_a_forecast_of_no_more_seeds_than_there_are_is_none() -> None:
    """More seeds would tell `sure` but for an error that is not of the seeds, which they do not make smaller."""
    sure, near, far = open_row("sure", 9.0), open_row("near", 1.5), open_row("far", 0.8)
    told = open_row("told", 1.6, word=LOWER)
    result = headline_with(sure, near, far, told)
    assert [row.differences["result"].seeds_needed for row in (sure, near)] == [3, 7]
    nearest = nearest_to_decision(result)
    assert nearest is not None
    assert nearest[0] is near
    words = forecast(result, "")
    assert "would tell near from cross-entropy after RL" in words
    assert "the other 2 open need more or have no forecast" in words
    assert "the other" not in forecast(headline_with(near, told), "")


@pytest.mark.parametrize(("wide", "narrow", "is_noisy"), [(1, 0, True), (1, 1, True), (1, 2, False), (0, 2, False)])
def test_a_study_is_noisy_if_half_of_its_intervals_are_wider_than_their_differences(
    wide: int, narrow: int, is_noisy: bool
) -> None:
    rows = [open_row(f"w{i}", 1.0, half=4.0) for i in range(wide)] + [open_row(f"n{i}", 3.0) for i in range(narrow)]
    assert any(text.startswith("Noisy") for text in cautions(headline_with(*rows))) == is_noisy


def test_the_temperature_of_rewards_is_named_if_all_runs_have_it(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce,precision"], number=numbers)
    with_rewards(graph, store, lambda setting, seed, step: 0.5)
    study = read_study(graph, store)
    first = next(signature for signature, run in graph.runs.items() if run.stage == "grpo")
    other = study.specs[first]["config"] | {"grpo": study.specs[first]["config"]["grpo"] | {"temperature": 0.6}}
    mixed = replace(study, specs={**study.specs, first: study.specs[first] | {"config": other}})
    assert headline(study).result.title == "reward on held-out problems at temperature 1"
    assert headline(mixed).result.title == "reward on held-out problems"


def test_rewards_of_controls_are_not_those_of_the_setting(make_store: Callable) -> None:
    graph, store = make_store([*FIVE, "evaluation.controls={tempered:[grpo]}"], number=numbers)
    study = with_curves(graph, store, lambda run, step: 0.9 if run.control else 0.5 + run.config["seed"] / 100)
    assert held_out_rewards(study)["nano", "ce"][20].values == pytest.approx([51, 52, 53, 54, 55])


def test_the_interval_of_an_average_at_its_ceiling_is_that_of_the_tables() -> None:
    """One item of one of three benchmarks is the least that can be missing."""
    parts = tuple((name, None, np.zeros(3)) for name in "abc")
    average = Sampled((1, 2, 3), np.full(3, 100.0), parts, 100 / 64 / 3**0.5, (0.0, 100.0))
    entry = sampled_entry(average, 1)
    expected = seed_mean([100.0] * 3, Precision(0.0, 100 / 64 / 3**0.5, 100 / 64), is_share=True)
    assert (entry.low, entry.high) == pytest.approx((expected.low, expected.high))
