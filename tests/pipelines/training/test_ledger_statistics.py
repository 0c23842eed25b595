"""Statistics in the ledger of a training: comparable between objectives, and finite."""

from pathlib import Path

import pytest
import torch

from pipelines.configuration.budgets import PretrainConfig
from pipelines.configuration.compute import ComputeConfig
from pipelines.data.corpus import Corpus
from pipelines.models.causal_lm import build_model
from pipelines.training.train import train
from pipelines.training.training_rows import TrainingRows
from shaping import Objective
from tests.pipelines.contexts import stage_context
from tests.pipelines.training.test_train import BUDGET, MODEL, read_ledger, run_training, small_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("micro_batch", [None, 16])
def test_the_ledgers_of_all_objectives_have_one_head(corpus: Corpus, tmp_path: Path, micro_batch: int | None) -> None:
    """At the first step the weights are equal, so all columns but the loss are: the head is that of `data.top_k`."""
    rows = []
    for objective in (Objective(), Objective(0.5, top_k=3), Objective(lam_tail=-0.1, top_k=8), Objective(0.0, 0.1)):
        with stage_context(corpus, tmp_path / str(objective), seed=7, compute=ComputeConfig(micro_batch)) as context:
            model = build_model(MODEL, corpus.tokenizer, 1e4, seed=3)
            train(model, objective, PretrainConfig(**BUDGET, warmup_steps=2), context=context)
        rows.append(read_ledger(tmp_path / str(objective))[0])
    logits = build_model(MODEL, corpus.tokenizer, 1e4, seed=3)(
        torch.stack([TrainingRows(corpus, PretrainConfig(**BUDGET, warmup_steps=2), 7)[i] for i in range(4)])[:, :-1]
    ).logits
    expected = logits.detach().double().softmax(-1).topk(8).values.sum(-1).mean().item()
    for row in rows:
        assert row["head_mass"] == pytest.approx(expected, rel=1e-5)
        assert row["cross_entropy"] == pytest.approx(rows[0]["cross_entropy"], rel=1e-6)
        assert row["entropy"] == pytest.approx(rows[0]["entropy"], rel=1e-6)


def test_cross_entropy_in_the_ledger_is_finite_where_probabilities_underflow(corpus: Corpus, tmp_path: Path) -> None:
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=3)
    with torch.no_grad():
        model.model.norm.weight.mul_(3e4)  # logits hundreds apart
    budget = PretrainConfig(**BUDGET | {"tokens": 64, "milestones": 1}, warmup_steps=0)
    run_training(corpus, tmp_path, budget, model=model)
    (row,) = read_ledger(tmp_path)
    assert row["loss"] > 110
    assert row["cross_entropy"] == pytest.approx(row["loss"], rel=1e-5)


def test_a_row_has_the_rate_of_its_own_step_and_the_tokens_so_far(corpus: Corpus, tmp_path: Path) -> None:
    """And the result has the tokens of whole batches, which are fewer than those of the budget."""
    metrics = run_training(corpus, tmp_path, PretrainConfig(**BUDGET | {"tokens": 6 * 64 + 50}, warmup_steps=4))
    rows = read_ledger(tmp_path)
    assert (metrics["steps"], metrics["tokens"]) == (6, 384)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["tokens"] for row in rows] == [64, 128, 192, 256, 320, 384]
    rates = [2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2]
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)
