"""Two processes share one vLLM engine; each prints what its share of the samples was: a program for torchrun.

PYTHONPATH=. PYTHON_WITH_VLLM -m torch.distributed.run --nproc-per-node 2 -m tests.vllm.group_checks FOLDER
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.configuration.data import DataConfig
from pipelines.data.corpus import prepare
from pipelines.errors import Interrupted
from pipelines.rollouts import Sampling, generate, score
from pipelines.rollouts.engine import EngineSetting
from pipelines.rollouts.vllm_engine import VLLMEngine
from pipelines.training.weight_stream import weight_stream
from tests.vllm.checks import PROMPTS, SEED, model


def main() -> None:
    """Sample before and after an update, then be interrupted on one rank only."""
    dist.init_process_group("gloo")
    rank, folder = dist.get_rank(), Path(sys.argv[1])
    corpus = prepare(DataConfig("t", [], ["boolean"], 300, 0.5, 0.5, 300, 8), folder / f"cache-{rank}")
    greedy, tempered = Sampling(0.0, 1.0, 24), Sampling(0.8, 1.0, 24)
    results = []
    for kv_heads in (1, 2):  # one that both ranks have a copy of, or one for each
        engine = VLLMEngine(model(corpus, 0, kv_heads=kv_heads), lambda: 64, EngineSetting(tensor_parallel=2))
        for seed in (0, 1):
            learner = model(corpus, seed, kv_heads=kv_heads)
            engine.take(weight_stream(learner))
            share = range(0, 1) if rank == 0 else range(1, len(PROMPTS))
            ours = engine.generate(PROMPTS, greedy, n=1, seed=SEED, share=share).responses()
            theirs = generate(learner, PROMPTS, greedy, n=1, seed=SEED).responses()
            share = range(0, 5) if rank == 0 else range(5, 4 * len(PROMPTS))
            samples = engine.generate(PROMPTS, tempered, n=4, seed=SEED, share=share)
            responses = samples.responses()
            prompts = [PROMPTS[sample // 4] for sample in share]
            fresh = score(learner, prompts, responses, temperature=0.8).log_probs
            sampled = torch.cat([samples.log_probs[i, : len(response)] for i, response in enumerate(responses)])
            difference = float((fresh - sampled).abs().max())
            results.append({"greedy": ours == theirs[:1] if rank == 0 else ours == theirs[1:],
                            "difference": difference, "responses": responses})  # fmt: skip
        try:
            engine.generate(PROMPTS, greedy, n=1, seed=SEED, share=range(rank, rank + 1), interrupted=lambda: rank == 1)
            ended = "not interrupted"
        except Interrupted:
            ended = "interrupted"
        results[-1]["ended"] = ended
        engine.close()
        results[-1]["ranks"] = dist.get_world_size()  # the group of the ranks outlives the engine
    (folder / f"checks-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
