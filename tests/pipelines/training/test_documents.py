"""Documents that share a row see nothing of each other, also in models whose layers carry a state along the row."""

from typing import Any

import pytest
import torch

from pipelines.training.causal_loss import CausalLoss
from shaping import Objective
from tests.small_starts import small_model

START = 1
ROWS = [[START, 5, 6, 7, START, 8, 9, START, 4, 3], [2, 9, START, 5, START, 7, 7, 7, 7, 2]]
"""The second row begins inside a document."""


@pytest.mark.parametrize("name", ["mamba", "qwen3_next", "llama"])
def test_the_loss_of_a_row_is_that_of_its_documents_alone(name: str) -> None:
    model, reference = small_model(name), small_model(name)
    loss, _ = CausalLoss(model, Objective(), START)(torch.tensor(ROWS))
    loss.backward()
    expected = torch.zeros(())
    any_model: Any = reference
    for row in ROWS:
        inputs, targets = row[:-1], row[1:]
        starts = [i for i, token in enumerate(inputs) if token == START or i == 0]
        for start, stop in zip(starts, [*starts[1:], len(inputs)], strict=True):
            logits = any_model(input_ids=torch.tensor([inputs[start:stop]])).logits[0]
            expected = expected + torch.nn.functional.cross_entropy(
                logits, torch.tensor(targets[start:stop]), reduction="sum"
            )
    expected = expected / 18
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        if theirs.grad is not None and ours.grad is not None:
            torch.testing.assert_close(
                ours.grad, theirs.grad, atol=1e-4 * float(theirs.grad.abs().max()) + 1e-6, rtol=0
            )


def test_a_state_does_leak_where_documents_are_not_kept_apart() -> None:
    model = small_model("mamba")
    together, _ = CausalLoss(model, Objective())(torch.tensor(ROWS))
    apart, _ = CausalLoss(model, Objective(), START)(torch.tensor(ROWS))
    assert abs(float(together - apart)) > 1e-3
