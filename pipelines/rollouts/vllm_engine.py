"""Rollouts by vLLM, in the learner's process and on its GPU (the extra `vllm`).

Not run here against the real vLLM, which needs a GPU: the tests drive this class against a stand-in with vLLM's
interface, and the weight hand-over is the one that TRL uses. vLLM's kernels are not the learner's, so its
log-probabilities differ from the learner's by more than rounding; `grpo.importance_cap` corrects for it, and the
ledger's `mismatch` measures it at every step.
"""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from pipelines.errors import UserError
from pipelines.rollouts.engine import Rollouts, Sampling

MEMORY_SHARE = 0.4
"""Share of the GPU's memory that vLLM may take; the learner needs the rest."""


class VLLMEngine:
    """Samples from a copy of the policy that lives in vLLM; `sync` hands the newest weights over."""

    exact = False

    def __init__(self, model: PreTrainedModel, longest: int) -> None:
        """`longest`: tokens of the longest prompt and response together.

        Raises `UserError` where vLLM is not installed.
        """
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its model must be in this process to be handed weights
        try:
            import vllm
        except ImportError:
            raise UserError("grpo.engine=vllm: it needs vLLM and a GPU: pip install 'shaping[vllm]'") from None
        self._vllm: Any = vllm
        self._end = model.config.eos_token_id
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            self._llm = vllm.LLM(
                model=folder,
                skip_tokenizer_init=True,
                dtype=str(model.dtype).removeprefix("torch."),
                max_model_len=longest,
                gpu_memory_utilization=MEMORY_SHARE,
                enable_prefix_caching=True,
                logprobs_mode="processed_logprobs",  # those of the tempered distribution
            )

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: Sequence[int]) -> Rollouts:
        """See `Engine.generate`. The same seed gives the same samples as far as vLLM promises it."""
        seeds = np.random.SeedSequence(list(seed)).generate_state(len(prompts)).tolist()
        parameters = [
            self._vllm.SamplingParams(
                n=n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=[self._end],
                logprobs=0,  # that of the sampled token
                seed=number,
                detokenize=False,
            )
            for number in seeds
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(requests, parameters, use_tqdm=False)
        samples = [sample for output in outputs for sample in sorted(output.outputs, key=lambda s: s.index)]
        tokens = torch.full((len(samples), sampling.max_new_tokens), self._end, dtype=torch.int64)
        log_probs = torch.zeros(tokens.shape)
        for row, sample in enumerate(samples):
            size = len(sample.token_ids)
            tokens[row, :size] = torch.tensor(list(sample.token_ids))
            log_probs[row, :size] = torch.tensor(
                [at[token].logprob for token, at in zip(sample.token_ids, sample.logprobs, strict=True)]
            )
        return Rollouts(
            tokens,
            log_probs,
            torch.tensor([len(sample.token_ids) for sample in samples]),
            torch.tensor([sample.finish_reason == "stop" for sample in samples]),
        )

    def sync(self, model: PreTrainedModel) -> None:
        """Hand the weights of `model` over, name by name, and forget the prefixes of the old ones."""
        worker = self._llm.llm_engine.model_executor.driver_worker
        worker.model_runner.model.load_weights((name, weight.data) for name, weight in model.named_parameters())
        self._llm.reset_prefix_cache()
