"""The interface of a rollout engine: prompts in, sampled tokens with their log-probabilities out.

To add an engine, write a class with this interface whose constructor takes (model, longest) as in `load_engine`, and an
optional `setting` if evaluations should use it too, and add an entry to `pipelines.configuration.engines.ENGINES`.
"""

import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.configuration.engines import ENGINES, check_routed, check_shared


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled: temperature (0 is greedy), nucleus mass and the longest response in tokens."""

    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Rollouts:
    """Sampled responses; row `i * n + j` is sample j of prompt i."""

    tokens: Tensor
    """[N, T] int64: the response with its end token, then padding."""
    log_probs: Tensor
    """[N, T] float32, 0 on padding: under the tempered distribution before the nucleus is cut (temperature 1 if
    greedy)."""
    lengths: Tensor
    """[N] int64, the end token counted."""
    stopped: Tensor
    """[N] bool: True if the response ended by the end token, False if the limit cut it."""
    experts: tuple[Tensor, ...] | None = None
    """Of each row [P + L - 1, layers, active experts] int16: those that its prompt and its response but the last token
    were sent to, where the setting asks for them."""

    def responses(self) -> list[list[int]]:
        """The responses as lists of token ids, the end token included."""
        return [row[:length] for row, length in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]


def never() -> bool:
    """The default of `interrupted`."""
    return False


Finished = Callable[[Sequence[int], Sequence[list[int]], Sequence[bool]], None]
"""Receives responses that have ended: their rows in `Rollouts`, their tokens, and whether each has stopped."""


class Engine(Protocol):
    """Samples responses from the policy."""

    exact: bool
    """Whether `log_probs` equal those of a learner in float32, up to rounding. If not, the mismatch is measured."""
    checkpoint_names: bool
    """Whether `take` wants weights under the names of a checkpoint, else under those of the model's modules."""

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
        """Sample `n` responses to each of `prompts` (token ids, none empty).

        `seed` is one of `pipelines.random_streams.stream_seed`. Equal seeds give equal samples. Sample j of prompt i
        has the number i n + j. `share` are the consecutive numbers that this engine samples and returns, by default
        all; a sample is the same in any share. `first` is the number of the first prompt if the prompts are part of a
        longer list. A response that contains one of the strings `stop` ends with the token that completes it, and has
        stopped. Raises `Interrupted`, between two batches, once `interrupted()` is true. While others are sampled,
        `finished` may receive responses that have ended, each at most once.
        """
        ...

    def take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take new weights: the whole tensor of each name, router biases and the output layer included.

        Gathering a tensor needs all ranks, so all take the whole stream, or none of it.
        """
        ...

    def sleep(self) -> None:
        """Release the device's memory while the weights are updated."""
        ...

    def wake(self) -> None:
        """Be ready for `take` and `generate` again."""
        ...

    def close(self) -> None:
        """Release everything; the engine is not used again."""
        ...


@dataclass(frozen=True)
class EngineSetting:
    """How an engine is used. The defaults are those of RL, where it shares a device with the learner."""

    key: str = "grpo.engine"
    """The configuration key that names the engine, for error messages."""
    dtype: torch.dtype | None = None
    """Type of the numbers that it computes with; None: the engine's own."""
    device: torch.device | None = None
    """Where it computes; None: where the model is."""
    memory_share: float = 0.4
    """Share of a GPU's memory that it may take while it is awake."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """What turns tokens into text; needed only for stop strings."""
    tensor_parallel: int = 1
    """Consecutive ranks that share an engine."""
    routed_experts: bool = False
    """Whether `Rollouts.experts` is given, of a mixture of experts."""


IN_RL = EngineSetting()


def load_engine(
    name: str,
    model: PreTrainedModel,
    longest: Callable[[], int],
    *,
    sharded: bool = False,
    setting: EngineSetting | None = None,
) -> Engine:
    """The engine that `grpo.engine` or `evaluation.engine` names, which imports only that engine.

    `longest` returns the tokens of the longest prompt and response together. It is a function because it has to
    tokenize every prompt, and not every engine needs it. A `sharded` model cannot sample by itself: the engine
    `transformers` then is a whole copy of the same type. The engine has its weights after the first `take`. RL has a
    `setting` only where ranks share engines or routing is replayed. Raises `UserError` if the engine is not installed
    or does not run this model on this machine, or if the ranks or the model cannot be divided into groups that share
    one.
    """
    check_shared(name, setting.tensor_parallel if setting else 1)
    check_routed(name, bool(setting and setting.routed_experts))
    if sharded and name == "transformers":
        from pipelines.rollouts.replica_engine import WholeEngine

        return WholeEngine(model, longest, setting or IN_RL)
    load = pkgutil.resolve_name(ENGINES[name])
    engine: Engine = load(model, longest) if setting is None else load(model, longest, setting)
    return engine
