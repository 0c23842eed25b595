"""Evaluation against independent computations on the same checkpoint."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.configuration.evaluation import CHOICE_TASKS, BenchmarkConfig, EvaluationConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus
from pipelines.errors import StageFailure
from pipelines.evaluation.benchmark_cache import BenchmarkCache
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.held_out_text import held_out_rows
from pipelines.evaluation.metrics import pass_at_k
from pipelines.evaluation.multiple_choice import choice_items
from pipelines.evaluation.samples import SAMPLES, read_rows
from pipelines.models.causal_lm import build_model
from pipelines.tasks.formats import FORMATS
from tests.pipelines.contexts import captured_log
from tests.pipelines.evaluation.contexts import evaluation_context

BENCHMARKS = {
    "Text": BenchmarkConfig("text", "text", "text", items=12),
    "Modules": BenchmarkConfig("choice", "knowledge", "module", items=10),
    "Continuations": BenchmarkConfig("choice", "commonsense", "continuation", items=10),
    "Chains": BenchmarkConfig("sampled", "math", "chain3", items=6, samples=5),
}
CONFIG = EvaluationConfig(
    "t", temperature=1.0, top_p=1.0, max_new_tokens=6, text_length=24, pass_k=[1, 2, 4, 9], benchmarks=BENCHMARKS
)


@pytest.fixture(scope="module")
def evaluated(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = tmp_path_factory.mktemp("evaluation")
    model = build_model(ModelConfig("t", 1, 16, 32, 2, 1, 8), corpus.tokenizer, 1e4, seed=0).eval()
    with evaluation_context(corpus, folder, CONFIG, model=model) as context:
        return model, evaluate(context), folder


def measurement_of(outcome: dict, benchmark: str, metric: str) -> dict:
    (measurement,) = [m for m in outcome["measurements"] if (m["benchmark"], m["metric"]) == (benchmark, metric)]
    return measurement


def test_a_text_shorter_than_one_row_is_refused(corpus: Corpus) -> None:
    with pytest.raises(StageFailure, match=r"evaluation\.text_length=10000000: the held-out text of text has fewer"):
        held_out_rows(corpus, BENCHMARKS["Text"], 10_000_000)


@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_a_text_with_too_few_choices_is_refused(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    monkeypatch.setattr(Corpus, "documents", lambda self, split: [])
    monkeypatch.setattr(Corpus, "document_tokens", lambda self, split: [])
    with pytest.raises(StageFailure, match=r"data\.text: it has 0 .*, and a question has 4 choices"):
        choice_items(corpus, BenchmarkConfig("choice", "knowledge", task, items=10))


def test_text_metrics_equal_those_of_a_forward_pass(corpus: Corpus, evaluated: tuple) -> None:
    model, outcome, _ = evaluated
    rows = corpus.rows("text", "test", 24)
    chosen = rows[np.linspace(0, len(rows) - 1, 12).round().astype(int)].astype(np.int64)
    with torch.no_grad():
        log_probs = model(torch.from_numpy(chosen[:, :-1])).logits.double().log_softmax(-1)
    loss = -log_probs.gather(-1, torch.from_numpy(chosen[:, 1:, None]))[..., 0]
    assert measurement_of(outcome, "Text", "perplexity")["value"] == pytest.approx(math.exp(loss.mean()), rel=1e-5)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    measurement = measurement_of(outcome, "Text", "entropy")
    assert measurement["value"] == pytest.approx(float(entropy.mean()), rel=1e-5)
    # entropies of 5.7 nats in float32 are rounded by 2.4e-7 each: 1.4e-8 in the error of a mean over 12 rows of 24
    assert measurement["stderr"] == pytest.approx(float(entropy.mean(1).std() / math.sqrt(12)), rel=1e-4, abs=3e-8)
    head = log_probs.exp().topk(8).values.sum(-1).mean()
    assert measurement_of(outcome, "Text", "head_mass")["value"] == pytest.approx(float(head), rel=1e-5)


@pytest.mark.parametrize("name", ["Modules", "Continuations"])
def test_choice_counts_the_items_whose_right_pair_is_the_likeliest(corpus: Corpus, evaluated: tuple, name: str) -> None:
    model, outcome, _ = evaluated
    items = choice_items(corpus, BENCHMARKS[name])
    right = 0
    for item in items:
        assert len(item) == 4
        totals = []
        for context, continuation in item:
            with torch.no_grad():
                logits = model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
            positions = range(len(context) - 1, len(context) + len(continuation) - 1)
            totals.append(sum(float(logits[p, t]) for p, t in zip(positions, continuation, strict=True)))
        right += totals[0] == max(totals)
    assert measurement_of(outcome, name, "accuracy")["value"] == right / len(items)


def test_choices_differ_and_continuations_are_from_the_test_split(corpus: Corpus) -> None:
    for name in ("Modules", "Continuations"):
        for item in choice_items(corpus, BENCHMARKS[name]):
            assert len({tuple(context + continuation) for context, continuation in item}) == 4
    test_text = " ".join(d.training_text for d in corpus.documents("test"))
    for (context, continuation), *_ in choice_items(corpus, BENCHMARKS["Continuations"]):
        assert corpus.tokenizer.decode(context[1:] + continuation) in test_text


def test_sampled_metrics_follow_from_the_samples(corpus: Corpus, evaluated: tuple) -> None:
    _, outcome, folder = evaluated
    samples = list(read_rows(folder / SAMPLES))
    assert len(samples) == 6 * 5
    problems = {p.question: p.answer for p in corpus.problems("chain3", "test")[:6]}
    assert {s["question"] for s in samples} == set(problems)
    for sample in samples:
        answer = FORMATS["marked"].extract(sample["response"])
        assert sample["reward"] <= (answer == problems[sample["question"]])
    right = np.array([s["reward"] == 1 for s in samples]).reshape(6, 5)
    assert measurement_of(outcome, "Chains", "avg@5")["value"] == right.mean()
    for k in (2, 4):
        assert measurement_of(outcome, "Chains", f"pass@{k}")["value"] == pass_at_k(right.sum(1), 5, k).mean()
    metrics = {m["metric"] for m in outcome["measurements"] if m["benchmark"] == "Chains"}
    assert metrics == {
        "avg@5",
        "cons@5",
        "pass@2",
        "pass@4",
        "response_length",
        "sampling_error",
    }  # k = 1 is Avg, k = 9 > n


def test_the_same_checkpoint_gives_the_same_numbers(corpus: Corpus, evaluated: tuple, tmp_path: Path) -> None:
    model, outcome, _ = evaluated
    with captured_log() as lines, evaluation_context(corpus, tmp_path, CONFIG, model=model) as context:
        assert evaluate(context) == outcome
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [row["benchmark"] for row in rows] == list(BENCHMARKS)
    started = [line.getMessage() for line in lines if "started" in line.getMessage()]
    assert started[0] == "benchmark 1 of 4 started: Text, up to 12 items"
    assert len(started) == 4


def test_a_stored_text_is_not_that_of_another_length(corpus: Corpus, evaluated: tuple, tmp_path: Path) -> None:
    model, _, _ = evaluated

    def perplexity(length: int, cache: str) -> float:
        config = EvaluationConfig("t", 1.0, 1.0, 6, {}, length, [2], {"Text": BENCHMARKS["Text"]})
        fields = {"model": model, "cache": BenchmarkCache(tmp_path / cache, {})}
        with evaluation_context(corpus, tmp_path / "run", config, **fields) as context:
            return evaluate(context)["metrics"]["Text/perplexity"]

    long, short = perplexity(24, "long"), perplexity(12, "short")
    assert long != short
    assert [perplexity(length, "both") for length in (24, 12, 24)] == [long, short, long]
