"""Tables from a store with known numbers: every number in its cell, averages and intervals computed independently."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.measurement_grid import build_grid
from analysis.paper_tables import BENCHMARKS, RL_BENCHMARKS, TABLES, benchmark_order, is_same_measurement
from analysis.reference import MODELS, reference
from analysis.study import read_study
from analysis.table_builder import build_tables
from analysis.tables import DIFFERENCE, Entry, Table
from sweeps.compose.cells import compose_cells
from sweeps.plan.graph import Plan
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import Measured, known, write_run

NUMBERS = {("pretrain", "beta"): 3, ("pretrain", "lambda"): 7, ("midtrain", "beta"): 10, ("midtrain", "lambda"): 12}

SCORES = {
    ("knowledge", "Modules accuracy"): ("Modules", "accuracy"),
    ("commonsense", "Continuations accuracy"): ("Continuations", "accuracy"),
    ("logic", "Boolean Avg@8"): ("Boolean", "avg@8"),
    ("logic", "Order Avg@8"): ("Order", "avg@8"),
    ("math", "Chain-3 Pass@4"): ("Chain-3", "pass@4"),
    ("math", "Chain-4 Pass@4"): ("Chain-4", "pass@4"),
    ("math", "Chain-5 Pass@4"): ("Chain-5", "pass@4"),
    ("code", "Python Pass@4"): ("Python", "pass@4"),
}


def tables_of(graph: object, store: object) -> dict[str, Table]:
    return {table.name: table for table in build_tables(read_study(graph, store))}  # type: ignore[arg-type]


def test_settings_are_in_the_papers_families(make_store: Callable) -> None:
    assert list(tables_of(*make_store(["+sweep=nano"]))) == [
        "table-01",
        *(f"table-{number:02d}-nano" for number in (3, 7, 10, 12, 14, 16, 17, 20, 21)),
        "theory-nano",
    ]


def test_architecture(make_store: Callable) -> None:
    (row,) = tables_of(*make_store(["objective=ce"]))["table-01"].text().to_dict("records")
    assert row["layers"] == "3"
    assert row["parameters"] == "366,384"


def test_every_base_model_number_is_in_its_cell(make_store: Callable) -> None:
    graph, store = make_store(["+sweep=nano"])
    tables = tables_of(graph, store)
    for stage, batch in (("pretrain", 1024), ("midtrain", 1024)):
        for family, settings in (
            ("beta", ["precision", "ce", "diversity"]),
            ("lambda", ["tail_penalty", "ce", "head_reward"]),
        ):
            cells = tables[f"table-{NUMBERS[stage, family]:02d}-nano"].cells
            assert list(dict.fromkeys(cells.index.get_level_values("objective"))) == settings
            for (objective, tokens), row in cells.iterrows():  # type: ignore[misc]
                checkpoint = (objective, 1, stage, tokens // batch)
                expected = {column: 100 * known(Measured(*checkpoint, *score)) for column, score in SCORES.items()}
                for column, number in expected.items():
                    assert row[column].value == pytest.approx(number)
                assert row["", "average"].value == pytest.approx(statistics.fmean(expected.values()))
                assert row["text", "perplexity"].value == pytest.approx(
                    known(Measured(*checkpoint, "Docstrings", "perplexity"))
                )
                assert row["text", "entropy"].n == 1


def test_rl_starts_from_the_mid_trained_model(make_store: Callable) -> None:
    graph, store = make_store(["+sweep=nano"])
    last = next(run for run in graph.runs.values() if run.stage == "midtrain").steps
    cells = tables_of(graph, store)["table-17-nano"].cells.loc["diversity"]
    assert list(cells.index) == [0, 10, 20]
    for step, checkpoint in ((0, ("midtrain", last)), (10, ("grpo", 10)), (20, ("grpo", 20))):
        values = []
        for name in ("Chain-3", "Chain-4", "Chain-5"):
            number = 100 * known(Measured("diversity", 1, *checkpoint, name, "cons@8"))
            assert cells.loc[step, (name, "Cons@8")].value == pytest.approx(number)
            values.append(number)
        assert cells.loc[step, ("average", "Cons@8")].value == pytest.approx(statistics.fmean(values))


def test_several_seeds_give_a_mean_and_an_interval(make_store: Callable) -> None:
    tables = tables_of(*make_store(["objective=ce", "seed=1,2,3"]))
    table = tables["table-14-nano"]
    entry = table.cells.loc[("ce", 20), ("Chain-4", "Avg@8")]
    values = [100 * known(Measured("ce", seed, "grpo", 20, "Chain-4", "avg@8")) for seed in (1, 2, 3)]
    assert entry.value == pytest.approx(statistics.fmean(values))
    # Wilson's interval by the roots of its equation, with Student's quantile.
    mean = statistics.fmean(values) / 100
    variance = (statistics.variance(values) / 100**2 + 1 / 64**2) / 3
    trials = mean * (1 - mean) / variance
    quantile = stats.t.ppf(0.975, 2)
    roots = np.roots([1 + quantile**2 / trials, -(2 * mean + quantile**2 / trials), mean**2])
    assert (entry.low, entry.high) == pytest.approx(tuple(sorted(100 * roots)))
    assert len(entry.stage_runs) == 3
    assert "3 seeds" in table.caption
    assert str(entry) == f"{entry.value:.2f} [{entry.low:.2f}, {entry.high:.2f}]"


@pytest.mark.parametrize("arguments", [("seed=1",), ("seed=1,2,3,4,5",)])
@pytest.mark.parametrize("level", [0.0, 0.5, 0.97, 1.0])
def test_every_percentage_has_an_interval_within_its_range(
    make_store: Callable, level: float, arguments: tuple[str, ...]
) -> None:
    """At the ends too, and for seeds that are all equal; for perplexity and entropy, on the positive side."""

    def number(measured: Measured) -> float:
        if measured.benchmark == "Docstrings":
            return 1e-3 + 30 * known(measured)
        return level if measured.benchmark != "Chain-4" else round(known(measured))

    for table in tables_of(*make_store(["objective=ce,precision", *arguments], number=number)).values():
        for column, entry in ((c, e) for _, row in table.rows for c, e in zip(table.columns, row, strict=True)):
            if isinstance(entry, Entry):
                assert entry.low is not None
                assert entry.high is not None
                assert entry.low <= entry.value <= entry.high  # type: ignore[operator]
                assert entry.low < entry.high
                assert entry.low >= 0 or column[1] == "measured - predicted"
                assert entry.high <= 100 or column[0] == "text" or table.name.startswith("theory")


def test_captions_mention_a_single_seed(make_store: Callable) -> None:
    for name, table in tables_of(*make_store(["objective=ce"])).items():
        assert name == "table-01" or "One seed;" in table.caption


def test_missing_numbers_are_shown_as_missing(make_store: Callable) -> None:
    def last_rl(run: object) -> bool:
        return run.stage == "evaluate" and run.checkpoint == "step-000020"  # type: ignore[attr-defined]

    graph, store = make_store(["objective=ce"], leave_out=last_rl)
    table = tables_of(graph, store)["table-14-nano"]
    (unfinished,) = [run.signature for run in graph.runs.values() if last_rl(run)]
    assert table.waits_for == [f"evaluate/{unfinished}"]
    assert table.missing == 12
    assert set(table.text().loc[("ce", 20)]) - {"50.99"} == {"not run"}
    assert "not run" not in set(table.text().loc[("ce", 10)])
    empty = tables_of(*make_store(["objective=precision", "seed=9"], leave_out=lambda run: True))
    assert set(empty["table-03-nano"].text()["average"]) == {"not run"}
    assert "Nothing measured yet" in empty["table-16-nano"].caption


def test_an_average_needs_all_its_parts(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"])
    study = read_study(graph, store)
    pretrained = study.measurements[study.measurements["stage"] == "pretrain"]
    dropped = (study.measurements["benchmark"] == "Python") & (
        study.measurements["tokens"] == pretrained["tokens"].min()
    )
    partial = replace(study, measurements=study.measurements[~dropped])
    cells = {t.name: t for t in build_tables(partial)}["table-03-nano"].cells
    first = cells.iloc[0]
    last = cells.iloc[-1]
    assert last["", "average"].value is not None
    assert first["code", "Python Pass@4"].value is None
    assert first["", "average"].value is None


def test_settings_outside_the_paper_get_separate_tables(make_store: Callable) -> None:
    tables = tables_of(*make_store(["objective.beta=0.0,0.25"]))
    assert list(tables["pretrain-other-nano"].cells.index.get_level_values(0).unique()) == ["beta=0.25"]
    assert "grpo-beta=0.25-nano" in tables


def test_entries_as_text() -> None:
    assert str(Entry(12.346)) == "12.35"
    assert str(Entry(50.0, 48.5, 51.504)) == "50.00 [48.50, 51.50]"
    assert str(Entry(0.294, -0.1, 0.6, number_format="{:+.2f}")) == "+0.29 [-0.10, +0.60]"
    assert str(Entry(None)) == "not measured"
    assert str(Entry(None, waits_for=("evaluate/0",))) == "not run"


def test_the_papers_number_is_next_to_ours(make_store: Callable) -> None:
    tables = tables_of(*make_store(["+sweep=nano"]))
    last = tables["table-03-nano"].cells.loc["precision"].iloc[-1]
    assert last["paper, 4B", "average"] == "43.11"
    rl = tables["table-20-nano"].cells.loc["tail_penalty"].iloc[-1]
    assert rl["paper, 4B", "average Pass@64"] == "51.18"
    assert not any(group == DIFFERENCE for table in tables.values() for group, _ in table.columns)
    assert "compare the pattern with ours, not the values" in tables["table-20-nano"].caption


def rl_at_paper_scale(tmp_path: Path, *, scale: str, steps: int, model: str, metric: str) -> Table:
    """The table of a 4B's RL from ce with the paper's six benchmarks, each at 60 percent."""
    cells = compose_cells(["objective=ce", f"grpo.steps={steps}", f"scale={scale}", "grpo.extended_from_step=null"])
    graph = plan(replace(cell, model=replace(cell.model, name=model)) for cell in cells)
    store = Store.create(tmp_path / "store")
    row = {"group": "math", "metric": metric, "value": 0.6, "stderr": 0.01, "n": 100}
    for run in graph.runs.values():
        extra = {"measurements": [{**row, "benchmark": name} for name in RL_BENCHMARKS]}
        write_run(store, run, **(extra if run.stage == "evaluate" else {}))
    return next(table for table in build_tables(read_study(graph, store)) if table.number == 14)


def test_a_difference_is_shown_for_the_papers_own_measurement(tmp_path: Path) -> None:
    table = rl_at_paper_scale(tmp_path, scale="paper", steps=1000, model="4B", metric="pass@64")
    row = table.cells.loc["ce"].iloc[-1]
    difference, ours = row[DIFFERENCE, "average Pass@64"], row["average", "Pass@64"]
    assert difference.value == pytest.approx(60 - 50.99)
    assert (difference.low, difference.high) == pytest.approx((ours.low - 50.99, ours.high - 50.99))
    assert "compare the pattern" not in table.caption
    assert list(table.cells.loc["ce"][DIFFERENCE, "average Pass@64"])[:-1] == [""] * (len(table.cells.loc["ce"]) - 1)


@pytest.mark.parametrize(
    "change", [{"scale": "nano"}, {"steps": 20}, {"model": "nano"}, {"metric": "pass@4"}, {"metric": "avg@64"}]
)
def test_a_difference_from_another_measurement_is_not_shown(tmp_path: Path, change: dict[str, Any]) -> None:
    same: dict[str, Any] = {"scale": "paper", "steps": 1000, "model": "4B", "metric": "pass@64"}
    table = rl_at_paper_scale(tmp_path, **{**same, **change})
    assert DIFFERENCE not in dict(table.columns)
    assert "compare the pattern" in table.caption


def test_every_reported_number_has_the_measurement_that_equals_it() -> None:
    """And no measurement with another model, budget, scale, set of benchmarks or metric does."""
    for row in reference().to_dict("records"):
        names = RL_BENCHMARKS if row["stage"] == "grpo" else BENCHMARKS
        names = names if row["benchmark"] == "average" else (row["benchmark"],)
        sampled = {"GSM8K", "MATH-500", "Minerva", "OlympiadBench", "HumanEval+", "MBPP+"}
        pairs = [
            (name, "pass@64" if row["stage"] == "grpo" or name in sampled else "accuracy") for name in reversed(names)
        ]
        progress = {"500B": 500_000_000_000, "100B": 100_000_000_000, "step 1000": 1000}[row["budget"]]
        facts = {"model": row["model"], "scales": {"paper"}, "progress": progress}
        assert is_same_measurement(row, pairs, **facts)
        assert not is_same_measurement(row, pairs[:-1], **facts)
        assert not is_same_measurement(row, [*pairs, ("Extra", "accuracy")], **facts)
        assert not is_same_measurement(row, [(name, "avg@128") for name, _ in pairs], **facts)
        for change in ({"model": "1B"}, {"scales": {"nano"}}, {"scales": {"nano", "paper"}}, {"progress": 20}):
            assert not is_same_measurement(row, pairs, **{**facts, **change})


def paper_plan() -> Plan:
    """The five settings on the paper's four models by name, at nano's budgets."""
    named = compose_cells(["+sweep=nano"])
    models = [replace(cell, model=replace(cell.model, name=name)) for name in MODELS for cell in named]
    # names are not in signatures, so each model gets another width
    return plan(
        replace(cell, model=replace(cell.model, ffn=256 + 32 * MODELS.index(cell.model.name))) for cell in models
    )


def test_all_23_tables_at_paper_scale(tmp_path: Path) -> None:
    graph, store = paper_plan(), Store.create(tmp_path / "store")
    tables = {t.number: t for t in build_tables(read_study(graph, store))}
    paper_rl = {"4B", "10B-A0.5B"}
    assert set(range(1, 24)) <= set(tables)
    for number, paper_table in TABLES.items():
        assert tables[number].model == paper_table.model
        assert tables[number].stage == paper_table.stage
    assert {tables[n].model for n in range(14, 24)} == paper_rl
    only = build_tables(read_study(graph, store), numbers=[3, 15], models=["4B"])
    assert [t.number for t in only] == [3]


def test_every_reference_number_is_in_its_table(tmp_path: Path) -> None:
    tables = {t.number: t for t in build_tables(read_study(paper_plan(), Store.create(tmp_path / "store")))}
    for row in reference().to_dict("records"):
        if row["benchmark"] == "average":
            shown = {c for c in tables[row["table"]].cells.to_numpy().ravel() if isinstance(c, str)}
            assert f"{row['value']:.2f}" in shown, row
    assert set(reference()["source"].str.extract(r"Table (\d+)$")[0].astype(int)) == set(reference()["table"])


def test_benchmarks_are_in_the_papers_order() -> None:
    assert benchmark_order(["MBPP+", "Custom", "GSM8K", "MMLU"], "pretrain") == ["MMLU", "GSM8K", "MBPP+", "Custom"]
    assert benchmark_order(["Minerva", "AMC23"], "grpo") == ["AMC23", "Minerva"]


def test_bold_is_significant_against_every_other_setting(make_store: Callable) -> None:
    def number(measured: Measured) -> float:
        key = [measured.seed, len(measured.objective), len(measured.benchmark)]
        noise = np.random.default_rng(key).normal(0, 0.001)
        # Two settings are better than all others in one benchmark, by about the same: neither beats every rival.
        better = {"Modules": ("precision",), "Continuations": ("precision", "diversity")}
        return 0.5 + noise + 0.2 * (measured.objective in better.get(measured.benchmark, ()))

    tables = tables_of(*make_store(["+sweep=nano", "seed=1,2,3,4,5"], number=number))
    table = tables["table-03-nano"]
    bold = {
        (key[0], name)
        for key, row in table.cells.iterrows()
        for name, cell in row.items()
        if isinstance(cell, Entry) and cell.best
    }
    assert ("precision", ("knowledge", "Modules accuracy")) in bold
    assert {objective for objective, (group, _) in bold if group == "knowledge"} == {"precision"}
    assert ("commonsense", "Continuations accuracy") in table.columns
    assert not [objective for objective, (group, _) in bold if group == "commonsense"]
    assert "Holm" in table.caption
    one_seed = tables_of(*make_store(["+sweep=nano"], number=number))["table-03-nano"]
    assert not any(entry.best for entry in one_seed.entries)


def bold_cells(tables: Iterable[Table]) -> list[tuple[str, Any]]:
    return [
        (key[0], column)
        for table in tables
        for key, row in table.rows
        for column, cell in zip(table.columns, row, strict=True)
        if isinstance(cell, Entry) and cell.best
    ]


@pytest.mark.parametrize("seeds", ["1,2", "1,2,3", "1,2,3,4,5"])
def test_ceilings_and_equal_differences_are_not_bold(make_store: Callable, seeds: str) -> None:
    """One of 64 problems between settings in every seed, at the ceiling and in the middle."""

    def number(measured: Measured) -> float:
        level = 1.0 if measured.benchmark.startswith("Chain") else 0.5
        return level - (0 if measured.objective == "precision" else 1 / 64)

    tables = tables_of(*make_store(["+sweep=nano", f"seed={seeds}"], number=number))
    bold = bold_cells(tables.values())
    # An average of eight benchmarks in five seeds is one problem better in all forty of them, which is something.
    assert {column for _, column in bold} <= ({("", "average")} if seeds == "1,2,3,4,5" else set())


def test_missing_seeds_are_shown(make_store: Callable) -> None:
    graph, store = make_store(
        ["objective=ce", "seed=1,2,3"],
        leave_out=lambda run: run.stage == "evaluate" and run.config["seed"] == 2 and run.checkpoint == "step-000020",
    )
    table = tables_of(graph, store)["table-14-nano"]
    entry = table.cells.loc[("ce", 20), ("Chain-4", "Avg@8")]
    assert (entry.n, len(entry.waits_for)) == (2, 1)
    assert "(n = 2)" in table.text().loc[("ce", 20), "Chain-4 Avg@8"]
    assert "2 to 3 seeds" in table.caption


def test_the_temperature_control_has_rows_or_is_named_as_missing(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce,precision"], leave_out=lambda run: run.control)
    table = tables_of(graph, store)["table-16-nano"]
    assert "no evaluation variant matched:precision of ce" in table.caption
    for run in graph.runs.values():
        if run.control:
            write_run(store, run, lambda measured: 0.25)
    table = tables_of(graph, store)["table-16-nano"]
    assert table.cells.loc[("ce, entropy matched", 0), ("Chain-3", "Avg@8")].value == 25.0
    assert "control is missing" not in table.caption


def test_repeated_measurements_are_averaged_within_their_seed(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"])
    study = read_study(graph, store)
    again = study.measurements.assign(value=study.measurements["value"] + 0.5)
    both = replace(study, measurements=pd.concat([study.measurements, again], ignore_index=True))
    single, double = (build_grid(s) for s in (study, both))
    assert double.values == pytest.approx(single.values + 0.25)
