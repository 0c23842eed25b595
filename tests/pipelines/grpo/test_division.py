"""Rows of RL become micro-batches by the tokens of their prompts and responses."""

from types import SimpleNamespace
from typing import Any

from pipelines.grpo.policy import Policy
from pipelines.grpo.update import Division
from tests.pipelines.rollouts.test_transformers_engine import tiny


def test_a_micro_batch_has_room_for_prompt_and_response() -> None:
    delivered: list[list[int]] = []
    single: Any = SimpleNamespace(
        ranks=1, rank=0, deliver=lambda rows, destinations, experts: delivered.append(destinations)
    )
    rows: Any = [SimpleNamespace(prompt=[1] * 8, length=6) for _ in range(4)]
    assert [len(batch) for batch in Division(Policy(tiny()), single, 20)(rows)] == [1] * 4
    assert [len(batch) for batch in Division(Policy(tiny()), single, 28)(rows)] == [2] * 2
    assert delivered == [[0] * 4] * 2
