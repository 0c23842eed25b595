"""The questions that an RL run asks: those of its tasks that fit into the model, and the held-out ones."""

import itertools

from pipelines.configuration.grpo import GRPOConfig
from pipelines.data.corpus import Corpus
from pipelines.data.questions import Question, load_questions
from pipelines.data.tokenizer import fitting
from pipelines.errors import UserError


class Asked:
    """The questions of one run."""

    def __init__(self, config: GRPOConfig, corpus: Corpus, positions: int) -> None:
        """`positions`: tokens that the model has positions for.

        Raises `UserError` if no question of a task fits into them.
        """
        self._config, self._corpus, self._positions = config, corpus, positions
        self.too_long = 0
        """Questions that are not asked because the model has no positions for their prompt and an answer."""
        self.training = self._load("rl")
        """The training questions of each task."""
        self.kept: list[list[int]] | None = None
        """The indices of those within the bounds on the pass rate, by task; None without bounds."""
        self.held_out = self._held_out_questions()

    def _load(self, split: str) -> list[list[Question]]:
        """The questions of each task, without those whose prompt would have to be cut. Counts these in `too_long`."""
        length = self._positions
        sets = []
        for task in self._config.tasks:
            questions = load_questions(task, split, self._corpus)
            prompts = self._corpus.prompts([question.prompt for question in questions])
            fit = [fitting(prompt, length=length, limit=self._config.max_new_tokens) == prompt for prompt in prompts]
            if not any(fit):
                raise UserError(
                    f"grpo.tasks={task}: no question of the split {split!r} fits into the model's {length} tokens with "
                    "an answer; give it shorter questions, or train on longer rows with midtrain.sequence_length"
                )
            sets.append(list(itertools.compress(questions, fit)))
            self.too_long += fit.count(False)
        return sets

    def _held_out_questions(self) -> list[Question]:
        """The first `grpo.held_out_problems` validation questions, one of each task in turn."""
        sets = self._load("validation")
        longest = max(map(len, sets))
        in_turn = [questions[i] for i in range(longest) for questions in sets if i < len(questions)]
        return in_turn[: self._config.held_out_problems]

    def keep(self, kept: list[list[int]] | None) -> None:
        """Train only on the questions with these indices; None keeps all."""
        self.kept = kept
        if kept is not None:
            pairs = zip(self.training, kept, strict=True)
            self.training = [[questions[i] for i in indices] for questions, indices in pairs]

    def longest_sequence(self) -> int:
        """Tokens of the longest prompt, special tokens included, and the longest response together."""
        config = self._config
        prompts = [question.prompt for questions in (*self.training, self.held_out) for question in questions]
        return max(map(len, self._corpus.prompts(prompts))) + max(
            config.response_limit(1), config.response_limit(config.steps)
        )
