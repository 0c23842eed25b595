"""From questions to groups with rewards: sampling, verifying, and dynamic sampling.

A group whose rewards are all equal has no advantage, so it is dropped and another prompt replaces it (DAPO), until the
batch is full or a limited number of extra rounds is over, which is counted. The size of an extra round follows from the
share of mixed groups so far. Groups are kept in the order of their prompts, so the kept ones are a fair sample of the
mixed groups.

With several ranks, all draw the same questions, and each samples and verifies a consecutive share of the responses.
Rewards, lengths and ends are gathered, so every rank knows the same groups and the same next round; tokens stay where
they were sampled.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines.configuration.grpo import GRPOConfig
from pipelines.data.questions import Question
from pipelines.data.tokenizer import encode
from pipelines.grpo.communicator import SINGLE_PROCESS, Communicator
from pipelines.grpo.sharing import consecutive
from pipelines.random_streams import Stream, stream_seed
from pipelines.rollouts import Engine, Sampling, never, verified
from pipelines.verifiers import Judge
from pipelines.verifiers.judge import FAILURES

NOTHING = torch.empty(0)
"""The log-probabilities of a response that another rank has."""

LEAST_SHARE = 0.125
"""Lower bound on the share of mixed groups that sets the size of an extra round."""


@dataclass
class Group:
    """One prompt and its n responses, of which other ranks may have the tokens."""

    question: Question
    prompt: list[int]
    """Token ids."""
    responses: list[list[int]]
    """Token ids, the end token included; empty where another rank has them."""
    log_probs: list[Tensor]
    """Of each response's tokens, under the policy that sampled them; empty where another rank has them."""
    texts: list[str]
    """Empty where another rank has the response, and of groups that an earlier attempt left over."""
    rewards: Tensor
    """[n], 0 to 1, from the verifier; 0 for a response that the limit cut."""
    stopped: Tensor
    """[n] bool: whether the response ended before the limit."""
    lengths: Tensor
    """[n] int64: tokens of each response."""
    owners: list[int]
    """[n]: the rank that has each response."""
    step: int
    """The step that sampled the group."""
    experts: list[Tensor] = field(default_factory=list)
    """Of each response, `Rollouts.experts`; empty where another rank has them; no list without routing replay."""

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
    missing: int = 0
    """Groups that the batch has fewer than `grpo.prompts`, because the bound on extra rounds was hit."""
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))
    """Samples whose verifier failed, by kind of failure; their reward is 0."""


