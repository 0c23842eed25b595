"""What no value of a cell may be, named by its whole key."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from pipelines.configuration.bounds import LARGEST, check_bounds
from pipelines.errors import UserError

HALF = "a\udcff"
"""A text with a byte that is no UTF-8, as it comes from a command line."""


@dataclass
class Part:
    """A part of a cell, with values of every kind."""

    tokens: int = 5
    milestones: int = 4
    notes: list[Any] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cell:
    """What is checked; `store` and `sweep` are not."""

    store: str = f"folder/{HALF}"
    sweep: dict[str, str] = field(default_factory=lambda: {"name": HALF})
    seed: int = 2**63 - 1
    name: str = "müsli"
    pretrain: Part = field(default_factory=Part)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Cell(name=HALF), "name="),
        (Cell(pretrain=Part(notes=["b", HALF])), "pretrain.notes="),
        (Cell(pretrain=Part(weights={"b": HALF})), "pretrain.weights.b="),
        (Cell(pretrain=Part(weights={HALF: 1})), "pretrain.weights="),
        (Cell(seed=2**63), f"seed={2**63}: it may be at most 9,223,372,036,854,775,807"),
        (Cell(pretrain=Part(tokens=10**15 + 1)), "pretrain.tokens=1000000000000001: it may be at most 1,000,000,000,"),
        (Cell(pretrain=Part(milestones=10**4 + 1)), "pretrain.milestones=10001: it may be at most 10,000"),
    ],
)  # fmt: skip
def test_a_value_out_of_reach_is_named(cell: Cell, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_bounds(cell)
    assert str(error.value).startswith(message)
    if HALF in repr(cell.name) + str(cell.pretrain):
        assert "no UTF-8" in str(error.value)


def test_the_largest_values_and_paths_of_any_bytes_pass() -> None:
    check_bounds(Cell(pretrain=Part(tokens=10**15, milestones=10**4, notes=["é", 1.5, None, True])))


def test_the_largest_values_by_their_powers_of_ten() -> None:
    powers = {
        15: "tokens",
        10: "batch_tokens micro_batch_tokens",
        9: "warmup_steps extended_from_step",
        8: "sequence_length text_length max_new_tokens extended_max_new_tokens stage_max_new_tokens "
        "vocab_size top_k tasks_per_family items",
        7: "steps ffn",
        6: "d_model prompts samples pass_k",
        5: "heads kv_heads head_dim experts active_experts",
        4: "milestones layers",
    }
    named = {name: 10**power for power, names in powers.items() for name in names.split()}
    assert {"seed": 2**63 - 1, **named} == LARGEST
