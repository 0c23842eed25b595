"""Responses of a causal language model: sampling them (`Engine`), and scoring given ones (`score`).

`transformers_engine` samples from the model that is being trained, in process; `vllm_engine` hands its weights to
vLLM. `qwen3` is the forward pass that makes the small dense models fast.
"""

from pipelines.rollouts.engine import Engine, Rollouts, Sampling
from pipelines.rollouts.scoring import Scores, length_batches, likelihoods, score
from pipelines.rollouts.transformers_engine import TransformersEngine, generate

__all__ = [
    "Engine",
    "Rollouts",
    "Sampling",
    "Scores",
    "TransformersEngine",
    "generate",
    "length_batches",
    "likelihoods",
    "score",
]
