"""Rollouts by vLLM, in the learner's process and on its GPU (the extra `vllm`).

Never run against the real vLLM, which needs a GPU: the tests use a fake module with vLLM's interface, and the weights
are transferred as TRL does it. vLLM's kernels are not the learner's, so its log-probabilities differ from the learner's
by more than rounding. `grpo.importance_cap` corrects for that, and the ledger's `mismatch` measures it at every step.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from pipelines.errors import UserError
from pipelines.rollouts.engine import Rollouts, Sampling

MEMORY_SHARE = 0.4
"""Share of the GPU's memory for vLLM; the learner needs the rest."""


class VLLMEngine:
    """Samples from a copy of the policy inside vLLM; `sync` transfers the newest weights."""

    exact = False

    def __init__(self, model: PreTrainedModel, longest: Callable[[], int]) -> None:
        """`longest` returns the tokens of the longest prompt and response together.

        Raises `UserError` if vLLM is not installed.
        """
        # With its own process, vLLM's model would be out of reach of `sync`.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
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
                max_model_len=min(longest(), model.config.max_position_embeddings),
                gpu_memory_utilization=MEMORY_SHARE,
                enable_prefix_caching=True,
                logprobs_mode="processed_logprobs",  # those of the tempered distribution
            )

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seed: Sequence[int]
    ) -> Rollouts:
        """See `Engine.generate`. Equal seeds give equal samples only as far as vLLM guarantees it."""
        # 63 bits for each prompt: of 32-bit seeds, some of a long run would be equal.
        prompt_seeds = (np.random.SeedSequence(list(seed)).generate_state(len(prompts), np.uint64) >> 1).tolist()
        parameters = [
            self._vllm.SamplingParams(
                n=n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=[self._end],
                logprobs=0,  # only that of the sampled token
                seed=prompt_seed,
                detokenize=False,
            )
            for prompt_seed in prompt_seeds
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(requests, parameters, use_tqdm=False)
        # Row i * n + j is sample j of prompt i; vLLM returns the samples of a prompt in any order.
        samples = [sample for output in outputs for sample in sorted(output.outputs, key=lambda s: s.index)]
        tokens = torch.full((len(samples), sampling.max_new_tokens), self._end, dtype=torch.int64)
        log_probs = torch.zeros(tokens.shape)
        for row, sample in enumerate(samples):
            size = len(sample.token_ids)
            tokens[row, :size] = torch.tensor(list(sample.token_ids))
            log_probs[row, :size] = torch.tensor(
                [entry[token].logprob for token, entry in zip(sample.token_ids, sample.logprobs, strict=True)]
            )
        return Rollouts(
            tokens,
            log_probs,
            lengths=torch.tensor([len(sample.token_ids) for sample in samples]),
            stopped=torch.tensor([sample.finish_reason == "stop" for sample in samples]),
        )

    def sync(self, model: PreTrainedModel) -> None:
        """Transfer the weights of `model` by name, and drop the cached prefixes of the old ones."""
        worker = self._llm.llm_engine.model_executor.driver_worker
        worker.model_runner.model.load_weights((name, weight.data) for name, weight in model.named_parameters())
        self._llm.reset_prefix_cache()
