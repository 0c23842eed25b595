"""The tables as the page shows them: what hides differences in one."""

import pandas as pd
import pytest

from analysis.page.table_views import table_view
from analysis.tables import Entry, Table


def table(values: dict[tuple[str, str], list[float]], stage: str | None = "pretrain") -> Table:
    """A table of ce at two checkpoints: column -> its two values."""
    index = pd.MultiIndex.from_tuples([("ce", 100), ("ce", 200)], names=["objective", "tokens"])
    cells = pd.DataFrame({column: [Entry(v, n=1) for v in two] for column, two in values.items()}, index=index)
    cells.columns = pd.MultiIndex.from_tuples(list(values))
    return Table("t", 3, "t", "", cells, "m", stage)


@pytest.mark.parametrize(
    ("values", "stage", "cautions"),
    [
        # The last checkpoint counts, and text and the paper's numbers do not.
        ({("math", "A"): [10, 95], ("math", "B"): [10, 30]}, "pretrain", ["Saturated: 1 of 2 numbers"]),
        ({("math", "A"): [99, 94], ("math", "B"): [99, 30]}, "pretrain", []),
        ({("math", "A"): [99, 96], ("math", "B"): [9, 30], ("code", "C"): [9, 30]}, "pretrain", []),
        ({("math", "A"): [10, 30], ("text", "head"): [99, 99], ("paper", "A"): [99, 99]}, "pretrain", []),
        ({("math", "A"): [10, 99], ("text", "head"): [9, 9], ("ours", "A"): [9, 9]}, "pretrain", ["Saturated: 1 of 1"]),
        ({("math", "A"): [10, 99]}, None, []),
    ],
)
def test_a_table_at_the_ceiling_says_so(
    values: dict[tuple[str, str], list[float]], stage: str | None, cautions: list[str]
) -> None:
    found = table_view(table(values, stage), {}, {})["cautions"]
    assert len(found) == len(cautions)
    assert all(
        text.startswith(start) and text.endswith("95 % or more.") for text, start in zip(found, cautions, strict=True)
    )


def test_earlier_checkpoints_are_marked_but_not_the_model_before_rl() -> None:
    rows = table_view(table({("math", "A"): [1, 2]}), {}, {})["rows"]
    assert [(row["objective"], row["is_earlier"], row["is_repeated"]) for row in rows] == [
        ("ce", True, False),
        ("ce", False, True),
    ]
    before = table({("math", "A"): [1, 2]}, "grpo")
    before.cells.index = pd.MultiIndex.from_tuples([("ce", 0), ("ce", 20)], names=["objective", "step"])
    assert [row["is_earlier"] for row in table_view(before, {}, {})["rows"]] == [False, False]
