"""Which of the paper's tables shows what, as literals."""

from dataclasses import astuple
from typing import Any

import pytest

from analysis.paper_tables import TABLES, counterpart, is_same_measurement

SIZES = ("1B", "4B", "5B-A0.3B", "10B-A0.5B")
BETAS = ("precision", "ce", "diversity")
LAMBDAS = ("tail_penalty", "ce", "head_reward")


def test_every_table_shows_what_it_shows_in_the_paper() -> None:
    pretrained = {2 + i: ("pretrain", size, BETAS) for i, size in enumerate(SIZES)}
    pretrained |= {6 + i: ("pretrain", size, LAMBDAS) for i, size in enumerate(SIZES)}
    midtrained = {
        10: ("midtrain", "4B", BETAS),
        11: ("midtrain", "10B-A0.5B", BETAS),
        12: ("midtrain", "4B", LAMBDAS),
        13: ("midtrain", "10B-A0.5B", LAMBDAS),
    }
    after_rl = {
        14: ("grpo", "4B", ("ce",)),
        15: ("grpo", "10B-A0.5B", ("ce",)),
        16: ("grpo", "4B", ("precision",)),
        17: ("grpo", "4B", ("diversity",)),
        18: ("grpo", "10B-A0.5B", ("precision",)),
        19: ("grpo", "10B-A0.5B", ("diversity",)),
        20: ("grpo", "4B", ("tail_penalty",)),
        21: ("grpo", "4B", ("head_reward",)),
        22: ("grpo", "10B-A0.5B", ("tail_penalty",)),
        23: ("grpo", "10B-A0.5B", ("head_reward",)),
    }
    assert {number: astuple(table) for number, table in TABLES.items()} == pretrained | midtrained | after_rl


@pytest.mark.parametrize(
    ("model", "config", "role"),
    [
        ("1B", {"experts": 8}, "1B"),
        ("10B-A0.5B", {}, "10B-A0.5B"),
        ("nano", {}, "4B"),
        ("nano", {"experts": None}, "4B"),
        ("nano-moe", {"experts": 8}, "10B-A0.5B"),
    ],
)
def test_a_model_takes_the_place_of_the_papers_of_its_kind(model: str, config: dict[str, Any], role: str) -> None:
    assert counterpart(model, config) == role


@pytest.mark.parametrize(("tokens", "is_same"), [(500, True), (496, True), (494, False), (504, True), (506, False)])
def test_a_budget_is_the_papers_within_a_percent(tokens: float, *, is_same: bool) -> None:
    row = {"budget": "500B", "model": "4B", "stage": "pretrain", "benchmark": "MMLU", "metric": "score"}
    found = is_same_measurement(
        row, [("MMLU", "accuracy")], model="4B", scales={"paper"}, progress=round(tokens * 10**9)
    )
    assert found == is_same
