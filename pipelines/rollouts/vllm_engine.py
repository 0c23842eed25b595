"""Rollouts by vLLM 0.32, in the learner's process and on its device (the extra `vllm`).

Each rank has an engine of its own, which sleeps while the weights are updated. vLLM's kernels are not the learner's, so
its log-probabilities differ from the learner's by more than rounding: `grpo.importance_cap` corrects for that, and the
ledger's `mismatch` measures it at every step.

New weights go through vLLM's `reload_weights`, the only way that is right for all of its models: its tensors have other
shapes than the checkpoint's, and some are packed. A tied output layer would keep a stale copy, so the sampler's
configuration is untied, and the stream has the output layer under its own name.
"""

import copy
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import MiniMaxM2Config, PreTrainedConfig, PreTrainedModel

from pipelines.errors import Interrupted, UserError
from pipelines.rollouts.engine import Rollouts, Sampling, never

MEMORY_SHARE = 0.4
"""Share of the GPU's memory for vLLM while it is awake."""

VERSION = "0.32."
"""vLLM changes its interfaces with every minor version."""

BATCH_TOKENS = 1 << 22
"""Most new tokens, counted by the limit of a response, that are asked for between two looks for a signal."""


class VLLMEngine:
    """Samples from a copy of the policy inside vLLM."""

    exact = False
    checkpoint_names = True

    def __init__(self, model: PreTrainedModel, longest: Callable[[], int]) -> None:
        """`longest` returns the tokens of the longest prompt and response together.

        Raises `UserError` if vLLM is not installed or has another version.
        """
        # With its own process, vLLM's model would be out of reach of `take`.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            import vllm
        except ImportError:
            raise UserError("grpo.engine=vllm: vLLM is not installed: pip install 'shaping[vllm]'") from None
        if not vllm.__version__.startswith(VERSION):
            raise UserError(
                f"grpo.engine=vllm: this version works with vLLM {VERSION}x, but {vllm.__version__} is installed: pip "
                "install 'shaping[vllm]'"
            )
        self._vllm: Any = vllm
        self._end = model.config.eos_token_id
        on_gpu = model.device.type == "cuda"
        options: dict[str, Any] = {"gpu_memory_utilization": MEMORY_SHARE, "enable_sleep_mode": True} if on_gpu else {}
        self._sleeps = on_gpu
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            # The processes exist already, and each is an engine.
            options["distributed_executor_backend"] = "external_launcher"
        # vLLM changes the threads of torch in its process.
        threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            sampler_config(model).save_pretrained(folder)
            self._llm = vllm.LLM(
                model=folder,
                load_format="dummy",  # `take` brings the weights
                skip_tokenizer_init=True,
                dtype="bfloat16" if on_gpu else "float32",
                max_model_len=min(longest(), model.config.max_position_embeddings),
                enable_prefix_caching=True,
                enforce_eager=not on_gpu,
                logprobs_mode="processed_logprobs",  # those of the tempered distribution
                **options,
            )
        torch.set_num_threads(threads)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        n: int,
        seed: Sequence[int],
        share: range | None = None,
        interrupted: Callable[[], bool] = never,
    ) -> Rollouts:
        """See `Engine.generate`. Equal seeds give equal samples only as far as vLLM guarantees it."""
        share = range(len(prompts) * n) if share is None else share
        tokens = torch.full((len(share), sampling.max_new_tokens), self._end, dtype=torch.int64)
        log_probs = torch.zeros(tokens.shape)
        lengths = torch.zeros(len(share), dtype=torch.int64)
        stopped = torch.zeros(len(share), dtype=torch.bool)
        rows = max(1, BATCH_TOKENS // sampling.max_new_tokens)
        for start in range(0, len(share), rows):
            if interrupted():
                raise Interrupted("asked to stop between two batches of rollouts")
            numbers = share[start : start + rows]
            requests = [{"prompt_token_ids": list(prompts[number // n])} for number in numbers]
            parameters = [self._parameters(sampling, [*seed, number]) for number in numbers]
            outputs = self._llm.generate(requests, parameters, use_tqdm=False)
            for row, output in enumerate(outputs, start):
                (sample,) = output.outputs
                size = len(sample.token_ids)
                tokens[row, :size] = torch.tensor(list(sample.token_ids))
                log_probs[row, :size] = torch.tensor(
                    [entry[token].logprob for token, entry in zip(sample.token_ids, sample.logprobs, strict=True)]
                )
                lengths[row], stopped[row] = size, sample.finish_reason == "stop"
        return Rollouts(tokens, log_probs, lengths, stopped)

    def _parameters(self, sampling: Sampling, seed: Sequence[int]) -> Any:
        # 63 bits for each sample: of 32-bit seeds, some of a long run would be equal.
        number = int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=[self._end],
            logprobs=0,  # only that of the sampled token
            seed=number,
            detokenize=False,
        )

    def take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `Engine.take`; prefixes that the old weights computed are forgotten."""
        options = {"weights_iterator": weights, "is_checkpoint_format": True}
        self._llm.collective_rpc("reload_weights", kwargs=options)
        self._llm.reset_prefix_cache()

    def sleep(self) -> None:
        """Move the weights to main memory and drop the cache of keys and values."""
        if self._sleeps:
            self._llm.sleep(level=1)

    def wake(self) -> None:
        """Take the device's memory again."""
        if self._sleeps:
            self._llm.wake_up()

    def close(self) -> None:
        """Shut vLLM down."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm


def sampler_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The model's configuration as vLLM's classes read it: untied, and with the keys that its MiniMax-M2 asks for."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.tie_word_embeddings = False
    if isinstance(config, MiniMaxM2Config):
        config.update({"rotary_dim": config.head_dim, "scoring_func": "sigmoid", "use_routing_bias": True})
    return config
