"""Responses of a causal language model: sampling them (`Engine`, `generate`), with verdicts (`verified`), and scoring
given ones (`score`).

`transformers_engine` samples from the model that is being trained, in the same process; `vllm_engine` samples from a
copy of its weights in vLLM; `load_engine` returns the one that a configuration names. `qwen3` is the forward pass that
makes small dense models fast.
"""

from pipelines.rollouts.engine import Engine, EngineSetting, Finished, Rollouts, Sampling, load_engine, never
from pipelines.rollouts.scoring import Scores, length_batches, likelihoods, score
from pipelines.rollouts.transformers_engine import TransformersEngine, generate
from pipelines.rollouts.verified import Verified, verified

__all__ = [
    "Engine",
    "EngineSetting",
    "Finished",
    "Rollouts",
    "Sampling",
    "Scores",
    "TransformersEngine",
    "Verified",
    "generate",
    "length_batches",
    "likelihoods",
    "load_engine",
    "never",
    "score",
    "verified",
]
