"""Measures of the course of RL: from ledgers with known curves to claims and the table."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.claim_language import parse
from analysis.claim_sources import StudySource
from analysis.claims import applicable, judge, read_claims
from analysis.figures.all_figures import build_figures
from analysis.headline import held_out_rewards
from analysis.learning import MEASURES, RLCurve, reward_deviations, rl_curves, run_table, sampled
from analysis.learning_table import target_reward
from analysis.study import NotMeasured, Study, read_study
from analysis.table_builder import build_tables
from analysis.tables import Entry
from pipelines.errors import UserError
from tests.analysis.conftest import write_run
from tests.published import publish

FOUR = ["objective=ce,precision,diversity", "seed=1,2,3,4"]
STEPS = (0, 10, 20)
LEVELS = {"precision": 0.10, "ce": 0.0, "diversity": -0.12}


def reward(setting: str, seed: int, step: int) -> float:
    """A curve that rises by 0.4, at the setting's level, with a little luck of the seed."""
    luck = np.random.default_rng([seed, len(setting)]).normal(0, 0.01)
    return 0.4 + 0.02 * step + LEVELS[setting] + float(luck)


def usual(run: Any, step: int) -> float:
    return reward(run.labels["objective"], run.config["seed"], step)


def with_curves(graph: Any, store: Any, of: Callable[[Any, int], float] = usual) -> Study:
    """The study of a store whose RL runs have held-out rewards, and an entropy of 1 nat that halves at once."""
    for run in graph.runs.values():
        if run.stage == "grpo":
            folder = write_run(store, run)
            rows: list[dict[str, float]] = []
            for step in range(21):
                row = {"step": step, "entropy": 1.0 if step < 10 else 0.5} if step else {"step": 0}
                if step in STEPS:
                    row["held_out_reward"] = of(run, step)
                    row |= {f"held_out_pass@{k}": 1 - (1 - row["held_out_reward"]) ** k for k in (2, 4)}
                rows.append(row)
            (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            publish(folder)
    return read_study(graph, store)


def quantity(study: Study, text: str) -> Any:
    ((parsed,),) = [parse(f"{text} > 0", "c")]
    (term,) = parsed.terms
    return StudySource(study).quantity(term, "nano")


def test_measures_of_known_curves(make_store: Callable) -> None:
    study = with_curves(*make_store(FOUR))
    area = quantity(study, 'rl("precision", "area")')
    assert area.seeds == tuple(range(1, 5))
    expected = [100 * np.mean([reward("precision", seed, step) for step in (0, 10, 10, 20)]) for seed in area.seeds]
    assert area.values == pytest.approx(expected)
    assert area.bounds == (0, 100)
    assert quantity(study, 'rl("precision", "gain")').values == pytest.approx(np.full(4, 40))
    assert quantity(study, 'rl("precision", "entropy_spent")').values == pytest.approx(np.full(4, 0.5))
    assert quantity(study, 'rl("precision", "entropy_price")').values == pytest.approx(np.full(4, 0.125))
    steps = [(0.6 - reward("ce", seed, 0)) / 0.02 for seed in area.seeds]
    assert quantity(study, 'rl("ce", "steps_to", reward=60)').values == pytest.approx(steps)
    assert quantity(study, 'rl("ce", "steps_to", reward=99)').values == pytest.approx(np.full(4, 20))


def test_a_claim_about_the_course_is_judged_and_is_a_family_of_its_own(make_store: Callable) -> None:
    graph, store = make_store(FOUR)
    without = read_study(graph, store)
    names = [claim.name for claim in applicable(read_claims(), StudySource(without))]
    assert len(names) == 6  # the ledgers have no held-out rewards, so our claims would all be missing
    source = StudySource(with_curves(graph, store))
    verdicts = {v.claim.name: v for v in judge(applicable(read_claims(), source), source)}
    assert verdicts["precision-learns-faster"].verdict == "supported"
    assert not {"tail-penalty-learns-faster", "beta-is-a-temperature"} & set(verdicts)
    # The six statements have the p-values that they have without the others.
    alone = {v.claim.name: v.p for v in judge(read_claims()[:6], source)}
    assert {name: verdicts[name].p for name in alone} == alone


@pytest.mark.parametrize(
    ("text", "message"),
    [('rl("ce", "steps_to") > 0', "needs a reward in percent"), ('rl("ce", "area", reward=3) > 0', "it has no reward")],
)
def test_a_reward_belongs_to_steps_to_it(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(text, "mine")


def test_a_run_that_never_gains_has_no_price(make_store: Callable) -> None:
    study = with_curves(*make_store(["objective=ce", "seed=1,2"]), lambda run, step: 0.5)
    (curves,) = rl_curves(study).values()
    with pytest.raises(NotMeasured, match="entropy_price"):
        sampled(curves, "entropy_price")
    assert sampled(curves, "gain").values.tolist() == [0, 0]


def test_deviation_over_problems_is_that_of_the_samples() -> None:
    """Rewards of many problems with known shares of right samples, against their standard deviation."""
    generator = np.random.default_rng(0)
    shares = generator.beta(2, 3, 20_000)
    right = generator.binomial(16, shares)
    pass_2 = 1 - (16 - right) * (15 - right) / (16 * 15)
    (deviation,) = reward_deviations(np.array([(right / 16).mean()]), np.array([pass_2.mean()]), samples=16)
    assert deviation == pytest.approx((right / 16).std(), rel=0.01)
    (worst,) = reward_deviations(np.array([0.5]), None, samples=1)
    assert worst == pytest.approx(0.5)


def test_long_ledgers_lose_nothing_that_measures_need(make_store: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 steps, of which every tenth has no update, held out every 37 steps; however few rows figures keep."""
    monkeypatch.setattr("analysis.study.CURVE_ROWS", 20)
    graph, store = make_store(["objective=ce"])
    (run,) = (run for run in graph.runs.values() if run.stage == "grpo")
    rows = [{"step": 0, "held_out_reward": 0.1}]
    for step in range(1, 501):
        updated = {} if step % 10 == 0 else {"entropy": 2 - step / 500, "response_length": float(step)}
        held_out = {"held_out_reward": 0.1 + step / 1000} if step % 37 == 0 else {}
        rows.append({"step": step, **updated, **held_out})
    folder = write_run(store, run)
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    publish(folder)
    ((curve,),) = rl_curves(read_study(graph, store)).values()
    assert curve.steps.tolist() == list(range(0, 500, 37))
    assert curve.rewards == pytest.approx(0.1 + np.arange(0, 500, 37) / 1000)
    first, last = [1, 2, 3, 4, 5], [495, 496, 497, 498, 499]
    assert curve.ends["response_length"] == (np.mean(first), np.mean(last))
    assert curve.ends["entropy"] == pytest.approx((2 - np.mean(first) / 500, 2 - np.mean(last) / 500))


def test_the_table_has_both_temperatures_and_the_course(make_store: Callable) -> None:
    study = with_curves(*make_store(FOUR))
    (table,) = [table for table in build_tables(study) if table.name == "learning-nano"]
    assert list(table.cells.index) == ["ce", "precision", "diversity"]
    row = table.cells.loc["precision"]
    values = {column: entry.value for column, entry in row.items() if isinstance(entry, Entry)}
    assert values["at temperature 1", "Avg before"] == pytest.approx(50, abs=1)
    assert values["at temperature 1", "Avg after"] == pytest.approx(90, abs=1)
    assert values["at temperature 1", "Pass@4 before"] == pytest.approx(100 * (1 - 0.5**4), abs=1)
    area = quantity(study, 'rl("precision", "area")').values.mean()
    assert values["over RL", "area"] == pytest.approx(area)
    assert row["over RL", "area"].n == 4
    assert row["entropy", "spent (nats)"].value == pytest.approx(0.5)
    benchmarks = [column for column in values if column[0] == "at temperature 0.7, benchmarks"]
    assert [name for _, name in benchmarks] == ["Avg@8 before", "Avg@8 after", "Pass@4 before", "Pass@4 after"]
    (plain,) = [table for table in build_tables(study) if table.number == 16]
    last = plain.cells.loc["precision"].iloc[-1]
    assert values[benchmarks[1]] == pytest.approx(last["average", "Avg@8"].value)
    assert "60 % is about half" in table.caption
    assert target_reward(rl_curves(study)["nano", "ce", ""]) == 60


def test_intervals_of_steps_end_at_the_last_step(make_store: Callable) -> None:
    """Two seeds that cross late have an interval beyond the run's 20 steps, which no step can be in."""

    def late(run: Any, step: int) -> float:
        crosses = {1: 0.012, 2: 0.02, 3: 0.015, 4: 0.03}[run.config["seed"]]
        return 0.4 + crosses * step

    study = with_curves(*make_store(FOUR), late)
    (table,) = [table for table in build_tables(study) if table.name == "learning-nano"]
    columns = [column for column in table.cells if column[1].startswith("steps to")]
    assert columns
    for column in columns:
        for entry in table.cells[column]:
            assert entry.low is not None
            assert 0 <= entry.low <= entry.value <= entry.high <= 20


def test_unfinished_runs_are_waited_for(make_store: Callable) -> None:
    graph, store = make_store(FOUR)
    assert "learning-nano" not in [table.name for table in build_tables(read_study(graph, store))]
    study = with_curves(graph, store)
    missing = next(run for run in graph.runs.values() if run.stage == "grpo" and run.labels["objective"] == "ce")
    shutil.rmtree(store.run("grpo", missing.signature).folder)
    (table,) = [table for table in build_tables(read_study(study.plan, store)) if table.name == "learning-nano"]
    assert table.cells.loc["ce"]["over RL", "area"].n == 3
    assert table.waits_for == [f"grpo/{missing.signature}"]


def test_every_measure_has_a_title_and_a_number(make_store: Callable) -> None:
    study = with_curves(*make_store(["objective=ce"]))
    ((curve,),) = rl_curves(study).values()
    for name, measure in MEASURES.items():
        assert measure.title
        assert np.isfinite(measure.of(curve, 60)) or name == "length_change"


def test_every_rl_run_is_a_row_with_its_setting_and_measures(make_store: Callable) -> None:
    runs = run_table(with_curves(*make_store([*FOUR, "grpo.seed=7,8"])))
    assert len(runs) == 3 * 4 * 2
    assert set(runs["rl_seed"]) == {7, 8}
    row = runs.query("objective == 'precision' and seed == 3 and rl_seed == 8").iloc[0]
    first, middle, last = (100 * reward("precision", 3, step) for step in (0, 10, 20))
    assert (row["scale"], row["model"], row["beta"], row["variant"]) == ("nano", "nano", -0.25, "")
    assert (row["held_out_before"], row["held_out_after"]) == (pytest.approx(first), pytest.approx(last))
    assert row["area"] == pytest.approx((first + 2 * middle + last) / 4)
    assert (row["gain"], row["entropy_spent"], row["entropy_price"]) == pytest.approx((40, 0.5, 0.125))
    assert np.isnan(row["length_change"])  # these ledgers have no lengths
    assert runs["stage_run"].is_unique


def test_runs_without_held_out_questions_are_rows_with_empty_cells(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"])
    for run in graph.runs.values():
        if run.stage == "grpo":
            folder = write_run(store, run)
            (folder / "ledger.jsonl").write_text("".join(f'{{"step": {i}, "entropy": {2 - i}}}\n' for i in (0, 1)))
            publish(folder)
    (row,) = run_table(read_study(graph, store)).to_dict("records")
    assert row["entropy_spent"] == 1
    assert all(pd.isna(row[name]) for name in ("held_out_before", "held_out_after", "area", "gain"))
    assert run_table(read_study(graph, None)).empty


TEMPERED = ["objective=ce,precision,diversity", "seed=1,2,3,4", "evaluation.controls={tempered:[grpo]}"]


def tempered_like(distance: float) -> Callable[[Any, int], float]:
    """Curves in which a tempered start learns as its setting does, but for a distance."""

    def of(run: Any, step: int) -> float:
        setting = str(run.control).partition(":")[2] if run.control else run.labels["objective"]
        return reward(setting, run.config["seed"], step) + (distance if run.control else 0.0)

    return of


@pytest.mark.parametrize(("distance", "verdict"), [(0.0, "supported"), (-0.2, "contradicted")])
def test_whether_beta_is_a_temperature_is_judged_by_rl_from_tempered_models(
    make_store: Callable, distance: float, verdict: str
) -> None:
    study = with_curves(*make_store(TEMPERED), tempered_like(distance))
    source = StudySource(study)
    verdicts = {v.claim.name: v.verdict for v in judge(applicable(read_claims(), source), source)}
    assert verdicts["beta-is-a-temperature"] == verdict
    assert verdicts["precision-learns-faster"] == "supported"  # ce's own curve is without those of the controls


def test_the_headline_has_no_reward_of_a_tempered_start(make_store: Callable) -> None:
    rewards = held_out_rewards(with_curves(*make_store(TEMPERED), tempered_like(-0.2)))
    assert set(rewards) == {("nano", "ce"), ("nano", "precision"), ("nano", "diversity")}
    assert rewards["nano", "ce"][20].values == pytest.approx([100 * reward("ce", seed, 20) for seed in (1, 2, 3, 4)])


def test_rl_from_tempered_models_has_rows_and_a_figure_of_its_own(make_store: Callable) -> None:
    graph, store = make_store(TEMPERED)
    study = with_curves(graph, store, tempered_like(-0.2))
    tables = {table.name: table for table in build_tables(study)}
    rows = tables["learning-nano"].cells
    assert list(rows.index) == [
        "ce",
        "precision",
        "diversity",
        "ce, tempered to precision",
        "ce, tempered to diversity",
    ]
    assert rows.loc["ce, tempered to precision"]["over RL", "area"].value == pytest.approx(
        rows.loc["precision"]["over RL", "area"].value - 20
    )
    # Its evaluations are a variant of ce, and leave ce's own numbers as they are.
    frame = study.measurements
    assert set(frame["variant"]) == {"", "tempered:precision", "tempered:diversity"}
    assert set(frame.loc[frame["variant"] != "", "objective"]) == {"ce"}
    of_rl = tables["table-16-nano"].cells
    assert ("ce, RL from it tempered", 20) in of_rl.index
    plain = {table.name: table for table in build_tables(with_curves(*make_store(TEMPERED[:2])))}
    assert str(tables["table-14-nano"].cells.loc["ce"].iloc[-1].tolist()) == str(
        plain["table-14-nano"].cells.loc["ce"].iloc[-1].tolist()
    )
    drawn = {chart.name: chart for chart in build_figures(study).charts}["tempered-nano"]
    assert len(drawn.panels) == 2
    data = drawn.data[drawn.data["setting"] == "precision"]
    assert set(data["objective"]) == {"precision", "ce", "ce, tempered to precision"}
    last = data[data["step"] == 20].set_index("objective")["mean"]
    assert last["precision"] - last["ce, tempered to precision"] == pytest.approx(20)


def held_out(seed: int, rl_seed: int, *rewards: float) -> RLCurve:
    """A curve over 10 steps, whose rewards deviate by 0.3 and 0.5 over 101 problems."""
    ends = {"entropy": (2.0, 0.5), "response_length": (20.0, 50.0)}
    steps, deviations = np.array([0.0, 10.0]), np.array([0.3, 0.5])
    return RLCurve(seed, rl_seed, "", ends, steps, np.array(rewards), deviations, problems=101)


def test_what_rl_does_to_entropy_and_length() -> None:
    curve = held_out(1, 1, 0.2, 0.5)
    measured = {name: measure.of(curve, 0.0) for name, measure in MEASURES.items()}
    assert measured["entropy_fall"] == pytest.approx(0.75)
    assert measured["length_change"] == pytest.approx(2.5)
    assert measured["entropy_spent"] == pytest.approx(1.5)
    assert measured["entropy_price"] == pytest.approx(1.5 / 3)  # for each ten points, of thirty
    assert measured["gain"] == pytest.approx(30)
    assert measured["area"] == pytest.approx(35)


def test_a_seed_with_several_rl_seeds_counts_once_with_their_mean() -> None:
    curves = [held_out(1, 1, 0.1, 0.2), held_out(1, 2, 0.1, 0.6), held_out(2, 1, 0.1, 0.9)]
    found = sampled(curves, "gain")
    assert (found.seeds, found.values.tolist()) == ((1, 2), pytest.approx([30, 80]))
    assert (found.parts, found.resolution, found.bounds[1]) == ((), 0.0, np.inf)


def test_the_error_over_problems_counts_where_there_is_one_seed() -> None:
    """It is the same for all steps and RL seeds of a seed, and cancels between seeds."""
    one = sampled([held_out(1, 1, 0.2, 0.4), held_out(1, 2, 0.4, 0.6)], "area")
    ((_, _, errors),) = one.parts
    assert errors == pytest.approx([100 * (0.3 + 0.5) / 2 / np.sqrt(101 - 1)])
    assert one.values == pytest.approx([40])
    assert (one.resolution, one.bounds) == (pytest.approx(100 / 101), (0.0, 100.0))
    ((_, _, errors),) = sampled([held_out(1, 1, 0.2, 0.4), held_out(2, 1, 0.4, 0.6)], "area").parts
    assert errors.tolist() == [0, 0]


def learning(study: Study) -> Any:
    (table,) = [table for table in build_tables(study) if table.name == "learning-nano"]
    return table.cells


def test_a_tempered_start_is_measured_by_the_matched_control_and_by_nothing_else(make_store: Callable) -> None:
    cells = learning(with_curves(*make_store(TEMPERED)))
    column = ("at temperature 0.7, benchmarks", "Avg@8 before")
    assert cells.loc["ce"][column].value is not None
    assert cells.loc["ce, tempered to precision"][column].value is None
    both = ["evaluation.controls={tempered:[grpo],matched:[midtrain]}"]
    graph, store = make_store([*TEMPERED[:2], *both])
    for run in graph.runs.values():
        if run.control == "matched:precision":
            write_run(store, run, lambda measured: 0.125)
    assert learning(with_curves(graph, store)).loc["ce, tempered to precision"][column].value == pytest.approx(12.5)


def test_a_control_that_is_missing_makes_no_setting_wait(make_store: Callable) -> None:
    graph, store = make_store(TEMPERED)
    study = with_curves(graph, store)
    assert set(study.curves["variant"]) == {""}
    assert set(study.ledgers["variant"]) == {"", "tempered:precision", "tempered:diversity"}
    lost = next(run for run in graph.runs.values() if run.stage == "grpo" and run.control == "tempered:precision")
    shutil.rmtree(store.run("grpo", lost.signature).folder)
    cells = learning(read_study(graph, store))
    assert cells.loc["ce"]["over RL", "area"].waits_for == ()
    assert cells.loc["ce, tempered to precision"]["over RL", "area"].waits_for == (f"grpo/{lost.signature}",)


def test_rewards_of_the_table_are_means_over_rl_seeds(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce", "seed=1,2", "grpo.seed=11,12,13"])
    own = {11: 0.1, 12: 0.2, 13: 0.6}
    study = with_curves(graph, store, lambda run, step: own[run.config["grpo"]["seed"]] + step / 100)
    row = learning(study).loc["ce"]
    for when, expected in (("before", 30), ("after", 50)):
        entry = row["at temperature 1", f"Avg {when}"]
        assert (entry.value, entry.n) == (pytest.approx(expected), 2)
