"""Benchmarks of kind `text`: perplexity and statistics of the model's distribution on held-out text."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.configuration.evaluation import BenchmarkConfig
from pipelines.data.corpus import Corpus
from pipelines.data.selection import evenly
from pipelines.data.token_shards import ShardRows
from pipelines.errors import StageFailure
from pipelines.evaluation import distribution
from pipelines.evaluation.context import BenchmarkResult, Coverage, EvaluationContext
from pipelines.evaluation.metrics import Estimate, mean_and_error
from pipelines.tasks.question_sets import TEXT_SETS
from shaping.objective import Objective
from shaping.statistics import entropy, head_tail_mass
from shaping.theory import stationary_distribution

THEORY_TOKENS = 64
"""Tokens whose stationary distribution is computed, which takes milliseconds for each."""
THEORY_BATCH = 64
"""Rows of one forward pass for these tokens."""


class HeldOutRows(NamedTuple):
    """Rows of held-out text."""

    tokens: NDArray[Any]
    """Token ids [rows, length + 1]."""
    domains: NDArray[np.int64]
    """The domain of each token [rows, length + 1], an index into `domain_names`."""
    domain_names: list[str]
    """Packages of the documents, or the source of token shards or of a plugin."""
    available: int
    """All rows of the test split."""


def held_out_rows(corpus: Corpus, benchmark: BenchmarkConfig, length: int) -> HeldOutRows:
    """The rows that a benchmark measures, spread evenly over the test split.

    Raises `StageFailure` if the text has fewer than `length` + 1 tokens.
    """
    of_plugin = TEXT_SETS.get(benchmark.task)
    rows: NDArray[Any] | ShardRows
    if of_plugin:
        rows = corpus.rows_of_texts(of_plugin.read(benchmark.task), length)
    else:
        rows = corpus.rows(benchmark.task, "test", length)
    if not len(rows):
        way_out = "let its plugin return more" if of_plugin else "add packages to data.text"
        raise StageFailure(
            f"evaluation.text_length={length}: the held-out text of {benchmark.task} has fewer tokens; use a smaller "
            f"value, or {way_out}"
        )
    chosen = evenly(len(rows), benchmark.items)
    # Token shards do not record documents: their domain is the source. In other text it is the document's package.
    if of_plugin or isinstance(rows, ShardRows):
        tokens = rows[chosen]
        return HeldOutRows(tokens, np.zeros(tokens.shape, dtype=np.int64), [benchmark.task], len(rows))
    rows, documents = corpus.rows_with_documents(benchmark.task, "test", length)
    packages = [document.module.split(".")[0] for document in corpus.documents("test")]
    names = list(dict.fromkeys(packages))
    package_indices = np.array([names.index(package) for package in packages])
    return HeldOutRows(rows[chosen], package_indices[documents[chosen]], names, len(rows))


def measure_text(context: EvaluationContext, benchmark: BenchmarkConfig) -> BenchmarkResult:
    """Measure perplexity, entropy and the other metrics of `distribution.headline`."""
    control, corpus = context.control, context.corpus
    rows = held_out_rows(corpus, benchmark, context.config.text_length)
    coverage = Coverage(len(rows.tokens), rows.available)
    # A theory control has entropy and masses only.
    if control.objective is not None:
        return BenchmarkResult(_stationary_metrics(context, rows.tokens, control.objective), coverage)
    # A matched control, like the model itself, has all metrics.
    transform = distribution.tempered(control.temperature) if control.name else distribution.unchanged
    table = distribution.token_table(context.model, rows.tokens, context.top_k, transform=transform)
    byte_lengths = distribution.byte_lengths(corpus)
    metrics = distribution.headline(table, context.top_k, byte_lengths)
    if control.name:
        metrics["temperature"] = Estimate(control.temperature, None, len(rows.tokens))
    detail = distribution.detail(
        table, corpus, byte_lengths, domains=rows.domains[:, 1:], domain_names=rows.domain_names
    )
    return BenchmarkResult(metrics, coverage, detail=detail)


def _stationary_metrics(context: EvaluationContext, tokens: NDArray[Any], objective: Objective) -> dict[str, Estimate]:
    """Entropy and masses of the stationary distributions of `objective` for the model's distributions as the data's.

    They are computed for a few tokens only. The mean difference from the model's own distribution on these is added to
    the model's mean over all tokens, so that the choice of the tokens has little effect.
    """
    model, top_k, length = context.model, context.top_k, tokens.shape[1] - 1
    table = distribution.token_table(model, tokens, top_k)

    # The model's distributions q [T, V] at T tokens spread evenly over the text, and the stationary ones p [T, V].
    rows, positions = np.divmod(evenly(len(tokens) * length, THEORY_TOKENS), length)
    inputs = torch.from_numpy(tokens[rows, :-1].astype(np.int64)).to(model.device)
    logits = torch.cat([model(input_ids=batch).logits for batch in inputs.split(THEORY_BATCH)])
    q = logits[torch.arange(len(positions)), torch.from_numpy(positions)].double().cpu().softmax(-1)
    p = stationary_distribution(q, objective)

    # Add the mean difference p - q to the mean over all tokens; both errors add up in quadrature.
    k = min(top_k, q.shape[1])
    differences = {
        "entropy": (table.entropy, torch.special.entr(p).sum(-1) - entropy(q.log())),
        "head_mass": (table.head_mass[k], head_tail_mass(p.log(), k)[0] - head_tail_mass(q.log(), k)[0]),
    }
    metrics: dict[str, Estimate] = {}
    for metric, (all_tokens, difference) in differences.items():
        mean, mean_error = mean_and_error(all_tokens.mean(1))
        change, change_error = mean_and_error(difference.numpy())
        error = float(np.hypot(mean_error or 0.0, change_error or 0.0))
        metrics[metric] = Estimate(mean + change, error, len(tokens))
    head = metrics["head_mass"]
    metrics["tail_mass"] = Estimate(1 - head.value, head.stderr, head.n)
    return metrics
