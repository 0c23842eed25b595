"""Tables from a hand-made store: each number in its place, averages and intervals by an independent road."""

import statistics
from collections.abc import Callable

import pytest
from scipy import stats

from analysis.frames import MEASUREMENTS, read_study
from analysis.tables import Entry, Table, build_tables
from pipelines.errors import UserError
from tests.analysis.conftest import known

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


def test_the_families_are_the_papers(make_store: Callable) -> None:
    assert list(tables_of(*make_store(["+sweep=nano"]))) == [
        "architecture",
        "pretrain-beta-nano",
        "pretrain-lambda-nano",
        "midtrain-beta-nano",
        "midtrain-lambda-nano",
        *(f"grpo-{name}-nano" for name in ("ce", "precision", "diversity", "tail_penalty", "head_reward")),
    ]


def test_architecture(make_store: Callable) -> None:
    (row,) = tables_of(*make_store(["objective=ce"]))["architecture"].text().to_dict("records")
    assert row["layers"] == "3"
    assert row["parameters"] == "366,384"


def test_every_base_model_number_is_in_its_place(make_store: Callable) -> None:
    graph, store = make_store(["+sweep=nano"])
    tables = tables_of(graph, store)
    for stage, batch in (("pretrain", 1024), ("midtrain", 512)):
        for family, settings in (
            ("beta", ["precision", "ce", "diversity"]),
            ("lambda", ["tail_penalty", "ce", "head_reward"]),
        ):
            cells = tables[f"{stage}-{family}-nano"].cells
            assert list(dict.fromkeys(cells.index.get_level_values("objective"))) == settings
            for (objective, tokens), row in cells.iterrows():  # type: ignore[misc]
                place = (objective, 1, stage, tokens // batch)
                expected = {column: 100 * known(*place, *score) for column, score in SCORES.items()}
                for column, number in expected.items():
                    assert row[column].value == pytest.approx(number)
                assert row["", "average"].value == pytest.approx(statistics.fmean(expected.values()))
                assert row["text", "perplexity"].value == pytest.approx(known(*place, "Docstrings", "perplexity"))
                assert row["text", "entropy"].interval is None


def test_rl_starts_from_the_mid_trained_model(make_store: Callable) -> None:
    graph, store = make_store(["+sweep=nano"])
    last = next(run for run in graph.runs.values() if run.stage == "midtrain").steps
    cells = tables_of(graph, store)["grpo-diversity-nano"].cells
    assert list(cells.index) == [0, 10, 20]
    for step, place in ((0, ("midtrain", last)), (10, ("grpo", 10)), (20, ("grpo", 20))):
        values = []
        for name in ("Chain-3", "Chain-4", "Chain-5"):
            number = 100 * known("diversity", 1, *place, name, "cons@8")
            assert cells.loc[step, (name, "Cons@8")].value == pytest.approx(number)
            values.append(number)
        assert cells.loc[step, ("average", "Cons@8")].value == pytest.approx(statistics.fmean(values))


def test_several_seeds_are_a_mean_and_an_interval(make_store: Callable) -> None:
    tables = tables_of(*make_store(["objective=ce", "seed=1,2,3"]))
    table = tables["grpo-ce-nano"]
    entry = table.cells.loc[20, ("Chain-4", "Avg@8")]
    values = [100 * known("ce", seed, "grpo", 20, "Chain-4", "avg@8") for seed in (1, 2, 3)]
    assert entry.value == pytest.approx(statistics.fmean(values))
    low, high = stats.t.interval(0.95, 2, loc=statistics.fmean(values), scale=stats.sem(values))
    assert entry.interval == pytest.approx((high - low) / 2)
    assert len(entry.stage_runs) == 3
    assert "3 seeds" in table.caption
    assert " ± " in str(entry)


def test_one_seed_is_said(make_store: Callable) -> None:
    for name, table in tables_of(*make_store(["objective=ce"])).items():
        assert name == "architecture" or "One seed." in table.caption


def test_what_is_missing_is_shown_as_missing(make_store: Callable) -> None:
    def last_rl(run: object) -> bool:
        return run.stage == "evaluate" and run.checkpoint == "step-000020"  # type: ignore[attr-defined]

    tables = tables_of(*make_store(["objective=ce"], leave_out=last_rl))
    table = tables["grpo-ce-nano"]
    assert table.missing == 12
    assert set(table.text().loc[20]) == {"–"}
    assert "–" not in set(table.text().loc[10])
    empty = tables_of(*make_store(["objective=precision", "seed=9"], leave_out=lambda run: True))
    assert set(empty["pretrain-beta-nano"].text().to_numpy().ravel()) == {"–"}
    assert "Nothing measured yet" in empty["grpo-precision-nano"].caption


def test_an_average_needs_all_its_parts(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"])
    study = read_study(graph, store)
    study.measurements.drop(study.measurements[study.measurements["benchmark"] == "Python"].index[:3], inplace=True)
    cells = {t.name: t for t in build_tables(study)}["pretrain-beta-nano"].cells
    first = cells.iloc[0]
    assert first["code", "Python Pass@4"] is None
    assert first["", "average"] is None


def test_other_settings_get_tables_of_their_own(make_store: Callable) -> None:
    tables = tables_of(*make_store(["objective.beta=0.0,0.25"]))
    assert list(tables["pretrain-other-nano"].cells.index.get_level_values(0).unique()) == ["beta=0.25"]
    assert "grpo-beta=0.25-nano" in tables


def test_the_tidy_frame(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce,tail_penalty"])
    frame = read_study(graph, store).measurements
    assert list(frame.columns) == MEASUREMENTS
    assert set(frame["objective"]) == {"ce", "tail_penalty"}
    row = frame[
        (frame["objective"] == "tail_penalty") & (frame["benchmark"] == "Modules") & (frame["stage"] == "midtrain")
    ].iloc[-1]
    assert (row["lam_tail"], row["top_k"], row["stage"], row["step"]) == (-0.1, 16, "midtrain", 360_000 // 512)
    assert row["tokens"] == 360_000 // 512 * 512
    assert row["stage_run"] in graph.runs
    assert frame.loc[frame["objective"] == "ce", "top_k"].isna().all()


def test_a_corrupt_ledger_line_is_named(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"])
    (ledger,) = store.root.glob("grpo/*/ledger.jsonl")
    ledger.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"ledger\.jsonl: line 2"):
        read_study(graph, store)


def test_numbers_read_well() -> None:
    assert str(Entry(12.346, None, ())) == "12.35"
    assert str(Entry(50.0, 1.5, ())) == "50.00 ± 1.50"
