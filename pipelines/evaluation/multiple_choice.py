"""Benchmarks of kind `choice`: questions whose right answer is the likeliest one for a good model.

The functions that build the items of a task, of four answers, are listed in
`pipelines.configuration.evaluation.CHOICE_TASKS`; plugins have sets of their own, with any number of answers.
"""

import pkgutil

import numpy as np

from pipelines.configuration.evaluation import CHOICE_TASKS, BenchmarkConfig
from pipelines.data.corpus import Corpus
from pipelines.data.selection import evenly
from pipelines.data.tokenizer import fitting_pair
from pipelines.errors import StageFailure
from pipelines.evaluation.context import BenchmarkResult, Coverage, EvaluationContext
from pipelines.evaluation.metrics import estimate
from pipelines.rollouts import likelihoods
from pipelines.rollouts.architectures import positions
from pipelines.tasks.question_sets import CHOICE_SETS, Choices

BATCH_TOKENS = 16_384
CHOICES = 4
CHOICE_TOKENS = 32
"""Tokens of a context and of a continuation in the task `continuation`, and of a text in the task `module`. Context and
continuation fit into the 64 tokens of a row that a nano model is pre-trained on."""

Pair = tuple[list[int], list[int]]
"""Token ids of a context, and of the continuation that is scored after it."""
Item = list[Pair]
"""The pairs of one question; the right one is first."""


def choice_items(corpus: Corpus, benchmark: BenchmarkConfig) -> list[Item]:
    """The items of a benchmark."""
    if of_plugin := CHOICE_SETS.get(benchmark.task):
        questions = of_plugin.read(benchmark.task)
        return [_plugin_item(corpus, questions[i]) for i in evenly(len(questions), benchmark.items)]
    items: list[Item] = pkgutil.resolve_name(CHOICE_TASKS[benchmark.task])(corpus, benchmark.items)
    return items


def _plugin_item(corpus: Corpus, question: Choices) -> Item:
    """The pairs of a plugin's question; continuations are encoded alone, so their beginning has the same tokens."""
    beginning = corpus.encode(question.beginning)
    others = [text for i, text in enumerate(question.continuations) if i != question.right]
    return [
        (beginning, corpus.tokenizer.encode(text, add_special_tokens=False))
        for text in (question.continuations[question.right], *others)
    ]


def measure_choice(context: EvaluationContext, benchmark: BenchmarkConfig) -> BenchmarkResult:
    """Measure how often the right pair is the one whose continuation is the likeliest."""
    items = choice_items(context.corpus, benchmark)
    # All pairs are scored in one list, so that batches are full; `log_probs` [pairs] are in the order of the items.
    pairs = [pair for item in items for pair in item]
    length = positions(context.model)
    contexts, continuations = zip(*(fitting_pair(*pair, length=length) for pair in pairs), strict=True)
    cut = sum(len(context) < len(pair[0]) for context, pair in zip(contexts, pairs, strict=True))
    log_probs = np.empty(len(contexts))
    for batch, scores in likelihoods(context.model, contexts, continuations, batch_tokens=BATCH_TOKENS):
        by_pair = scores.log_probs.split([len(continuations[i]) for i in batch])
        log_probs[batch] = [tokens.sum().item() for tokens in by_pair]
    # The pairs of each item, the right one first.
    by_item = np.split(log_probs, np.cumsum([len(item) for item in items])[:-1])
    right = np.array([scores[0] > scores[1:].max() for scores in by_item])
    available = len(items) if len(items) < benchmark.items else None
    return BenchmarkResult({"accuracy": estimate(right.astype(np.float64))}, Coverage(len(items), available, cut))


def module_items(corpus: Corpus, count: int) -> list[Item]:
    """Knowledge: to which module does a docstring from the training text belong? Contexts are headings of modules."""
    documents = corpus.documents("train")
    _require_choices(len({document.module for document in documents}), "modules with docstrings")
    rng = np.random.default_rng(0)
    items = []
    for index in rng.permutation(len(documents))[:count]:
        document = documents[index]
        # The right module and three others, drawn at random.
        modules = {document.module: None}
        while len(modules) < CHOICES:
            modules.setdefault(documents[rng.integers(len(documents))].module, None)
        # The beginning of the docstring, without the token that begins a text.
        start = "\n" + document.text[: 8 * CHOICE_TOKENS]
        text = corpus.tokenizer.encode(start, add_special_tokens=False)[:CHOICE_TOKENS]
        items.append([(corpus.encode(f"# {module}"), text) for module in modules])
    return items


def continuation_items(corpus: Corpus, count: int) -> list[Item]:
    """Commonsense: which continuation belongs to the beginning of a docstring that was never trained on?"""
    start, stop = CHOICE_TOKENS, 2 * CHOICE_TOKENS
    tokens = [ids.tolist() for ids in corpus.document_tokens("test") if len(ids) >= stop]
    _require_choices(len(tokens), f"held-out docstrings of {stop} tokens")
    rng = np.random.default_rng(0)
    items = []
    for index in rng.permutation(len(tokens))[:count]:
        others = [i for i in rng.permutation(len(tokens)) if i != index][: CHOICES - 1]
        items.append([(tokens[index][:start], tokens[i][start:stop]) for i in (index, *others)])
    return items


def _require_choices(count: int, options: str) -> None:
    """Raise `StageFailure` if `count` is too small for one question."""
    if count < CHOICES:
        raise StageFailure(
            f"data.text: it has {count} {options}, and a question has {CHOICES} choices; add packages, or remove the "
            "multiple-choice benchmarks"
        )
