"""Evaluation contexts for tests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.configuration.evaluation import EvaluationConfig
from pipelines.data.corpus import Corpus
from pipelines.evaluation.benchmark_cache import BenchmarkCache
from pipelines.evaluation.context import EvaluationContext
from tests.pipelines.contexts import stage_context


@contextlib.contextmanager
def evaluation_context(
    corpus: Corpus, folder: Path, config: EvaluationConfig, **fields: Any
) -> Iterator[EvaluationContext]:
    """A context whose results and cache are in `folder`; `fields` are others of `EvaluationContext`."""
    defaults = {"top_k": 8, "cache": BenchmarkCache(folder / "cache", {})}
    with stage_context(corpus, folder) as stage:
        yield EvaluationContext(stage=stage, config=config, **{**defaults, **fields})
