"""Accuracy of multiple choice: only a continuation that is likelier than all others is right."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.configuration.evaluation import BenchmarkConfig
from pipelines.evaluation import multiple_choice
from pipelines.evaluation.multiple_choice import measure_choice

BENCHMARK = BenchmarkConfig("choice", "knowledge", "module", items=6)
SCORES = [
    [-1.0, -2.0, -3.0, -4.0],  # right
    [-1.0, -1.0, -3.0, -4.0],  # tied with one
    [-2.0, -2.0, -2.0, -2.0],  # tied with all
    [-2.0, -3.0, -1.0, -4.0],  # wrong
    [-0.5, -0.6, -0.7, -0.6],  # right
]


def test_a_tie_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [[([1, 2], [3, 4])] * 4 for _ in SCORES]
    monkeypatch.setattr(multiple_choice, "choice_items", lambda *_: items)

    def likelihoods(_: Any, contexts: Sequence[Any], __: Any, *, batch_tokens: int) -> Iterator[Any]:
        """A continuation's score is spread over its two tokens, and batches come in another order."""
        totals = [total for row in SCORES for total in row]
        assert len(contexts) == len(totals)
        for batch in (list(range(10, 20)), list(range(10))):
            tokens = torch.tensor([part for i in batch for part in (0.25 * totals[i], 0.75 * totals[i])])
            yield batch, SimpleNamespace(log_probs=tokens)

    monkeypatch.setattr(multiple_choice, "likelihoods", likelihoods)
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=64))
    context: Any = SimpleNamespace(model=model, corpus=None)
    result = measure_choice(context, BENCHMARK)
    assert result.metrics["accuracy"].value == 2 / 5
    assert (result.coverage.items, result.coverage.available, result.coverage.cut_prompts) == (5, 5, 0)
