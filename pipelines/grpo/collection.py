"""From questions to groups with rewards: sampling, verifying, and dynamic sampling.

A group whose rewards are all equal has no advantage, so it is dropped and another prompt replaces it, for a limited
number of extra rounds (DAPO). The size of an extra round follows from the share of mixed groups so far. Groups are kept
in the order of their prompts, so the kept ones are a fair sample of the mixed groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines.configuration.grpo import GRPOConfig
from pipelines.data.questions import Question
from pipelines.data.tokenizer import encode
from pipelines.random_streams import Stream, stream_seed
from pipelines.rollouts import Engine, Sampling
from pipelines.verifiers import Judge
from pipelines.verifiers.judge import FAILURES

LEAST_SHARE = 0.125
"""Lower bound on the share of mixed groups that sets the size of an extra round."""


@dataclass
class Group:
    """One prompt and its n responses."""

    question: Question
    prompt: list[int]
    """Token ids."""
    responses: list[list[int]]
    """Token ids, the end token included."""
    log_probs: list[Tensor]
    """Of each response's tokens, under the policy that sampled them."""
    texts: list[str]
    rewards: Tensor
    """[n], 0 to 1, from the verifier; 0 for a response that the limit cut."""
    stopped: Tensor
    """[n] bool: whether the response ended before the limit."""
    step: int
    """The step that sampled the group."""

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, [n]."""
        return torch.tensor([len(response) for response in self.responses])

    @property
    def mixed(self) -> bool:
        """Whether rewards differ, so that there is something to learn."""
        return bool((self.rewards != self.rewards[0]).any())


@dataclass
class Collected:
    """The groups of one step."""

    kept: list[Group] = field(default_factory=list)
    """Those that the step learns from."""
    sampled: list[Group] = field(default_factory=list)
    """Those that the step sampled, kept or dropped."""
    rounds: int = 0
    left_over: int = 0
    """Mixed groups that the step does not need."""
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))
    """Samples whose verifier failed, by kind of failure; their reward is 0."""


class Questions:
    """An endless stream of questions: the data sets in turn, each in shuffled passes. `drawn` is its whole state."""

    def __init__(self, sets: Sequence[Sequence[Question]], seed: int) -> None:
        self._sets, self._seed = sets, seed
        self.drawn = 0
        self._orders: dict[tuple[int, int], list[int]] = {}
        """(data set, pass) -> the order of its questions; only the current pass of each set is kept."""

    def draw(self) -> Question:
        """The next question."""
        set_index, turn = self.drawn % len(self._sets), self.drawn // len(self._sets)
        questions = self._sets[set_index]
        key = (set_index, turn // len(questions))
        if key not in self._orders:
            self._orders = {other: order for other, order in self._orders.items() if other[0] != set_index}
            generator = np.random.default_rng(stream_seed(Stream.QUESTION_ORDER, self._seed, *key))
            self._orders[key] = generator.permutation(len(questions)).tolist()
        self.drawn += 1
        return questions[self._orders[key][turn % len(questions)]]


class Collector:
    """Samples the groups of each step. With `leftovers=keep`, groups that are left over wait here for the next step."""

    def __init__(
        self,
        config: GRPOConfig,
        engine: Engine,
        judge: Judge,
        *,
        tokenizer: PreTrainedTokenizerFast,
        questions: Questions,
        seed: int,
    ) -> None:
        self._config, self._engine, self._judge, self._tokenizer = config, engine, judge, tokenizer
        self._questions, self._seed = questions, seed
        self._waiting: list[Group] = []

    def collect(self, step: int) -> Collected:
        """The groups of step 1, 2, ...: `grpo.prompts` of them, or fewer if the extra rounds do not find as many."""
        config = self._config
        result = Collected()
        usable, self._waiting = self._waiting, []
        mixed_share = 1.0
        for round_ in range(1 + (config.resample_rounds if config.dynamic_sampling else 0)):
            missing = config.prompts - len(usable)
            if missing <= 0:
                break
            # Ask as many prompts as should give the missing groups if the share of mixed ones stays the same.
            count = min(config.prompts, math.ceil(missing / max(mixed_share, LEAST_SHARE)))
            questions = [self._questions.draw() for _ in range(count)]
            seed = stream_seed(Stream.ROLLOUTS, self._seed, step, round_)
            groups = self.sample(questions, step=step, seed=seed, failures=result.failures)
            result.sampled += groups
            result.rounds += 1
            usable += [group for group in groups if group.mixed or not config.dynamic_sampling]
            mixed_share = sum(group.mixed for group in result.sampled) / len(result.sampled)
        result.kept, left_over = usable[: config.prompts], usable[config.prompts :]
        result.left_over = len(left_over)
        if config.leftovers == "keep":
            self._waiting = left_over
        return result

    def sample(
        self,
        questions: Sequence[Question],
        *,
        step: int,
        seed: Sequence[int],
        failures: dict[str, int] | None = None,
    ) -> list[Group]:
        """One group per question, with rewards. Adds the verifiers' failures to the counts in `failures`."""
        n = self._config.samples
        prompts = [encode(self._tokenizer, question.prompt) for question in questions]
        sampling = Sampling(self._config.temperature, 1.0, self._config.response_limit(max(1, step)))
        # Row i * n + j of everything below is sample j of question i.
        rollouts = self._engine.generate(prompts, sampling, n=n, seed=seed)
        responses = rollouts.responses()
        texts = self._tokenizer.batch_decode(responses, skip_special_tokens=True)
        stopped = rollouts.stopped.tolist()
        judged = [questions[row // n].judged(text, complete=stopped[row]) for row, text in enumerate(texts)]
        verdicts = self._judge.rewards(judged)
        if failures is not None:
            for verdict in verdicts:
                if verdict.failure:
                    failures[verdict.failure] = failures.get(verdict.failure, 0) + 1
        rewards = torch.tensor([verdict.reward for verdict in verdicts])
        groups = []
        for i, question in enumerate(questions):
            first, last = i * n, (i + 1) * n
            groups.append(
                Group(
                    question=question,
                    prompt=prompts[i],
                    responses=responses[first:last],
                    log_probs=[rollouts.log_probs[row, : len(responses[row])].clone() for row in range(first, last)],
                    texts=texts[first:last],
                    rewards=rewards[first:last],
                    stopped=rollouts.stopped[first:last],
                    step=step,
                )
            )
        return groups

    def state_dict(self) -> dict[str, Any]:
        """The position in the questions and the waiting groups, as numbers, strings and tensors."""
        return {
            "drawn": self._questions.drawn,
            "waiting": [vars(group) | {"question": vars(group.question)} for group in self._waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._questions.drawn = state["drawn"]
        self._waiting = [Group(**{**group, "question": Question(**group["question"])}) for group in state["waiting"]]
