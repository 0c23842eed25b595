"""What a checkpoint knows: held-out text, multiple choice, and sampled answers put to a verifier.

Items are the first ones of the test split, the same for every checkpoint, and samples draw from seeds that depend
on the benchmark alone, so two checkpoints differ by their models only.
"""

import json
import math
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from pipelines.cell import BenchmarkConfig, EvaluationConfig
from pipelines.data import Corpus
from pipelines.ledger import Ledger
from pipelines.metrics import majority, mean_and_error, pass_at_k
from pipelines.rollouts import Sampling, generate, length_batches, score
from pipelines.tasks import extract_answer
from shaping.loss import token_statistics

BATCH_TOKENS = 16_384
CHOICES = 4
SHOWN = 4
"""Sampled answers of each benchmark that W&B shows; `samples.jsonl` holds all."""

Measurement = dict[str, Any]


def evaluate(
    model: PreTrainedModel,
    config: EvaluationConfig,
    corpus: Corpus,
    top_k: int,
    ledger: Ledger,
    folder: Path,
) -> dict[str, Any]:
    """Measure `model` on every benchmark of `config`; answers go to `samples.jsonl` in `folder`.

    Returns `{"metrics": name/metric -> value, "measurements": [...]}`, fractions between 0 and 1, entropy in nats,
    response length in tokens.
    """
    measurements: list[Measurement] = []
    shown: list[dict[str, Any]] = []
    with torch.inference_mode(), (folder / "samples.jsonl").open("w") as file:
        for step, (name, benchmark) in enumerate(config.benchmarks.items(), start=1):
            began = time.time()
            samples: list[dict[str, Any]] = []
            match benchmark.kind:
                case "text":
                    found = _text(model, benchmark, corpus, config.text_length, top_k)
                case "choice":
                    found = _choice(model, benchmark, corpus)
                case _:
                    found, samples = _sampled(model, name, benchmark, corpus, config)
            for metric, (value, error, count) in found.items():
                measurements.append(
                    {
                        "benchmark": name,
                        "group": benchmark.group,
                        "metric": metric,
                        "value": value,
                        "stderr": error,
                        "n": count,
                    }
                )
            for sample in samples:
                file.write(json.dumps({"benchmark": name, **sample}) + "\n")
            shown += [{"benchmark": name, **sample} for sample in samples[:SHOWN]]
            values = {f"{name}/{metric}": value for metric, (value, _, _) in found.items()}
            ledger.log({"step": step, "benchmark": name, **values, "seconds": time.time() - began})
    ledger.samples("samples", shown)
    metrics = {f"{m['benchmark']}/{m['metric']}": m["value"] for m in measurements}
    return {"metrics": metrics, "measurements": measurements}


Found = dict[str, tuple[float, float | None, int]]
"""metric -> (value, standard error, number of items)"""


