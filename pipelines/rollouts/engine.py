"""What a rollout engine is: prompts in, sampled tokens with their log-probabilities and ends out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: temperature (0 is greedy), nucleus mass and the longest response in tokens."""

    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Rollouts:
    """Sampled responses; row `i * n + j` is sample j of prompt i.

    tokens [N, T] int64 with the end token, then padding; log_probs [N, T] float32 under the tempered distribution
    before the nucleus is cut (that of temperature 1 when greedy), 0 on padding; lengths [N] int64, the end token
    counted; stopped [N] bool, the finish reason: True where the end token came, False where the limit cut.
    """

    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor
    stopped: Tensor

    def responses(self) -> list[list[int]]:
        """The responses as lists of token ids, the end token included."""
        return [row[:length] for row, length in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]


class Engine(Protocol):
    """Samples responses from the policy."""

    exact: bool
    """Whether `log_probs` are the learner's own, up to rounding; otherwise the mismatch is measured."""

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: Sequence[int]) -> Rollouts:
        """Sample `n` responses to each of `prompts` (token ids, none empty).

        `seed` is a path of non-negative integers, such as (run seed, step, round): the same path, the same samples.
        """
        ...

    def sync(self, model: PreTrainedModel) -> None:
        """Take over the weights of `model`, from which the next samples are drawn."""
        ...
