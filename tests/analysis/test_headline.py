"""The headline: the tables' numbers, differences by hand, words by tests, and what hides differences."""

import json
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from analysis.figures.headline_figure import MOST_ROWS, first_rows, headline_chart
from analysis.headline import HIGHER, LOWER, NOT_TOLD_APART, Headline, headline, held_out_rewards
from analysis.headline_words import cautions, odd_seeds, result_sentence, seeds_that_decide
from analysis.study import read_study
from analysis.table_builder import build_tables
from tests.analysis.conftest import Measured, known, write_run
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
    shares = np.random.default_rng(0).beta(0.5, 0.5, 64)
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
    error = 100 * np.sqrt((shares.var() + (shares * (1 - shares)).mean() / 16) / 63)
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


def test_an_odd_seed_saturation_and_noise_are_said(make_store: Callable) -> None:
    graph, store = make_store(FIVE, number=numbers)
    with_rewards(graph, store, lambda s, seed, step: 0.3 if (s, seed) == ("ce", 4) else 0.96 + seed / 200)
    result = headline(read_study(graph, store))
    (odd,) = odd_seeds(result)
    assert (odd.setting, odd.seed, odd.value) == ("ce", 4, pytest.approx(30))
    text = " ".join(cautions(result))
    assert "Odd seed after RL: ce seed 4 at 30 %" in text
    assert "Saturated: 2 of 3 settings" in text
    assert "Noisy: the intervals of the differences after RL" in text


def test_nothing_is_said_of_seeds_that_vary_as_usual(make_store: Callable) -> None:
    graph, store = make_store(FIVE, number=numbers)
    noise = np.random.default_rng(3).normal(0, 0.02, 16)
    with_rewards(
        graph, store, lambda s, seed, step: 0.6 + {"ce": 0, "precision": 0.1}.get(s, 0.2) + noise[seed + len(s)]
    )
    result = headline(read_study(graph, store))
    assert odd_seeds(result) == []
    assert cautions(result) == []


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
