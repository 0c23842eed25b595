"""The engine that samples the answers of an evaluation, next to the checkpoint that scores given texts.

The default engine is the checkpoint itself in float32. Any other one takes turns with the checkpoint on the device:
while one works, the other waits in main memory. It starts when the first answer is needed that is not stored.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.configuration.engines import engine_fault
from pipelines.configuration.evaluation import EvaluationConfig
from pipelines.errors import StageFailure, UserError
from pipelines.evaluation.benchmark_cache import RANGE_TOKENS
from pipelines.rollouts import Engine, EngineSetting, Finished, Rollouts, Sampling, TransformersEngine, load_engine
from pipelines.rollouts.architectures import positions

logger = logging.getLogger("pipelines")

WeightStream = Callable[..., Iterable[tuple[str, Tensor]]]
"""`pipelines.training.weight_stream.weight_stream` of a model."""

ENGINE_RANGE_TOKENS = 1 << 22
"""Most tokens of a stored range where an engine runs many sequences at a time: few ranges, so few slow ends."""
MEMORY_SHARE = 0.85
"""Share of a GPU's memory for an engine that has the device to itself."""


class Sampler:
    """Samples responses to prompts by the engine of an evaluation."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampler: dict[str, Any] | None = None,
        weights: WeightStream | None = None,
    ) -> None:
        """`sampler` is `EvaluationConfig.sampler`; one that is not None needs the checkpoint's `weights`."""
        self._model, self._tokenizer, self._sampler, self._weights = model, tokenizer, sampler, weights
        self._engine: Engine | None = None
        self._device: torch.device | None = None
        """Where the engine is while it is awake."""

    @property
    def identity(self) -> dict[str, Any]:
        """What stored answers depend on; empty for the checkpoint itself."""
        return {"sampler": self._sampler} if self._sampler else {}

    @property
    def range_tokens(self) -> int:
        """Most tokens that the answers of one stored range may have."""
        return ENGINE_RANGE_TOKENS if self._sampler else RANGE_TOKENS

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        n: int,
        seed: Sequence[int],
        first: int = 0,
        stop: Sequence[str] = (),
        finished: Finished | None = None,
    ) -> Rollouts:
        """See `Engine.generate`."""
        if self._sampler is None:
            engine: Engine = TransformersEngine(self._model, setting=EngineSetting(tokenizer=self._tokenizer))
        else:
            engine = self._awake(self._sampler["engine"])
        return engine.generate(prompts, sampling, n=n, seed=seed, first=first, stop=stop, finished=finished)

    def rest(self) -> None:
        """Give the device to the checkpoint, which is to score texts."""
        if self._engine is not None and self._device is not None:
            with _outside_inference():
                self._engine.sleep()
                self._model.to(self._device)  # type: ignore[arg-type]
            self._device = None

    def close(self) -> None:
        """Release the engine and give the device to the checkpoint."""
        self.rest()
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _awake(self, name: str) -> Engine:
        """The engine with the checkpoint's weights and with the device."""
        if self._engine is not None and self._device is not None:
            return self._engine
        with _outside_inference():
            self._device = self._model.device
            self._model.to("cpu")  # type: ignore[arg-type]
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            if self._engine is None:
                self._engine = self._loaded(name, self._device)
            else:
                self._engine.wake()
        return self._engine

    def _loaded(self, name: str, device: torch.device) -> Engine:
        """A new engine with the checkpoint's weights."""
        assert self._sampler is not None
        assert self._weights is not None
        setting = EngineSetting(
            key="evaluation.engine",
            dtype=getattr(torch, self._sampler["precision"]),
            device=device,
            memory_share=MEMORY_SHARE,
            tokenizer=self._tokenizer,
        )
        longest = positions(self._model)
        engine = load_engine(name, self._model, lambda: longest, setting=setting)
        engine.take(self._weights(checkpoint_names=engine.checkpoint_names))
        logger.info("answers are sampled by %s", ", ".join(f"{key} {value}" for key, value in self._sampler.items()))
        return engine


def _outside_inference() -> Any:
    """Tensors that are made inside inference mode could not be changed outside it."""
    return torch.inference_mode(False)


def check_sampler(config: EvaluationConfig, planned: dict[str, Any] | None) -> None:
    """Raise `UserError` if the engine cannot be used, and `StageFailure` if its version is not the planned one."""
    if planned and (fault := engine_fault(config.engine)):
        raise UserError(f"evaluation.engine={config.engine}: {fault}")
    if planned and config.sampler != planned:
        installed = config.sampler and config.sampler["version"]
        raise StageFailure(
            f"evaluation.engine={config.engine}: its version is {installed}, and was {planned['version']} when this "
            "stage run was planned; launch it again to plan it with the installed one"
        )
