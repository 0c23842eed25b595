"""Runs the vLLM engine on this machine's CPU and prints what it did as JSON: a program for the environment with vLLM.

PYTHONPATH=. PYTHON_WITH_VLLM -m tests.vllm.checks FOLDER
"""

import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

import torch
from transformers import PreTrainedModel

from pipelines.configuration.data import DataConfig
from pipelines.configuration.grpo import GRPOConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.grpo import train_grpo
from pipelines.models.causal_lm import build_model
from pipelines.rollouts import Sampling, generate, score
from pipelines.rollouts.vllm_engine import VLLMEngine
from pipelines.tasks.formats import FORMATS, Format
from pipelines.training.weight_stream import weight_stream
from pipelines.verifiers import VERIFIERS, Verifier
from tests.pipelines.contexts import stage_context

SHAPE = ModelConfig("micro", layers=3, d_model=64, ffn=128, heads=2, kv_heads=1, head_dim=32)
PROMPTS = [[5, 6, 7], [9] * 20, [11, 3]]
SEED = (1, 2, 3, 4)


def model(corpus: Corpus, seed: int, *, tied: bool = True, kv_heads: int = 1) -> PreTrainedModel:
    """A random model whose distribution is far from uniform."""
    shape = ModelConfig(**{**vars(SHAPE), "tied_embeddings": tied, "kv_heads": kv_heads})
    built = build_model(shape, corpus.tokenizer, 1e4, seed=seed, length=128).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return built


def compared(engine: VLLMEngine, learner: PreTrainedModel) -> dict[str, Any]:
    """Greedy tokens against transformers, log-probabilities against a forward pass, and the engine with itself."""
    greedy, tempered, narrow = Sampling(0.0, 1.0, 24), Sampling(0.8, 1.0, 24), Sampling(0.8, 1e-6, 24)
    ours = engine.generate(PROMPTS, greedy, n=1, seed=SEED).responses()
    samples = engine.generate(PROMPTS, tempered, n=8, seed=SEED)
    responses = samples.responses()
    repeated = [prompt for prompt in PROMPTS for _ in range(8)]
    fresh = score(learner, repeated, responses, temperature=0.8).log_probs
    sampled = torch.cat([samples.log_probs[i, : len(response)] for i, response in enumerate(responses)])
    share = engine.generate(PROMPTS, tempered, n=8, seed=SEED, share=range(5, 13)).responses()
    other = engine.generate(PROMPTS, tempered, n=8, seed=(5, 6, 7, 8)).responses()
    likeliest = engine.generate(PROMPTS, narrow, n=8, seed=SEED).responses()
    theirs = generate(learner, PROMPTS, greedy, n=1, seed=SEED).responses()
    end = learner.config.eos_token_id
    stops = zip(responses, samples.stopped.tolist(), strict=True)
    return {
        "greedy": ours == theirs,
        "responses": responses,
        "difference": (sampled - fresh.detach()).abs().max().item(),
        "same share": share == responses[5:13],
        "other seed": other != responses,
        "distinct": len({tuple(response) for response in responses[:8]}),
        "nucleus": likeliest == [response for response in ours for _ in range(8)],
        "stops": all((response[-1] == end) == stopped and end not in response[:-1] for response, stopped in stops),
    }


def coin(answer: str, reference: str) -> float:
    """Right for about half of all texts."""
    return float(zlib.crc32(answer.encode()) & 1)


def main() -> None:
    """Compare before and after updates, then take two RL steps."""
    folder = Path(sys.argv[1])
    corpus = prepare(DataConfig("t", [], ["boolean"], 300, 0.5, 0.5, 300, 8), folder / "cache")
    first = model(corpus, 0)
    engine, results = VLLMEngine(first, lambda: 64), []
    for seed, tied in ((0, True), (1, True), (2, False)):
        learner = model(corpus, seed, tied=tied)
        engine.take(weight_stream(learner))
        results.append(compared(engine, learner))
    engine.close()
    VERIFIERS["coin"] = Verifier(f"{__name__}:coin", in_process=True)
    FORMATS["coin"] = Format("{question}", str, "coin")
    questions = [{"question": f"what of {i}?", "answer": "1", "format": "coin"} for i in range(60)]
    (folder / "coin.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    config = GRPOConfig(
        steps=2, prompts=4, samples=8, max_new_tokens=32, tasks=[str(folder / "coin.jsonl")], milestones=1,
        engine="vllm", held_out_every=1, held_out_problems=4, learning_rate=1e-3, extended_from_step=None,
    )  # fmt: skip
    learner = model(corpus, 3)
    with stage_context(corpus, folder / "rl") as context:
        train_grpo(learner, config, context)
    rows = [json.loads(line) for line in (folder / "rl" / "ledger.jsonl").read_text().splitlines()]
    (folder / "checks.json").write_text(json.dumps({"updates": results, "rl": rows}))


if __name__ == "__main__":
    main()
