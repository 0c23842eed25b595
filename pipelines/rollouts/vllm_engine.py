"""Rollouts by vLLM 0.32, in the process and on the device of the model that they are of (the extra `vllm`).

Each rank has an engine of its own, or consecutive ranks share one (`pipelines.rollouts.engine_groups`), of which each
computes a part of every layer. Engines sleep while the weights are updated. vLLM's kernels are not the learner's, so
its log-probabilities differ from the learner's by more than rounding: `grpo.importance_cap` corrects for that, and the
ledger's `mismatch` measures it at every step. In an evaluation the engine is part of what is measured.

New weights go through vLLM's `reload_weights`, the only way that is right for all of its models: its tensors have other
shapes than the checkpoint's, and some are packed. A tied output layer would keep a stale copy, so the sampler's
configuration is untied, and the stream has the output layer under its own name.
"""

import copy
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import MiniMaxM2Config, PreTrainedConfig, PreTrainedModel

from pipelines.configuration.engines import vllm_fault
from pipelines.data.tokenizer import end_tokens
from pipelines.errors import Interrupted, StageFailure, UserError
from pipelines.rollouts.architectures import positions
from pipelines.rollouts.engine import IN_RL, EngineSetting, Finished, Rollouts, Sampling, never
from pipelines.rollouts.engine_groups import Lockstep, check_groups, engine_group
from pipelines.rollouts.expert_replay import NOT_RECORDED
from pipelines.rollouts.stop_strings import ended_by


