"""Two studies on one page: differences by hand, what differs in the configuration, and how a side is named."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from analysis.comparison import ComparedRow, Comparison, Side, compare, comparison_chart, of_commit, resolve, sentence
from analysis.headline import ENTROPY, Difference
from analysis.reproduce import Options, compare_sides
from analysis.statistics import Estimate
from analysis.study import Study, read_stored, read_study
from analysis.tables import Entry
from pipelines.errors import UserError
from pipelines.files import read_sealed, write_sealed
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import Measured, known, planned, write_run
from tests.analysis.test_learning import with_curves
from tests.published import publish

CELLS = ("objective=ce,precision", "seed=1,2,3,4,5")


def number(measured: Measured, shift: float = 0.0) -> float:
    noise = known(measured._replace(step=0)) / 1000
    return {"entropy": 3 + shift, "perplexity": 25.0}.get(measured.metric, 0.5) + noise


@pytest.fixture
def two(tmp_path: Path) -> tuple[Store, Store]:
    """Two stores of the same cells; in the second entropy is higher by 0.2 nats."""
    graph = planned(CELLS)
    stores = []
    for name, shift in (("a", 0.0), ("b", 0.2)):
        store = Store.create(tmp_path / name)
        for run in graph.runs.values():
            write_run(store, run, lambda measured, shift=shift: number(measured, shift))  # type: ignore[misc]
        stores.append(store)
    return stores[0], stores[1]


def test_differences_are_those_of_the_numbers(two: tuple[Store, Store]) -> None:
    compared = compare(*(Side(str(store.root), read_stored(store)) for store in two))
    by_measure = {(row.setting, row.measure.name): row for row in compared.rows}
    assert len(by_measure) == 8
    row = by_measure["precision", "entropy"]
    assert row.difference is not None
    assert row.difference.estimate.value == pytest.approx(0.2)
    assert row.difference.word == "higher"
    assert by_measure["ce", "perplexity"].difference.word == "not told apart"  # type: ignore[union-attr]
    assert sentence(compared).startswith("2 of 8 differences of ")
    assert compared.configuration == []
    assert compared.only == ([], [])


def test_the_configuration_of_two_sweeps_is_compared(make_store: Callable) -> None:
    studies = [read_study(*make_store([f"objective={name}", "seed=1"])) for name in ("ce", "ce,diversity")]
    compared = compare(Side("a", studies[0]), Side("b", studies[1]))
    keys = {key: (a, b) for key, a, b in compared.configuration}
    assert keys["pretrain objective.beta"] == ("0.0", "0.0, 0.5")
    assert compared.only == ([], ["diversity, nano"])


def test_a_side_is_a_store_a_sweep_or_a_commit(two: tuple[Store, Store], tmp_path: Path) -> None:
    first = two[0]
    for index, path in enumerate(sorted(first.root.glob("*/*/spec.json"))):
        spec = read_sealed(path)
        spec["environment"]["commit"] = "abc123" if index % 2 else "def456"
        write_sealed(path, spec)
        publish(path.parent)
    study = read_stored(first)

    def named(name: str) -> Study | None:
        return study if name == "nano" else None

    assert len(resolve(str(two[1].root), named, lambda: study).study.runs) == len(study.runs)
    assert resolve("nano", named, lambda: study).study is study
    part = resolve("abc", named, lambda: study).study
    assert 0 < len(part.runs) < len(study.runs)
    assert set(part.measurements["stage_run"]) <= set(part.runs["stage_run"])
    with pytest.raises(UserError, match=re.escape("compare=xyz: it is no named sweep, no folder of a store and no")):
        of_commit(study, "xyz")


def test_the_page_is_written_and_replaced(two: tuple[Store, Store], tmp_path: Path) -> None:
    options = Options(results=str(tmp_path / "results"), compare=[str(store.root) for store in two])
    for _ in range(2):
        folder = compare_sides(options, Console(quiet=True))
    text = (folder / "report.html").read_text()
    assert "2 of 8 differences" in text
    assert text.count("<svg") == 4
    assert "<script" not in text
    with pytest.raises(UserError, match=re.escape("compare=[a]: name two")):
        compare_sides(Options(compare=["a"]), Console(quiet=True))


def test_what_of_the_environment_may_change_a_result_is_compared(make_store: Callable) -> None:
    study = read_study(*make_store(["objective=ce"]))
    sides = []
    for version in ("1", "2"):
        environment = dict.fromkeys(("commit", "torch", "transformers", "cores", "host"), version)
        specs = {signature: spec | {"environment": environment} for signature, spec in study.specs.items()}
        sides.append(Side(version, replace(study, specs=specs)))
    assert compare(*sides).configuration == [
        (f"{stage} {name}", '"1"', '"2"')
        for stage in ("pretrain", "midtrain", "grpo", "evaluate")
        for name in ("commit", "torch", "transformers")
    ]


def test_of_many_values_of_a_key_the_first_six_are_shown() -> None:
    sides = [
        Side(name, read_study(planned(("objective=ce", f"seed={seeds}")), None))
        for name, seeds in (("seven", "1,2,3,4,5,6,7"), ("six", "1,2,3,4,5,6"))
    ]
    shown = {key: (a, b) for key, a, b in compare(*sides).configuration}
    assert shown["pretrain seed"] == ("1, 2, 3, 4, 5, 6, ...", "1, 2, 3, 4, 5, 6")


def row(setting: str, value: float, word: str) -> ComparedRow:
    difference = Difference(Estimate(value, value - 1, value + 1, 0.01, 5), (value,) * 5, (1, 2, 3, 4, 5), word)
    return ComparedRow("nano", setting, ENTROPY, Entry(1.0), Entry(2.0), difference)


def test_the_sentence_names_the_three_largest_differences() -> None:
    rows = [row("a", 1.0, "higher"), row("b", -4.0, "lower"), row("c", 3.0, "higher"), row("d", 2.0, "higher")]
    even = row("e", 9.0, "not told apart")
    sides: Any = (SimpleNamespace(name="old"), SimpleNamespace(name="new"))
    assert sentence(Comparison(sides, [*rows, even], [], ([], []))) == (
        "4 of 5 differences of new from old are significant: "
        "entropy after pre-training of b (−4.00 nats [−5.00, −3.00]); "
        "entropy after pre-training of c (+3.00 nats [+2.00, +4.00]); "
        "entropy after pre-training of d (+2.00 nats [+1.00, +3.00]), and 1 more."
    )
    assert sentence(Comparison(sides, [even], [], ([], []))) == (
        "None of 1 differences between new and old can be told apart from chance."
    )
    unpaired = replace(even, difference=None)
    assert sentence(Comparison(sides, [unpaired], [], ([], []))) == (
        "old and new have no setting with a seed in common that both measured."
    )


def test_rewards_are_not_compared_with_benchmarks(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce", "seed=1,2"])
    plain = read_study(graph, store)
    sides = Side("benchmarks", plain), Side("rewards", with_curves(graph, store, lambda run, step: 0.5))
    assert [row.measure.name for row in compare(*sides).rows] == ["entropy", "perplexity"]
    assert [row.measure.name for row in compare(sides[1], sides[1]).rows] == [
        "entropy", "perplexity", "before", "result"
    ]  # fmt: skip


def test_the_figure_names_the_units_of_its_differences(two: tuple[Store, Store]) -> None:
    sides = [Side(str(store.root), read_stored(store)) for store in two]
    assert [panel["title"] for panel in comparison_chart(compare(*sides)).panels] == [
        ["entropy", "difference (nats)"],
        ["perplexity", "difference"],
        ["before RL", "difference (points)"],
        ["after RL", "difference (points)"],
    ]
