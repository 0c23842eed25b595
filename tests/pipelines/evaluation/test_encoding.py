"""A text is the same model input on every path: training, RL, our benchmarks, lm-eval's and the exported checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from pipelines import rollouts
from pipelines.configuration.evaluation import BenchmarkConfig, EvaluationConfig
from pipelines.configuration.grpo import GRPOConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus
from pipelines.data.questions import Question
from pipelines.data.tokenizer import encode, fitting, fitting_pair
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.lm_eval_model import RolloutLM
from pipelines.grpo.collection import Collector, Questions
from pipelines.models.causal_lm import build_model, save_checkpoint
from pipelines.verifiers import Judge
from tests.pipelines.evaluation.contexts import evaluation_context

LENGTH = 96


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> Any:
    return build_model(ModelConfig("t", 1, 16, 32, 2, 1, 8), corpus.tokenizer, 1e4, seed=0, length=LENGTH).eval()


class _Recorded:
    """An engine, or `generate`, that records the prompts it receives."""

    exact = True

    def __init__(self, model: Any) -> None:
        self.model, self.prompts = model, []

    def generate(self, prompts: Any, sampling: Any, **rest: Any) -> Any:
        self.prompts += [list(prompt) for prompt in prompts]
        return rollouts.generate(self.model, prompts, sampling, **rest)

    def function(self, model: Any, prompts: Any, sampling: Any, **rest: Any) -> Any:
        return self.generate(prompts, sampling, **rest)


def test_every_path_gives_the_model_the_same_tokens(
    corpus: Corpus, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = corpus.problems("chain3", "test")[0]
    train = corpus.problems("chain3", "train")[0]
    # Training: a row begins with the document of the first problem.
    row = corpus.rows("chain3", "train", 24)[0].tolist()
    expected = encode(corpus.tokenizer, train.prompt)
    assert row[: len(expected)] == expected
    expected = encode(corpus.tokenizer, problem.prompt)
    assert expected[0] == model.config.bos_token_id == corpus.tokenizer.eos_token_id

    # RL.
    question = Question("chain3", problem.question, problem.reference, "marked")
    engine = _Recorded(model)
    with Judge(1) as judge:
        collector = Collector(
            GRPOConfig(steps=1, tasks=["chain3"], milestones=1, samples=2, max_new_tokens=3), engine, judge,
            tokenizer=corpus.tokenizer, questions=Questions([[question]], 0), seed=0,
        )  # fmt: skip
        collector.sample([question], step=1, seed=(0,))
    assert engine.prompts == [expected]

    # Our benchmarks.
    ours = _Recorded(model)
    monkeypatch.setattr("pipelines.rollouts.transformers_engine.generate", ours.function)
    benchmark = BenchmarkConfig("sampled", "math", "chain3", items=1, samples=2)
    with evaluation_context(
        corpus, tmp_path, EvaluationConfig("t", 1.0, 1.0, 3, {}, 24, [1], {"A": benchmark}), model=model
    ) as context:
        evaluate(context)
    assert ours.prompts == [expected]

    # lm-eval: generation, log-likelihoods and whole texts.
    recorded = _Recorded(model)
    monkeypatch.setattr("pipelines.rollouts.transformers_engine.generate", recorded.function)
    lm = RolloutLM(model, corpus.tokenizer)
    lm.generate_until([Instance("generate_until", {}, (problem.prompt, {"max_gen_toks": 3, "until": []}), 0)])
    assert recorded.prompts == [expected]
    scored: list[tuple[list[int], list[int]]] = []

    def likelihoods(model: Any, contexts: Any, continuations: Any, **rest: Any) -> Any:
        scored.extend(zip(contexts, continuations, strict=True))
        return rollouts.likelihoods(model, contexts, continuations, **rest)

    monkeypatch.setattr("pipelines.evaluation.lm_eval_model.likelihoods", likelihoods)
    lm.loglikelihood([Instance("loglikelihood", {}, (problem.prompt, " 5"), 0)])
    lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (problem.prompt,), 0)])
    assert scored[0][0] == expected
    assert scored[1][0] + scored[1][1] == expected

    # The exported checkpoint, for other programs.
    save_checkpoint(model, corpus.tokenizer, tmp_path / "step-000001")
    assert AutoTokenizer.from_pretrained(tmp_path / "step-000001").encode(problem.prompt) == expected
    theirs = HFLM(pretrained=str(tmp_path / "step-000001"), device="cpu", dtype="float32")
    assert theirs.tok_encode(problem.prompt) == expected
    assert theirs.max_length == lm.max_length == LENGTH


def test_prompts_that_do_not_fit_are_cut_and_counted(corpus: Corpus, model: Any, tmp_path: Path) -> None:
    """Answers too, at the end of the model's positions; a prompt is never empty, whatever the limit on answers is."""
    path = tmp_path / "questions.jsonl"
    questions = ["short?", "middle " * 8, "long " * 200]
    path.write_text("".join(json.dumps({"question": text, "answer": "1"}) + "\n" for text in questions))
    benchmarks = {
        "Ours": BenchmarkConfig("sampled", "math", "marked", items=3, samples=2, dataset=str(path)),
        "Theirs": BenchmarkConfig("harness", "math", "amc23", items=3, samples=2, dataset=str(path), verifier="math"),
        "Greedy": BenchmarkConfig("harness", "math", "amc23", items=3, dataset=str(path)),
    }
    for limit in (10, LENGTH, 10 * LENGTH):
        config = EvaluationConfig("t", 1.0, 1.0, limit, {}, 24, [1], benchmarks)
        with evaluation_context(corpus, tmp_path / str(limit), config, model=model) as context:
            outcome = evaluate(context)
        for name in benchmarks:
            coverage = outcome["coverage"][name]
            assert coverage["items"] == coverage["available"] == 3
            assert coverage["cut_prompts"] >= 1
        room = LENGTH - min(limit, LENGTH // 2)
        asked = [Question("t", text, "1", "marked").prompt for text in questions]
        assert outcome["coverage"]["Ours"]["cut_prompts"] == sum(len(corpus.encode(prompt)) > room for prompt in asked)
        rows = [json.loads(line) for line in (tmp_path / str(limit) / "ledger.jsonl").read_text().splitlines()]
        assert [row["cut_prompts"] for row in rows] == [outcome["coverage"][name]["cut_prompts"] for name in benchmarks]


@given(size=st.integers(1, 200), length=st.integers(2, 100), limit=st.integers(1, 300))
def test_a_prompt_keeps_its_start_and_its_end(size: int, length: int, limit: int) -> None:
    whole = list(range(size))
    prompt = fitting(whole, length=length, limit=limit)
    assert prompt[0] == 0
    assert prompt[1:] == whole[size - len(prompt) + 1 :]
    assert length - len(prompt) >= min(limit, length // 2) >= 1
    # Nothing is cut that could stay.
    assert prompt == whole or len(prompt) == length - min(limit, length // 2)


@given(context=st.integers(1, 60), continuation=st.integers(0, 60), length=st.integers(2, 50))
def test_a_pair_keeps_the_start_and_what_is_scored(context: int, continuation: int, length: int) -> None:
    whole, scored = list(range(context)), list(range(100, 100 + continuation))
    before, after = fitting_pair(whole, scored, length=length)
    assert after == scored[:length]
    assert before[0] == 0
    assert before[1:] == whole[context - len(before) + 1 :]
    assert len(before) + len(after) <= length + 1
    assert before == whole or len(before) + len(after) == length + 1
