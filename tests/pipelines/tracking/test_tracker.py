"""Which tracked run shows a stage run, and what it is called."""

import math
from typing import Any

import pytest

from pipelines.tracking.tracker import cell_name, numbers, run_title, tracked_identity

LABELS: dict[str, Any] = {"model": "nano", "objective": "ce", "seed": 3}


def spec(stage: str, parent: str | None = None, **labels: Any) -> dict[str, Any]:
    above = {"stage": parent, "signature": "above"} if parent else None
    return {"stage": stage, "signature": "own", "parent": above, "labels": LABELS | labels}


@pytest.mark.parametrize(
    ("of", "identity", "title"),
    [
        (spec("pretrain"), ("pretrain", "own"), "pretrain nano/ce/seed3"),
        (spec("midtrain", "pretrain"), ("midtrain", "own"), "midtrain nano/ce/seed3"),
        (spec("evaluate", "grpo"), ("grpo", "above"), "grpo nano/ce/seed3"),
        (
            spec("grpo", "midtrain", control="tempered:diversity"),
            ("grpo", "own"),
            "grpo nano/ce/seed3 tempered:diversity",
        ),
        (spec("evaluate", "midtrain", control="matched:diversity"), ("midtrain", "above"), "midtrain nano/ce/seed3"),
    ],
)
def test_an_evaluation_is_on_the_run_that_it_measures(
    of: dict[str, Any], identity: tuple[str, str], title: str
) -> None:
    assert tracked_identity(of) == identity
    assert run_title(of) == title
    assert cell_name(of["labels"]) == "nano/ce/seed3"


def test_only_finite_numbers_are_drawn() -> None:
    assert numbers({"a": 1, "b": math.nan, "c": math.inf, "d": "x", "e": None, "f": 0.5}) == {"a": 1.0, "f": 0.5}
