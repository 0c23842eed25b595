"""Evaluation of a checkpoint: held-out text, multiple choice, sampled answers, and tasks of lm-eval.

Items are the same for every checkpoint, and the seeds of samples depend only on the benchmark, so two checkpoints
differ by their models only. Results are stored by benchmark and range of items, so nothing is measured twice
(`pipelines.evaluation.benchmark_cache`).
"""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from pipelines.configuration.evaluation import HARNESS, BenchmarkConfig, EvaluationConfig
from pipelines.data.corpus import Corpus
from pipelines.data.questions import load_items
from pipelines.errors import MissingData
from pipelines.evaluation.benchmark_cache import Rows
from pipelines.evaluation.context import BenchmarkResult, Coverage, EvaluationContext
from pipelines.evaluation.held_out_text import held_out_rows, measure_text
from pipelines.evaluation.metrics import Estimate
from pipelines.evaluation.multiple_choice import choice_items, measure_choice
from pipelines.evaluation.sampled_answers import measure_samples
from pipelines.evaluation.samples import SAMPLES, Sample, write_rows
from pipelines.files import replacing
from pipelines.tasks.question_sets import plugin_set

logger = logging.getLogger("pipelines")

SHOWN = 4
"""Sampled answers of each benchmark in the tracker's table; `samples.jsonl.gz` has all."""


def evaluate(context: EvaluationContext) -> dict[str, Any]:
    """Measure the checkpoint on every benchmark; writes the sampled answers and `distribution.json`.

    Returns `{"metrics": benchmark/metric -> value, "measurements": [...], "coverage": benchmark -> Coverage, "missing":
    benchmark -> reason}`; fractions are between 0 and 1, entropy is in nats, response length in tokens. A benchmark
    whose data set is not available is missing; the others are measured.
    """
    measurements: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    missing: dict[str, str] = {}
    coverage: dict[str, dict[str, Any]] = {}
    samples: list[Sample] = []
    stage, control = context.stage, context.control
    benchmarks = context.config.benchmarks
    for step, (name, benchmark) in enumerate(benchmarks.items(), start=1):
        started = time.time()
        progress = (step, len(benchmarks), name, benchmark.items)
        logger.info("benchmark %d of %d started: %s, up to %d items", *progress)
        try:
            with torch.inference_mode():
                result = _measure(context, name, benchmark)
        except MissingData as error:
            missing[name] = str(error)
            row = {"step": step, "benchmark": name, "missing": str(error)}
            stage.ledger.log(row | {"seconds": time.time() - started})
            continue
        # One measurement for each metric, and one ledger row for the benchmark.
        labels = {"benchmark": name, "group": benchmark.group}
        variant = {"variant": control.name} if control.name else {}
        for metric, estimate in result.metrics.items():
            measurements.append(labels | {"metric": metric, **estimate._asdict()} | variant)
        samples += [{"benchmark": name, **sample} for sample in result.samples]
        if result.detail:
            details[name] = result.detail
        coverage[name] = asdict(result.coverage)
        _log_coverage(name, result.coverage)
        values = {f"{name}/{metric}": estimate.value for metric, estimate in result.metrics.items()}
        row = {"step": step, "benchmark": name, **values, **coverage[name]}
        stage.ledger.log(row | {"seconds": time.time() - started})

    # Files next to the result: all samples, and statistics that are not a single number.
    write_rows(stage.output / SAMPLES, samples)
    if details:
        with replacing(stage.output / "distribution.json") as temporary:
            temporary.write_text(json.dumps(details) + "\n")
    stage.ledger.samples("samples", list(_shown(samples)))
    metrics = {f"{m['benchmark']}/{m['metric']}": m["value"] for m in measurements}
    outcome = {"metrics": metrics, "measurements": measurements, "coverage": coverage}
    return outcome | ({"missing": missing} if missing else {})


def _log_coverage(name: str, coverage: Coverage) -> None:
    """Log how many of a benchmark's items were measured, and what was cut."""
    of = "" if coverage.available is None else f" of {coverage.available}"
    cut = (coverage.cut_prompts, coverage.cut_answers)
    logger.info("%s: measured %d%s items; %d prompts and %d answers were cut", name, coverage.items, of, *cut)


def _shown(samples: list[Sample]) -> Iterator[Sample]:
    """The first `SHOWN` samples of each benchmark."""
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample["benchmark"]] = counts.get(sample["benchmark"], 0) + 1
        if counts[sample["benchmark"]] <= SHOWN:
            yield sample


def _measure(context: EvaluationContext, name: str, benchmark: BenchmarkConfig) -> BenchmarkResult:
    """Measure one benchmark, or return its stored result."""
    if benchmark.kind in HARNESS:
        from pipelines.evaluation.lm_eval_tasks import run_task  # lm-eval is an extra

        return run_task(context, name, benchmark)
    if benchmark.kind == "sampled":
        return measure_samples(context, name, benchmark)

    # Text and multiple choice are quick: one stored row holds the whole result.
    key: dict[str, Any] = {"kind": benchmark.kind, "task": benchmark.task, "items": benchmark.items}
    if benchmark.kind == "text":
        key |= {"text_length": context.config.text_length}
    if items := plugin_set(benchmark.kind, benchmark.task):
        key |= {"source": items.source}
    measure = measure_text if benchmark.kind == "text" else measure_choice

    def compute(_: range) -> Rows:
        context.sampler.rest()
        result = measure(context, benchmark)
        return [{"found": result.metrics, "detail": result.detail, "coverage": asdict(result.coverage)}]

    (row,) = context.cache.rows(name, key, ranges=[range(benchmark.items)], compute=compute)
    metrics = {metric: Estimate(*values) for metric, values in row["found"].items()}
    return BenchmarkResult(metrics, Coverage(**row["coverage"]), detail=row["detail"])


def evaluation_texts(config: EvaluationConfig, corpus: Corpus) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The texts of each benchmark's items, to search for contamination, and why those of some are not available."""
    texts: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for name, benchmark in config.benchmarks.items():
        if benchmark.kind == "text":
            tokens = held_out_rows(corpus, benchmark, config.text_length).tokens
            texts[name] = corpus.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        elif benchmark.kind == "choice":
            right_pairs = [item[0] for item in choice_items(corpus, benchmark)]
            rows = [[*start, *continuation] for start, continuation in right_pairs]
            texts[name] = corpus.tokenizer.batch_decode(rows, skip_special_tokens=True)
        elif benchmark.kind == "sampled":
            questions = load_items(corpus, benchmark.task, count=benchmark.items, dataset=benchmark.dataset)
            texts[name] = [question.question for question in questions]
        else:
            from pipelines.evaluation.lm_eval_tasks import item_texts  # lm-eval is an extra

            try:
                texts[name] = item_texts(name, benchmark)
            except MissingData as error:
                missing[name] = str(error)
    return texts, missing