class _LocalSamples(NamedTuple):
    """What one rank has sampled."""

    outcomes: Tensor
    """[rows, 4] float64: reward, tokens, whether the response ended, and 1 + the index of its failure, or 0."""
    responses: dict[int, list[int]]
    """By row of the whole batch, as the others."""
    log_probs: dict[int, Tensor]
    texts: dict[int, str]
    experts: dict[int, Tensor]
    """Empty without routing replay."""


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
        prompts: Callable[[Sequence[str]], list[list[int]]] | None = None,
        communicator: Communicator = SINGLE_PROCESS,
        interrupted: Callable[[], bool] = never,
    ) -> None:
        """`prompts` turns questions into token ids, by default as plain text.

        Raises `Interrupted` between two batches of rollouts once `interrupted()` is true on any rank."""
        self._config, self._engine, self._judge, self._tokenizer = config, engine, judge, tokenizer
        self._prompts = prompts or (lambda texts: [encode(tokenizer, text) for text in texts])
        self._questions, self._seed = questions, seed
        self._communicator, self._interrupted = communicator, interrupted
        self._waiting: list[Group] = []

    def collect(self, step: int) -> Collected:
        """The groups of step 1, 2, ...: `grpo.prompts` of them, or fewer if the extra rounds do not find as many.

        After an exception, also `Interrupted`, the step can be collected again, with the same result.
        """
        before = self._questions.drawn, self._waiting
        try:
            return self._collect(step)
        except BaseException:
            self._questions.drawn, self._waiting = before
            raise

    def _collect(self, step: int) -> Collected:
        config = self._config
        result = Collected()
        usable, self._waiting = list(self._waiting), []
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
        result.left_over, result.missing = len(left_over), config.prompts - len(result.kept)
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
        prompts = self._prompts([question.prompt for question in questions])
        sampling = Sampling(self._config.temperature, 1.0, self._config.response_limit(max(1, step)))
        local = self._communicator.together(lambda: self._local_samples(questions, prompts, sampling, seed=seed))
        # [questions x n, 4]; row i * n + j is sample j of question i, and each rank has consecutive rows.
        rewards, lengths, stopped, failed = self._communicator.concatenated(local.outcomes).unbind(1)
        if failures is not None:
            for code in failed[failed > 0].int().tolist():
                kind = FAILURES[code - 1]
                failures[kind] = failures.get(kind, 0) + 1
        shares = [consecutive(len(rewards), rank, self._communicator.ranks) for rank in range(self._communicator.ranks)]
        owners = [rank for rank, share in enumerate(shares) for _ in share]
        groups = []
        for i, question in enumerate(questions):
            rows = range(i * n, (i + 1) * n)
            part = slice(rows.start, rows.stop)
            groups.append(
                Group(
                    question=question,
                    prompt=prompts[i],
                    responses=[local.responses.get(row, []) for row in rows],
                    log_probs=[local.log_probs.get(row, NOTHING) for row in rows],
                    texts=[local.texts.get(row, "") for row in rows],
                    rewards=rewards[part].float(),
                    stopped=stopped[part] > 0,
                    lengths=lengths[part].long(),
                    owners=owners[part],
                    step=step,
                    experts=[local.experts.get(row, NOTHING) for row in rows] if self._config.routing_replay else [],
                )
            )
        return groups

    def _local_samples(
        self,
        questions: Sequence[Question],
        prompts: list[list[int]],
        sampling: Sampling,
        *,
        seed: Sequence[int],
    ) -> _LocalSamples:
        """Sample this rank's share, and verify what has ended while the rest is still sampled."""
        n = self._config.samples
        # Also an empty share is asked for: this rank may compute a part of an engine that others sample from.
        share = self._communicator.share(len(questions) * n)
        result = verified(
            partial(
                self._engine.generate, prompts, sampling, n=n, seed=seed, share=share, interrupted=self._interrupted
            ),
            self._judge,
            decode=partial(self._tokenizer.batch_decode, skip_special_tokens=True),
            item=lambda row, text, stopped: questions[share[row] // n].judged(text, complete=stopped),
            interrupted=self._interrupted,
        )
        rollouts, responses, stopped = result.rollouts, result.rollouts.responses(), result.rollouts.stopped.tolist()
        outcomes = [
            [verdict.reward, len(response), complete, FAILURES.index(verdict.failure) + 1 if verdict.failure else 0]
            for verdict, response, complete in zip(result.verdicts, responses, stopped, strict=True)
        ]
        log_probs = [rollouts.log_probs[i, : len(response)].clone() for i, response in enumerate(responses)]
        return _LocalSamples(
            torch.tensor(outcomes, dtype=torch.float64).reshape(-1, 4),
            dict(zip(share, responses, strict=True)),
            dict(zip(share, log_probs, strict=True)),
            dict(zip(share, result.texts, strict=True)),
            dict(zip(share, rollouts.experts or (), strict=False)),
        )

    def state_dict(self) -> dict[str, Any]:
        """The position in the questions and the waiting groups without their tokens, as plain JSON."""
        return {
            "drawn": self._questions.drawn,
            "waiting": [
                {
                    "question": vars(group.question),
                    "prompt": group.prompt,
                    "step": group.step,
                    **{key: getattr(group, key).tolist() for key in ("rewards", "stopped", "lengths")},
                }
                for group in self._waiting
            ],
        }

    def tensors(self) -> dict[str, Tensor]:
        """The tokens of the waiting groups and their log-probabilities, one response after another, on every rank."""
        rows = [(group, j) for group in self._waiting for j in range(len(group.owners))]
        if not rows:
            return {}
        tokens = torch.tensor([token for group, j in rows for token in group.responses[j]], dtype=torch.int64)
        log_probs = torch.cat([group.log_probs[j] for group, j in rows])
        # Gathered rank by rank, and put back into the order of the rows.
        by_owner = sorted(range(len(rows)), key=lambda i: rows[i][0].owners[rows[i][1]])
        sizes = [int(rows[i][0].lengths[rows[i][1]]) for i in by_owner]
        result = {}
        for name, local in zip(WAITING, (tokens, log_probs), strict=True):
            parts = dict(zip(by_owner, self._communicator.concatenated(local).split(sizes), strict=True))
            result[name] = torch.cat([parts[i] for i in range(len(rows))])
        return result

    def load_state_dict(self, state: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore `state_dict` and `tensors`; every response goes to a rank, whichever had it before."""
        self._questions.drawn = state["drawn"]
        self._waiting = []
        lengths = [length for group in state["waiting"] for length in group["lengths"]]
        parts = [tensors[name].split(lengths) for name in WAITING] if lengths else [(), ()]
        rows = list(zip(*parts, strict=True))
        for group in state["waiting"]:
            n = len(group["lengths"])
            local, rows = rows[:n], rows[n:]
            shares = [consecutive(n, rank, self._communicator.ranks) for rank in range(self._communicator.ranks)]
            owned = shares[self._communicator.rank]
            self._waiting.append(
                Group(
                    question=Question(**group["question"]),
                    prompt=group["prompt"],
                    responses=[tokens.tolist() if j in owned else [] for j, (tokens, _) in enumerate(local)],
                    log_probs=[log_probs if j in owned else NOTHING for j, (_, log_probs) in enumerate(local)],
                    texts=[""] * n,
                    rewards=torch.tensor(group["rewards"]),
                    stopped=torch.tensor(group["stopped"]),
                    lengths=torch.tensor(group["lengths"]),
                    owners=[rank for rank, share in enumerate(shares) for _ in share],
                    step=group["step"],
                )
            )


WAITING = ("waiting.tokens", "waiting.log_probs")
"""Names of the waiting groups' tensors in a trainer state."""


def empty_waiting(state: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors to read `Collector.tensors` into, for the groups of `Collector.state_dict`."""
    size = sum(sum(group["lengths"]) for group in state["waiting"])
    return dict(zip(WAITING, (torch.empty(size, dtype=torch.int64), torch.empty(size)), strict=True)) if size else {}
