"""Which stage runs a filter of `shaping-sweeps status` selects, and what is said about one that selects none."""

import pytest

from pipelines.errors import UserError
from sweeps.monitor.status import Row, select


def row(signature: str, stage: str, status: str, checkpoint: str | None = None, objective: str = "ce") -> Row:
    labels = {"objective": objective, "seed": 1, "sweep": "nano"}
    return Row(signature, stage, f"nano/{objective}/seed1", status, labels, None, checkpoint, sweeps=["mine"])


ROWS = [
    row("abcd1111", "pretrain", "done"),
    row("abce2222", "midtrain", "running"),
    row("ffff3333", "evaluate", "failed", "step-000195"),
    row("ffff4444", "evaluate", "done", "step-000390", "precision"),
]


@pytest.mark.parametrize(
    ("filters", "selected"),
    [
        ([], [0, 1, 2, 3]),
        (["status=done"], [0, 3]),
        (["status=running,failed"], [1, 2]),
        (["+objective=prec*"], [3]),
        (["objective=ce", "stage=evaluate"], [2]),
        (["sweep=mine"], [0, 1, 2, 3]),
        (["sweep=nano"], [0, 1, 2, 3]),
        (["sweep=other"], []),
        (["signature=abc*"], [0, 1]),
        (["checkpoint=step-000390"], [3]),
        (["abcd"], [0]),
        (["abc"], []),  # too short for a signature
        (["ffff"], [2, 3]),
        (["nano/*"], [0, 1, 2, 3]),
        (["nano/ce/seed1:evaluate"], [2]),
        (["nano/*/seed1:evaluate@*390"], [3]),
        (["nano/*:pretrain"], [0]),
    ],
)
def test_filters_select(filters: list[str], selected: list[int]) -> None:
    assert select(ROWS, filters) == [ROWS[index] for index in selected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("status=dome", r"^status=dome: unknown status; did you mean 'done'"),
        ("status=done,dome", r"^status=dome: unknown status"),
        ("objctive=ce", r"^objctive=ce: unknown key objctive; did you mean 'objective'"),
    ],
)
def test_an_unknown_word_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(ROWS, [text])


def test_titles_name_the_measured_checkpoint() -> None:
    assert [r.title for r in ROWS[1:3]] == ["nano/ce/seed1:midtrain", "nano/ce/seed1:evaluate@step-000195"]
    assert ROWS[2].to_json()["what"] == ROWS[2].title
