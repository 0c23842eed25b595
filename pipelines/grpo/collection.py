"""From questions to groups with rewards: sampling, verifying, and dynamic sampling.

A group whose rewards are all equal has no advantage and teaches nothing, so it is dropped and another prompt takes
its place, for a bounded number of extra rounds (DAPO). An extra round asks as many prompts as the share of mixed
groups so far makes likely to be enough. Groups are kept in the order in which they were asked, so the ones that are
kept are a fair sample of the mixed groups.
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
from pipelines.rollouts import Engine, Sampling
from pipelines.verifiers import Judge

LEAST_SHARE = 0.125
"""The share of mixed groups is taken for at least this when an extra round is sized."""


@dataclass
class Group:
    """One prompt's n responses."""

    question: Question
    prompt: list[int]
    responses: list[list[int]]
    log_probs: list[Tensor]
    """Of each response's tokens, under the policy that sampled them."""
    texts: list[str]
    rewards: Tensor
    """[n] from the verifier, 0 to 1; a response that was cut has 0."""
    stopped: Tensor
    """[n] bool: ended by itself."""
    step: int
    """When it was sampled."""

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, [n]."""
        return torch.tensor([len(response) for response in self.responses])

    @property
    def mixed(self) -> bool:
        """Whether there is anything to learn from: some better than others."""
        return bool((self.rewards != self.rewards[0]).any())


@dataclass
class Collected:
    """What one step sampled and what of it is learned from."""

    kept: list[Group] = field(default_factory=list)
    sampled: list[Group] = field(default_factory=list)
    rounds: int = 0
    left_over: int = 0
    """Mixed groups beyond what the step needs."""
    failures: dict[str, int] = field(default_factory=lambda: {"timeout": 0, "error": 0})
    """Samples whose verifier failed; their reward is 0."""


class Questions:
    """Questions for ever: data sets in turn, each in shuffled passes. `drawn` is the whole state."""

    def __init__(self, sets: Sequence[Sequence[Question]], seed: int) -> None:
        self._sets, self._seed = sets, seed
        self.drawn = 0
        self._order: dict[tuple[int, int], list[int]] = {}

    def draw(self) -> Question:
        """The next question."""
        which, turn = self.drawn % len(self._sets), self.drawn // len(self._sets)
        questions = self._sets[which]
        place = (which, turn // len(questions))
        if place not in self._order:
            self._order = {key: order for key, order in self._order.items() if key[0] != which}
            self._order[place] = np.random.default_rng([self._seed, 4, *place]).permutation(len(questions)).tolist()
        self.drawn += 1
        return questions[self._order[place][turn % len(questions)]]


class Collector:
    """Samples groups step by step; what is left over waits here for the next step where it is kept."""

    def __init__(
        self,
        config: GRPOConfig,
        engine: Engine,
        judge: Judge,
        tokenizer: PreTrainedTokenizerFast,
        questions: Questions,
        seed: int,
    ) -> None:
        self._config, self._engine, self._judge, self._tokenizer = config, engine, judge, tokenizer
        self._questions, self._seed = questions, seed
        self._waiting: list[Group] = []

    def collect(self, step: int) -> Collected:
        """The groups of step 1, 2, ...: `prompts` of them, fewer where the extra rounds did not find so many."""
        config = self._config
        result = Collected()
        found, self._waiting = self._waiting, []
        share = 1.0
        for round_ in range(1 + (config.resample_rounds if config.dynamic_sampling else 0)):
            missing = config.prompts - len(found)
            if missing <= 0:
                break
            count = min(config.prompts, math.ceil(missing / max(share, LEAST_SHARE)))
            groups = self.sample(
                [self._questions.draw() for _ in range(count)], step, (self._seed, step, round_), result
            )
            result.sampled += groups
            result.rounds += 1
            found += [group for group in groups if group.mixed or not config.dynamic_sampling]
            share = sum(group.mixed for group in result.sampled) / len(result.sampled)
        result.kept, over = found[: config.prompts], found[config.prompts :]
        result.left_over = len(over)
        if config.leftovers == "keep":
            self._waiting = over
        return result

    def sample(
        self, questions: Sequence[Question], step: int, seed: Sequence[int], counts: Collected | None = None
    ) -> list[Group]:
        """One group a question, with rewards; failures of verifiers are added to `counts`."""
        n = self._config.samples
        prompts = [self._encode(question.prompt) for question in questions]
        sampling = Sampling(self._config.temperature, 1.0, self._config.response_limit(max(1, step)))
        rollouts = self._engine.generate(prompts, n, sampling, seed)
        responses = rollouts.responses()
        texts = self._tokenizer.batch_decode(responses, skip_special_tokens=True)
        verdicts = self._judge.rewards([questions[i // n].judged(text) for i, text in enumerate(texts)])
        for verdict in verdicts:
            if counts and verdict.failure:
                counts.failures[verdict.failure] += 1
        rewards = torch.tensor([verdict.reward for verdict in verdicts]) * rollouts.stopped
        groups = []
        for i, question in enumerate(questions):
            rows = slice(i * n, (i + 1) * n)
            groups.append(
                Group(
                    question,
                    prompts[i],
                    responses[rows],
                    [rollouts.log_probs[row, : len(responses[row])].clone() for row in range(i * n, (i + 1) * n)],
                    texts[rows],
                    rewards[rows],
                    rollouts.stopped[rows],
                    step,
                )
            )
        return groups

    def _encode(self, text: str) -> list[int]:
        """Token ids after the end-of-text token that begins every document."""
        return [self._tokenizer.eos_token_id, *self._tokenizer.encode(text, add_special_tokens=False)]

    def state_dict(self) -> dict[str, Any]:
        """Place in the questions, and the groups that wait: numbers, strings and tensors only."""
        return {
            "drawn": self._questions.drawn,
            "waiting": [vars(group) | {"question": vars(group.question)} for group in self._waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._questions.drawn = state["drawn"]
        self._waiting = [Group(**{**group, "question": Question(**group["question"])}) for group in state["waiting"]]
