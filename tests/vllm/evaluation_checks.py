"""Evaluates one model by vLLM and by transformers and prints both as JSON: a program for the environment with vLLM.

PYTHONPATH=. PYTHON_WITH_VLLM -m tests.vllm.evaluation_checks FOLDER
"""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

import torch
from transformers import PreTrainedModel

from pipelines.configuration.data import DataConfig
from pipelines.configuration.evaluation import BenchmarkConfig, EvaluationConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.errors import UserError
from pipelines.evaluation.benchmark_cache import BenchmarkCache
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.samples import SAMPLES, read_rows
from pipelines.models.causal_lm import build_model
from pipelines.rollouts import Sampling, load_engine, score
from pipelines.training.weight_stream import weight_stream
from tests.pipelines.evaluation.contexts import evaluation_context
from tests.vllm.checks import model

GREEDY = Sampling(0.0, 1.0, 40)
CONFIG = EvaluationConfig("t", 0.8, 1.0, max_new_tokens=24, text_length=24, pass_k=[1], benchmarks={})


def evaluated(corpus: Corpus, folder: Path, learner: PreTrainedModel, config: EvaluationConfig) -> dict[str, Any]:
    """An evaluation by one engine: its outcome, its samples, and greedy texts that a stop string ends."""
    fields = {"cache": BenchmarkCache(folder / "cache", {}), "weights": partial(weight_stream, learner)}
    output = folder / config.engine
    with evaluation_context(corpus, output, config, model=learner, **fields) as context:
        outcome = evaluate(context)
        prompts = [[5, 6, 7], [9] * 20, [11, 3], [40, 41]]
        stop = [corpus.tokenizer.decode(context.sampler.generate(prompts, GREEDY, n=1, seed=(1,)).responses()[0][5:7])]
        cut = context.sampler.generate(prompts, GREEDY, n=2, seed=(1,), stop=stop)
        samples = list(read_rows(output / SAMPLES))
        rollouts = context.sampler.generate(prompts, Sampling(0.8, 1.0, 24), n=4, seed=(1, 2, 3, 4), first=3)
        later = context.sampler.generate(prompts[1:], Sampling(0.8, 1.0, 24), n=4, seed=(1, 2, 3, 4), first=4)
        context.sampler.close()
    fresh = score(learner, [p for p in prompts for _ in range(4)], rollouts.responses(), temperature=0.8).log_probs
    drawn = torch.cat([rollouts.log_probs[i, : len(response)] for i, response in enumerate(rollouts.responses())])
    return {
        "metrics": outcome["metrics"],
        "samples": [sample["response"] for sample in samples],
        "stop": stop,
        "cut": [cut.responses(), cut.stopped.tolist()],
        "difference": (fresh - drawn).abs().max().item(),
        "first": later.responses() == rollouts.responses()[4:],
    }


def refusal(corpus: Corpus) -> str:
    """What a model is told whose heads have no kernel on this machine."""
    odd = build_model(ModelConfig("odd", 1, 48, 64, 2, 1, 24), corpus.tokenizer, 1e4, seed=0, length=64)
    try:
        load_engine("vllm", odd, lambda: 64)
    except UserError as error:
        return str(error)
    return ""


def main() -> None:
    """Both engines on the same cache."""
    folder = Path(sys.argv[1])
    corpus = prepare(DataConfig("t", ["networkx"], ["boolean"], 300, 0.5, 0.5, 300, 8), folder / "cache")
    rows = [{"question": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(5)]
    (folder / "amc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lm_eval = BenchmarkConfig("harness", "math", "amc23", items=5, dataset=str(folder / "amc.jsonl"), shots=0)
    benchmarks = {
        "Boolean": BenchmarkConfig("sampled", "logic", "boolean", items=4, samples=6),
        "Text": BenchmarkConfig("text", "text", "text", items=4),
        "Greedy": lm_eval,
        "Sampled": replace(lm_eval, samples=3, verifier="math"),
    }
    learner = model(corpus, 0)
    told = refusal(corpus)
    config = replace(CONFIG, benchmarks=benchmarks)
    vllm = evaluated(corpus, folder, learner, replace(config, engine="vllm", precision="float32"))
    transformers = evaluated(corpus, folder, learner, config)
    (folder / "checks.json").write_text(json.dumps({"vllm": vllm, "transformers": transformers, "refusal": told}))


if __name__ == "__main__":
    main()
