"""Benchmarks of kind `sampled`: questions of a task family or a file, whose sampled answers a verifier judges."""

from dataclasses import asdict
from functools import partial

from pipelines.configuration.evaluation import BenchmarkConfig
from pipelines.data.questions import available_items, load_items
from pipelines.data.tokenizer import fitting
from pipelines.evaluation.context import BenchmarkResult, Coverage, EvaluationContext
from pipelines.evaluation.samples import Responses, Sample, cut_answers, measure, sample_rows, unverified
from pipelines.files import sha256_of
from pipelines.random_streams import Stream, stream_seed
from pipelines.rollouts import Sampling, Verified, verified
from pipelines.rollouts.architectures import positions
from pipelines.tasks.judging import judging
from pipelines.verifiers import Judge
from pipelines.verifiers.judge import Item


def measure_samples(context: EvaluationContext, name: str, benchmark: BenchmarkConfig) -> BenchmarkResult:
    """Sample answers to the questions of a benchmark and measure them."""
    questions = load_items(context.corpus, benchmark.task, count=benchmark.items, dataset=benchmark.dataset)
    config = context.config
    # A matched control also changes the temperature of samples.
    limit = benchmark.max_new_tokens or config.max_new_tokens
    sampling = Sampling(config.temperature * context.control.temperature, config.top_p, limit)
    length = positions(context.model)
    encoded = context.corpus.prompts([question.prompt for question in questions])
    prompts = [fitting(prompt, length=length, limit=limit) for prompt in encoded]
    # The content of the questions and how they are judged, whether they come from a family or a file.
    formats = sorted({question.format for question in questions})
    key = {
        "name": name,
        "questions": sha256_of([(q.prompt, q.reference, q.format) for q in questions]),
        "judged": {form: judging(form) for form in formats},
        "samples": benchmark.samples,
        "sampling": asdict(sampling),
        **context.sampler.identity,
    }
    ranges = context.cache.ranges(len(questions), most=context.sampler.range_tokens // (benchmark.samples * limit))
    decode = partial(context.corpus.tokenizer.batch_decode, skip_special_tokens=True)
    with Judge(context.stage.verifier_workers) as judge:

        def compute(items: range) -> list[Sample]:
            chosen = questions[items.start : items.stop]
            token_ids = prompts[items.start : items.stop]
            # The seed depends on the benchmark only, and `first` makes samples independent of the ranges.
            seed = stream_seed(Stream.BENCHMARK, name)
            generate = partial(
                context.sampler.generate, token_ids, sampling, n=benchmark.samples, seed=seed, first=items.start
            )
            result = verified(
                generate,
                judge,
                decode=decode,
                item=lambda i, text, stopped: answered(chosen[i // benchmark.samples].judged(text), stopped),
            )
            pairs = [(question.prompt, question.question) for question in chosen]
            return sample_rows(pairs, judged_responses(result), judge, first_item=items.start)

        samples = context.cache.rows(name, key, ranges=ranges, compute=compute)
    cut = sum(len(prompt) < len(whole) for prompt, whole in zip(prompts, encoded, strict=True))
    available = available_items(context.corpus, benchmark.task, benchmark.dataset)
    coverage = Coverage(len(questions), available, cut, cut_answers(samples), unverified(samples))
    return BenchmarkResult(measure(samples, config.pass_k), coverage, samples)


def answered(item: Item, stopped: bool) -> Item:
    """The item of a response; one that the length limit cut has no answer, as in RL."""
    verifier, answer, reference = item
    return verifier, answer if stopped else None, reference


def judged_responses(result: Verified) -> Responses:
    """The `Responses` of sampled and verified ones."""
    rollouts = result.rollouts
    return Responses(
        result.texts,
        result.items,
        result.verdicts,
        log_probs=rollouts.log_probs.double().sum(1).tolist(),
        lengths=rollouts.lengths.tolist(),
        stopped=rollouts.stopped.tolist(),
    )