def _text(model: PreTrainedModel, benchmark: BenchmarkConfig, corpus: Corpus, length: int, top_k: int) -> Found:
    """Perplexity and mean entropy on rows of held-out text; errors over rows, which are long enough to be apart."""
    rows = corpus.rows(benchmark.task, "test", length)
    rows = rows[_spread(len(rows), benchmark.items)]
    parts = []
    for start in range(0, len(rows), max(1, BATCH_TOKENS // length)):
        batch = torch.from_numpy(rows[start : start + max(1, BATCH_TOKENS // length)].astype(np.int64))
        batch = batch.to(model.device)
        logits = model(input_ids=batch[:, :-1]).logits
        stats = token_statistics(logits.flatten(0, 1), batch[:, 1:].flatten(), top_k)
        columns = (-stats.target_probability.log(), stats.entropy, stats.head_mass, stats.tail_mass)
        parts.append(torch.stack(columns, -1).view(len(batch), length, -1).double().mean(1))
    means = torch.cat(parts).cpu().numpy()
    loss, loss_error = mean_and_error(means[:, 0])
    perplexity = math.exp(loss)
    found: Found = {"perplexity": (perplexity, None if loss_error is None else perplexity * loss_error, len(means))}
    for column, metric in enumerate(("entropy", "head_mass", "tail_mass"), start=1):
        found[metric] = (*mean_and_error(means[:, column]), len(means))
    return found


def _spread(size: int, count: int) -> NDArray[np.int64]:
    """At most `count` indices spread evenly over `size`."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).round().astype(np.int64))


def _choice(model: PreTrainedModel, benchmark: BenchmarkConfig, corpus: Corpus) -> Found:
    """Accuracy at choosing, among four, the pair of context and continuation that the model finds likeliest."""
    items = CHOICE_TASKS[benchmark.task](corpus, benchmark.items)
    pairs = [pair for item in items for pair in item]
    lengths = [len(context) + len(continuation) for context, continuation in pairs]
    totals = np.empty(len(pairs))
    for batch in length_batches(lengths, BATCH_TOKENS):
        log_probs = score(model, [pairs[i][0] for i in batch], [pairs[i][1] for i in batch]).log_probs
        split = log_probs.split([len(pairs[i][1]) for i in batch])
        totals[batch] = [part.sum().item() for part in split]
    by_item = totals.reshape(-1, CHOICES)
    right = by_item[:, 0] > by_item[:, 1:].max(1)  # the true pair stands first
    return {"accuracy": (*mean_and_error(right.astype(np.float64)), len(right))}


Pair = tuple[list[int], list[int]]
"""Token ids of a context and of what is scored after it."""

CHOICE_TOKENS = 32


def _module(corpus: Corpus, count: int) -> list[list[Pair]]:
    """Knowledge: which module's heading makes a docstring, seen in training, likeliest? The true one stands first."""
    documents = corpus.documents("train")
    rng = np.random.default_rng(0)
    items = []
    for index in rng.permutation(len(documents))[:count]:
        document = documents[index]
        modules = {document.module: None}
        while len(modules) < CHOICES:
            modules.setdefault(documents[rng.integers(len(documents))].module, None)
        text = corpus.encode("\n" + document.text[: 8 * CHOICE_TOKENS])[1 : 2 * CHOICE_TOKENS + 1]
        items.append([(corpus.encode(f"# {module}"), text) for module in modules])
    return items


def _continuation(corpus: Corpus, count: int) -> list[list[Pair]]:
    """Commonsense: which continuation belongs to the beginning of a docstring never trained on? First the true one."""
    tokens = [corpus.encode(document.training_text) for document in corpus.documents("test")]
    tokens = [ids for ids in tokens if len(ids) >= 3 * CHOICE_TOKENS]
    rng = np.random.default_rng(0)
    items = []
    for index in rng.permutation(len(tokens))[:count]:
        others = [i for i in rng.permutation(len(tokens)) if i != index][: CHOICES - 1]
        begin, end = 2 * CHOICE_TOKENS, 3 * CHOICE_TOKENS
        items.append([(tokens[index][:begin], tokens[i][begin:end]) for i in (index, *others)])
    return items


CHOICE_TASKS = {"module": _module, "continuation": _continuation}
"""Name of a multiple-choice task -> its items, four (context, continuation) pairs each, the true one first."""


def _sampled(
    model: PreTrainedModel, name: str, benchmark: BenchmarkConfig, corpus: Corpus, config: EvaluationConfig
) -> tuple[Found, list[dict[str, Any]]]:
    """Avg@n, Cons@n and Pass@k of sampled answers, with the mean response length."""
    problems = corpus.problems(benchmark.task, "test")[: benchmark.items]
    n = benchmark.samples
    rollouts = generate(
        model,
        [corpus.encode(problem.prompt) for problem in problems],
        n,
        Sampling(config.temperature, config.top_p, config.max_new_tokens),
        (zlib.crc32(name.encode()),),
    )
    responses = corpus.tokenizer.batch_decode(rollouts.responses(), skip_special_tokens=True)
    answers = [
        extract_answer(response) if stopped else None
        for response, stopped in zip(responses, rollouts.stopped.tolist(), strict=True)
    ]
    right = np.array([answer == problems[i // n].answer for i, answer in enumerate(answers)]).reshape(-1, n)
    votes = [majority(answers[i * n : (i + 1) * n], problem.answer) for i, problem in enumerate(problems)]
    lengths = rollouts.lengths.double().numpy().reshape(-1, n).mean(1)
    per_item = {f"avg@{n}": right.mean(1)}
    if n > 1:
        per_item[f"cons@{n}"] = np.array(votes)
        per_item |= {f"pass@{k}": pass_at_k(right.sum(1), n, k) for k in config.pass_k if 1 < k <= n}
    per_item["response_length"] = lengths
    samples = [
        {"question": problems[i // n].question, "response": response, "answer": answer, "right": bool(right.flat[i])}
        for i, (response, answer) in enumerate(zip(responses, answers, strict=True))
    ]
    return {metric: (*mean_and_error(values), len(problems)) for metric, values in per_item.items()}, samples