class VLLMEngine:
    """Samples from a copy of the policy inside vLLM."""

    exact = False
    checkpoint_names = True

    def __init__(self, model: PreTrainedModel, longest: Callable[[], int], setting: EngineSetting = IN_RL) -> None:
        """`longest` returns the tokens of the longest prompt and response together.

        Raises `UserError` if vLLM is not installed, has another version, or cannot run the model on this machine, or if
        the ranks or the model cannot be divided into the groups of the setting.
        """
        # With its own process, vLLM's model would be out of reach of `take`.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            import vllm
        except ImportError:
            vllm = None
        if fault := vllm_fault(vllm and vllm.__version__):
            raise UserError(f"{setting.key}=vllm: {fault}")
        self._vllm: Any = vllm
        self._is_rank = torch.distributed.is_initialized()  # vLLM makes a process group where there is none
        ranks = torch.distributed.get_world_size() if self._is_rank else 1
        check_groups(setting.tensor_parallel, model, ranks=ranks)
        self._group = engine_group(setting.tensor_parallel)
        self._routed = setting.routed_experts
        self._ends = end_tokens(model)
        self._tokenizer = setting.tokenizer
        device = setting.device or model.device
        self._sleeps = on_gpu = device.type == "cuda"
        with tempfile.TemporaryDirectory() as folder, _surroundings(device):
            sampler_config(model).save_pretrained(folder)
            if setting.tokenizer is not None:
                setting.tokenizer.save_pretrained(folder)
            dtype = setting.dtype or (torch.bfloat16 if on_gpu else torch.float32)
            options = _options(setting, on_gpu=on_gpu)
            try:
                if not on_gpu:
                    _check_head_size(model)
                self._llm = self._vllm.LLM(
                    model=folder,
                    load_format="dummy",  # `take` brings the weights
                    skip_tokenizer_init=setting.tokenizer is None,
                    dtype=str(dtype).removeprefix("torch."),
                    max_model_len=min(longest(), positions(model)),
                    enable_prefix_caching=True,
                    logprobs_mode="processed_logprobs",  # those of the tempered distribution
                    **options,
                )
            # A head size without kernels, too little memory for the weights or for one sequence, and the like.
            except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
                raise UserError(f"{setting.key}=vllm: {_refusal(model, error)}") from error

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        n: int,
        seed: Sequence[int],
        first: int = 0,
        stop: Sequence[str] = (),
        share: range | None = None,
        interrupted: Callable[[], bool] = never,
        finished: Finished | None = None,
    ) -> Rollouts:
        """See `Engine.generate`. Equal seeds give equal samples only as far as vLLM guarantees it.

        All samples are asked for at once, so vLLM always has enough of them, and a signal is noticed after any token.
        Ranks that share an engine call this together, with the same prompts and seed, and with consecutive shares or
        all without one.
        """
        local = range(len(prompts) * n) if share is None else share
        share = local if share is None else self._group.whole(share)
        rows = range(local.start - share.start, local.stop - share.start)
        lockstep = Lockstep(self._group, rows, interrupted=interrupted, finished=finished)
        tokens = torch.full((len(share), sampling.max_new_tokens), self._ends[0], dtype=torch.int64)
        log_probs = torch.zeros(tokens.shape)
        lengths = torch.zeros(len(share), dtype=torch.int64)
        experts: dict[int, Tensor] = {}
        stopped = torch.zeros(len(share), dtype=torch.bool)
        ended = ended_by(stop, self._tokenizer)
        requests = [{"prompt_token_ids": list(prompts[number // n])} for number in share]
        parameters = [self._parameters(sampling, stop, [*seed, number + first * n]) for number in share]
        try:
            for outputs in self._steps(requests, parameters, lockstep.asked):
                for row, sample in outputs:
                    response = list(sample.token_ids)
                    # Where a character is half written, vLLM sees a stop string later than in the text of whole
                    # responses.
                    end = ended([response])[0] if ended else None
                    size = len(response) if end is None else end
                    tokens[row, :size] = torch.tensor(response[:size])
                    entries = zip(response[:size], sample.logprobs, strict=False)
                    log_probs[row, :size] = torch.tensor([entry[token].logprob for token, entry in entries])
                    lengths[row], stopped[row] = size, end is not None or sample.finish_reason == "stop"
                    if self._routed:
                        computed = len(requests[row]["prompt_token_ids"]) + size - 1
                        experts[row] = whole_record(sample.routed_experts, computed)
                ends = [row for row, _ in outputs]
                lockstep.report(ends, [tokens[row, : int(lengths[row])].tolist() for row in ends], stopped)
        finally:
            lockstep.raise_failure()
        part = slice(rows.start, rows.stop)
        chosen = tuple(experts[row] for row in rows) if self._routed else None
        return Rollouts(tokens[part], log_probs[part], lengths[part], stopped[part], chosen)

    def _steps(
        self, requests: list[Any], parameters: list[Any], interrupted: Callable[[], bool]
    ) -> Iterator[list[tuple[int, Any]]]:
        """Run vLLM until all requests are done; yields those that a step has ended, as (their index, the sample)."""
        if not requests:
            return
        engine = self._llm.llm_engine
        numbers = self._llm.enqueue(requests, parameters, use_tqdm=False)
        # Inside the engine a request has the number that outputs have, and random characters.
        index = {number.partition("-")[0]: i for i, number in enumerate(numbers)}
        try:
            while engine.has_unfinished_requests():
                if interrupted():
                    raise Interrupted("asked to stop in the rollouts")
                outputs = [output for output in engine.step() if output.finished]
                if outputs:
                    yield [(index[output.request_id], output.outputs[0]) for output in outputs]
        finally:
            if engine.has_unfinished_requests():
                engine.abort_request(numbers, internal=True)

    def _parameters(self, sampling: Sampling, stop: Sequence[str], seed: Sequence[int]) -> Any:
        # 63 bits for each sample: of 32-bit seeds, some of a long run would be equal.
        number = int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=self._ends,
            logprobs=0,  # only that of the sampled token
            seed=number,
            stop=[string for string in stop if string] or None,
            detokenize=any(stop),
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
        """Shut vLLM down; the process group of the ranks stays."""
        with _kept_process_group() if self._is_rank else nullcontext():
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm


def _options(setting: EngineSetting, *, on_gpu: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"enforce_eager": True}
    if on_gpu:
        options = {"gpu_memory_utilization": setting.memory_share, "enable_sleep_mode": True}
    if setting.routed_experts:
        options["enable_return_routed_experts"] = True
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    if setting.tensor_parallel > 1 or (on_gpu and several):
        # The processes exist already, and each is an engine or a part of its group's.
        options["distributed_executor_backend"] = "external_launcher"
        options["tensor_parallel_size"] = setting.tensor_parallel
    return options


def whole_record(experts: Any, tokens: int) -> Tensor:
    """vLLM's array of experts for exactly `tokens` tokens, [tokens, layers, active] int16.

    Those that it did not record are marked `NOT_RECORDED`. Raises `StageFailure` if it gave no array.
    """
    if experts is None:
        raise StageFailure(
            "grpo.routing_replay=True: vLLM gives no experts of this model; set it to false, or grpo.engine=replica"
        )
    recorded = torch.from_numpy(experts.astype(np.int16))[:tokens]
    missing = recorded.new_full((tokens - len(recorded), *recorded.shape[1:]), NOT_RECORDED)
    return torch.cat([recorded, missing])


@contextmanager
def _kept_process_group() -> Iterator[None]:
    """Keep the default process group, which vLLM ends with its engine also where it did not make it."""
    destroy = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda group=None: destroy(group) if group is not None else None
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy


@contextmanager
def _surroundings(device: torch.device) -> Iterator[None]:
    """Keep torch's threads, which vLLM changes, and point it to the device: alone in its process it takes the first."""
    threads, variable = torch.get_num_threads(), "VLLM_DP_RANK_LOCAL"
    before = os.environ.get(variable)
    if device.index and not torch.distributed.is_initialized():
        os.environ[variable] = str(device.index)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before


def _check_head_size(model: PreTrainedModel) -> None:
    """Raise `ValueError` for heads that vLLM has no kernel for on a CPU, which it says only at the first token."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes, size = CPUAttentionBackend.get_supported_head_sizes(), model.config.head_dim
    if size not in sizes:
        raise ValueError(f"on a CPU it has kernels for heads of {', '.join(map(str, sizes))}, not of {size}")


def _refusal(model: PreTrainedModel, error: Exception) -> str:
    """One sentence on why vLLM did not start with the model."""
    reason = " ".join(str(error).split()).partition(". ")[0][:300] or type(error).__name__
    config: Any = model.config
    shape = f"heads of {config.head_dim}, {config.max_position_embeddings} positions"
    return f"vLLM does not start with this model ({shape}): {reason.rstrip('.')}; choose the engine replica"


def sampler_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The model's configuration as vLLM's classes read it: untied, and with the keys that its MiniMax-M2 asks for."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.tie_word_embeddings = False
    if isinstance(config, MiniMaxM2Config):
        config.update({"rotary_dim": config.head_dim, "scoring_func": "sigmoid", "use_routing_bias": True})
    return config
