"""The interface of a rollout engine: prompts in, sampled tokens with their log-probabilities out.

To add an engine, write a class with this interface whose constructor takes (model, longest) as in `load_engine`, and
add an entry to `pipelines.configuration.grpo.ENGINES`.
"""

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from pipelines.configuration.grpo import ENGINES


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

    def responses(self) -> list[list[int]]:
        """The responses as lists of token ids, the end token included."""
        return [row[:length] for row, length in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]


class Engine(Protocol):
    """Samples responses from the policy."""

    exact: bool
    """Whether `log_probs` equal the learner's, up to rounding. If not, the mismatch is measured."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seed: Sequence[int]
    ) -> Rollouts:
        """Sample `n` responses to each of `prompts` (token ids, none empty).

        `seed` is one of `pipelines.random_streams.stream_seed`. Equal seeds give equal samples.
        """
        ...

    def sync(self, model: PreTrainedModel) -> None:
        """Take the weights of `model` for the next samples."""
        ...


def load_engine(name: str, model: PreTrainedModel, longest: Callable[[], int]) -> Engine:
    """The engine that `grpo.engine` names, which imports only that engine.

    `longest` returns the tokens of the longest prompt and response together. It is a function because it has to
    tokenize every prompt, and not every engine needs it.
    """
    engine: Engine = pkgutil.resolve_name(ENGINES[name])(model, longest)
    return engine
