"""Benchmarks of kind `sampled`: questions of a task family or a file, whose sampled answers a verifier judges."""

import zlib
from collections.abc import Sequence
from dataclasses import asdict

from pipelines.configuration.evaluation import BenchmarkConfig
from pipelines.data.questions import Question, load_items
from pipelines.evaluation.benchmark_cache import RANGE_TOKENS
from pipelines.evaluation.context import BenchmarkResult, EvaluationContext
from pipelines.evaluation.samples import Responses, Sample, measure, sample_rows
from pipelines.rollouts import Rollouts, Sampling, generate
from pipelines.verifiers import Judge
from pipelines.verifiers.judge import Item


def measure_samples(context: EvaluationContext, name: str, benchmark: BenchmarkConfig) -> BenchmarkResult:
    """Sample answers to the questions of a benchmark and measure them."""
    questions = load_items(context.corpus, benchmark.task, count=benchmark.items, dataset=benchmark.dataset)
    config = context.config
    # A matched control also changes the temperature of samples.
    limit = benchmark.max_new_tokens or config.max_new_tokens
    sampling = Sampling(config.temperature * context.control.temperature, config.top_p, limit)
    key = {
        "name": name,
        "task": benchmark.task,
        "samples": benchmark.samples,
        "dataset": benchmark.dataset,
        "sampling": asdict(sampling),
    }
    ranges = context.cache.ranges(len(questions), most=RANGE_TOKENS // (benchmark.samples * limit))
    with Judge() as judge:

        def compute(items: range) -> list[Sample]:
            chosen = questions[items.start : items.stop]
            prompts = [context.corpus.encode(question.prompt) for question in chosen]
            # The seed depends on the benchmark only, and `first` makes samples independent of the ranges.
            seed = (zlib.crc32(name.encode()),)
            rollouts = generate(context.model, prompts, sampling, n=benchmark.samples, seed=seed, first=items.start)
            texts = context.corpus.tokenizer.batch_decode(rollouts.responses(), skip_special_tokens=True)
            responses = judged_responses(rollouts, texts, _judged(chosen, texts, rollouts))
            pairs = [(question.prompt, question.question) for question in chosen]
            return sample_rows(pairs, responses, judge, first_item=items.start)

        samples = context.cache.rows(name, key, ranges=ranges, compute=compute)
    return BenchmarkResult(measure(samples, config.pass_k), samples)


def _judged(questions: Sequence[Question], texts: Sequence[str], rollouts: Rollouts) -> list[Item]:
    """What the judge receives for each response; one that reached the limit has no answer."""
    n = len(texts) // len(questions)
    judged: list[Item] = []
    for i, (text, stopped) in enumerate(zip(texts, rollouts.stopped.tolist(), strict=True)):
        verifier, answer, reference = questions[i // n].judged(text)
        judged.append((verifier, answer if stopped else None, reference))
    return judged


def judged_responses(rollouts: Rollouts, texts: Sequence[str], judged: Sequence[Item]) -> Responses:
    """The `Responses` of `rollouts`, with their texts and what the judge receives for each."""
    return Responses(
        texts,
        judged,
        log_probs=rollouts.log_probs.double().sum(1).tolist(),
        lengths=rollouts.lengths.tolist(),
        stopped=rollouts.stopped.tolist(),
    )
