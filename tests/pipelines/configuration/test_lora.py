"""Adapters: what is multiplied, and which values are refused with which way out."""

from typing import Any

import pytest

from pipelines.configuration.lora import LoRAConfig
from pipelines.errors import UserError


def test_alpha_is_twice_the_rank_unless_it_is_set() -> None:
    assert (LoRAConfig(rank=8).scale, LoRAConfig(rank=8, alpha=4.0).scale) == (16.0, 4.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": -1}, "grpo.lora.rank=-1: it must be 0 or more"),
        ({"alpha": 4.0}, "grpo.lora.alpha=4.0: without adapters it has no effect; set grpo.lora.rank, or leave it out"),
        ({"rank": 4, "alpha": 0.0}, "grpo.lora.alpha=0.0: it must be above 0, or null"),
        ({"rank": 4, "alpha": -1.0}, "grpo.lora.alpha=-1.0: it must be above 0, or null"),
        (
            {"rank": 4, "targets": ["q_proj", "lm_head"]},
            "grpo.lora.targets=['q_proj', 'lm_head']: an adapter on the output layer or the embedding is not "
            "supported; name linear layers inside",
        ),
    ],
)
def test_an_impossible_value_is_named_with_the_way_out(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        LoRAConfig(**values).check("grpo.lora")
    assert str(error.value) == message
