"""Two studies on one page: differences by hand, what differs in the configuration, and how a side is named."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from analysis.comparison import Side, compare, of_commit, resolve, sentence
from analysis.reproduce import Options, compare_sides
from analysis.study import Study, read_stored, read_study
from pipelines.errors import UserError
from pipelines.files import read_sealed, write_sealed
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import Measured, known, planned, write_run
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
