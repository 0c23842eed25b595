"""Tables as text: the bytes of a small one in each format for reading."""

import pandas as pd
import pytest

from analysis.table_files import csv, html_table, latex, markdown
from analysis.tables import Entry, Table


@pytest.fixture
def small() -> Table:
    """Two settings at two checkpoints, of which one number is bold, one has fewer seeds and one is missing."""
    index = pd.MultiIndex.from_tuples(
        [("ce", 1_000), ("ce", 2_000_000), ("a_b", 1_000), ("a_b", 2_000_000)], names=["objective", "tokens"]
    )
    runs = {"stage_runs": ("x",)}
    numbers = [
        Entry(50.126, 49.0, 51.5, 3, **runs),  # type: ignore[arg-type]
        Entry(60.0, n=3, best=True, **runs),  # type: ignore[arg-type]
        Entry(40.0, n=2, **runs),  # type: ignore[arg-type]
        Entry(None, waits_for=("evaluate/0",)),
    ]
    cells = pd.DataFrame({("math", "A|B"): numbers, ("paper, 4B", "average"): ["", "43.11", "", ""]}, index=index)
    return Table("t", 3, "Title", "Caption.", cells, "m", "pretrain")


def test_markdown(small: Table) -> None:
    assert markdown(small).splitlines() == [
        "**Title.** Caption.",
        "",
        r"| objective | tokens | math A\|B | paper, 4B average |",
        "| --- | --- | --- | --- |",
        "| ce | 1,000 | 50.13 [49.00, 51.50] |  |",
        "| ce | 2,000,000 | **60.00** | 43.11 |",
        "| a_b | 1,000 | 40.00 (n = 2) |  |",
        "| a_b | 2,000,000 | not run |  |",
        "",
        "“not run” needs these stage runs:",
        "",
        "* `evaluate/0`",
    ]


def test_latex(small: Table) -> None:
    lines = latex(small).splitlines()
    begin = lines.index(r"\toprule")
    assert lines[begin - 1] == r"\begin{tabular}{llrr}"
    assert lines[begin:] == [
        r"\toprule",
        r" &  & \multicolumn{1}{c}{math} & \multicolumn{1}{c}{paper, 4B} \\",
        r"objective & tokens & A|B & average \\",
        r"\midrule",
        r"ce & 1,000 & 50.13 [49.00, 51.50] &  \\",
        r" & 2,000,000 & \textbf{60.00} & 43.11 \\",
        r"\addlinespace",
        r"a\_b & 1,000 & 40.00 (n = 2) &  \\",
        r" & 2,000,000 & not run &  \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


def test_csv_has_plain_numbers_and_seeds(small: Table) -> None:
    assert csv(small).decode().splitlines() == [
        'objective,tokens,math A|B,math A|B low,math A|B high,math A|B n,"paper, 4B average"',
        "ce,1000,50.126,49.0,51.5,3,",
        "ce,2000000,60.0,,,3,43.11",
        "a_b,1000,40.0,,,2,",
        "a_b,2000000,,,,0,",
    ]


def test_html(small: Table) -> None:
    rows = html_table(small).split("<tr>")[2:]
    assert rows[1].startswith('<th scope="row">ce</th><th scope="row">2,000,000</th><td><strong>60.00</strong></td>')
    assert rows[2].count("<strong>") == 0
    assert "<td>40.00 (n = 2)</td>" in rows[2]


@pytest.mark.parametrize(("counts", "usual"), [((3, 3, 5), 3), ((5, 3, 5), 5), ((5, 3), 3), ((), 0)])
def test_the_usual_number_of_seeds_is_the_most_frequent(counts: tuple[int, ...], usual: int) -> None:
    entries = [Entry(1.0, n=n, stage_runs=("x",)) for n in counts] + [Entry(None), Entry(1.0, n=9)]
    cells = pd.DataFrame({("", "a"): entries}, index=pd.Index(range(len(entries)), name="row"))
    assert Table("t", 3, "T", "", cells).usual_n == usual
