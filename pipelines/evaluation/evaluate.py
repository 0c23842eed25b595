"""What a checkpoint knows: held-out text, multiple choice, sampled answers put to a verifier, and lm-eval's tasks.

Items are the first ones of the test split, the same for every checkpoint, and samples draw from seeds that depend
on the benchmark alone, so two checkpoints differ by their models only. What is measured is kept by benchmark and
piece (`pipelines.evaluation.piece_cache`), so nothing is measured twice and a kill costs one piece.
"""

import json
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from pipelines.configuration.evaluation import HARNESS, BenchmarkConfig, EvaluationConfig
from pipelines.data.corpus import Corpus
from pipelines.data.questions import Question, load_items
from pipelines.data.token_shards import ShardRows
from pipelines.errors import MissingData, StageFailure
from pipelines.evaluation import distribution
from pipelines.evaluation.metrics import Estimate, estimate, mean_and_error
from pipelines.evaluation.piece_cache import Pieces, Rows, cut
from pipelines.evaluation.samples import SAMPLES, Sample, measure, sample_rows, write_rows
from pipelines.ledger import Ledger
from pipelines.rollouts import Sampling, generate, likelihoods
from pipelines.verifiers import Judge
from shaping.objective import Objective
from shaping.statistics import entropy, head_tail_mass
from shaping.theory import stationary_distribution

BATCH_TOKENS = 16_384
CHOICES = 4
SHOWN = 4
"""Sampled answers of each benchmark that W&B shows; `samples.jsonl.gz` holds all."""
PIECE_TOKENS = 1 << 18
"""Most tokens that the answers of one piece may come to; an item is never cut."""
THEORY_TOKENS = 64
"""Tokens whose stationary distribution is solved for: each takes milliseconds."""

Measurement = dict[str, Any]


@dataclass(frozen=True)
class Control:
    """How the checkpoint's distribution is changed before it is measured.

    `matched:SETTING`: logits are divided by `temperature`, and the sampling temperature is multiplied with it.
    `theory:SETTING`: what a tabular model trained with `objective` on the checkpoint's distribution would converge to.
    """

    name: str
    temperature: float = 1.0
    objective: Objective | None = None


AS_IT_IS = Control("")


def evaluate(
    model: PreTrainedModel,
    config: EvaluationConfig,
    corpus: Corpus,
    top_k: int,
    ledger: Ledger,
    folder: Path,
    pieces: Pieces,
    control: Control = AS_IT_IS,
) -> dict[str, Any]:
    """Measure `model` on every benchmark of `config`; `folder` takes answers and `distribution.json`.

    Returns `{"metrics": name/metric -> value, "measurements": [...], "missing": name -> why}`, fractions between 0 and
    1, entropy in nats, response length in tokens. A benchmark whose data set cannot be had is missing, with a sentence.
    """
    measurements: list[Measurement] = []
    details: dict[str, Any] = {}
    missing: dict[str, str] = {}
    kept: list[Sample] = []
    measured = _Measured(model, config, corpus, top_k, pieces, control)
    with torch.inference_mode():
        for step, (name, benchmark) in enumerate(config.benchmarks.items(), start=1):
            began = time.time()
            try:
                found, samples, detail = measured.benchmark(name, benchmark)
            except MissingData as error:
                missing[name] = str(error)
                print(f"{name} is missing: {error}", flush=True)
                ledger.log({"step": step, "benchmark": name, "missing": str(error), "seconds": time.time() - began})
                continue
            for metric, measurement in found.items():
                row = {"benchmark": name, "group": benchmark.group, "metric": metric, **measurement._asdict()}
                measurements.append(row | ({"variant": control.name} if control.name else {}))
            kept += [{"benchmark": name, **sample} for sample in samples]
            if detail:
                details[name] = detail
            values = {f"{name}/{metric}": measurement.value for metric, measurement in found.items()}
            ledger.log({"step": step, "benchmark": name, **values, "seconds": time.time() - began})
    write_rows(folder / SAMPLES, kept)
    if details:
        (folder / "distribution.json").write_text(json.dumps(details) + "\n")
    ledger.samples("samples", list(_shown(kept)))
    metrics = {f"{m['benchmark']}/{m['metric']}": m["value"] for m in measurements}
    return {"metrics": metrics, "measurements": measurements} | ({"missing": missing} if missing else {})


def _shown(samples: list[Sample]) -> Iterator[Sample]:
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample["benchmark"]] = counts.get(sample["benchmark"], 0) + 1
        if counts[sample["benchmark"]] <= SHOWN:
            yield sample


Found = dict[str, Estimate]


@dataclass(frozen=True)
class _Measured:
    """One checkpoint, benchmark by benchmark."""

    model: PreTrainedModel
    config: EvaluationConfig
    corpus: Corpus
    top_k: int
    pieces: Pieces
    control: Control

    def benchmark(self, name: str, benchmark: BenchmarkConfig) -> tuple[Found, list[Sample], dict[str, Any]]:
        """Metrics, samples, and what of the distribution does not fit into a number."""
        if benchmark.kind in HARNESS:
            from pipelines.evaluation.lm_eval_tasks import run_task

            return run_task(self.model, self.corpus.tokenizer, name, benchmark, self.config, self.pieces)
        if benchmark.kind == "sampled":
            samples = self._samples(name, benchmark)
            return measure(samples, self.config.pass_k), samples, {}
        identity = asdict(benchmark) | {"group": "", "stages": []}
        if benchmark.kind == "text":
            identity |= {"text_length": self.config.text_length}
        make = self._choice if benchmark.kind == "choice" else self._text
        (row,) = self.pieces.rows(name, identity, [range(benchmark.items)], lambda _: [make(benchmark)])
        return {metric: Estimate(*values) for metric, values in row["found"].items()}, [], row["detail"]

    def _text(self, benchmark: BenchmarkConfig) -> dict[str, Any]:
        """Perplexity, entropy and the rest on rows of held-out text."""
        rows, domains, names = text_rows(self.corpus, benchmark, self.config.text_length)
        if self.control.objective is not None:
            return {"found": self._theory(rows, self.control.objective), "detail": {}}
        transform: distribution.Transform = distribution.as_it_is
        if self.control.name:
            transform = distribution.tempered(self.control.temperature)
        table = distribution.token_table(self.model, rows, self.top_k, transform)
        sizes = distribution.byte_lengths(self.corpus)
        found = distribution.headline(table, self.top_k, sizes)
        if self.control.name:
            found["temperature"] = Estimate(self.control.temperature, None, len(rows))
        return {"found": found, "detail": distribution.detail(table, self.corpus, sizes, domains[:, 1:], names)}

    def _theory(self, rows: NDArray[Any], objective: Objective) -> Found:
        """Entropy and masses of the stationary distributions of `objective` with the model's own as the data's.

        They are solved for on a few tokens; what they differ from the model's own by is added to the model's mean over
        all tokens, so that the choice of the tokens hardly matters.
        """
        own = distribution.token_table(self.model, rows, self.top_k)
        spread = _spread(len(rows) * (rows.shape[1] - 1), THEORY_TOKENS)
        row, place = np.divmod(spread, rows.shape[1] - 1)
        inputs = torch.from_numpy(rows[row, :-1].astype(np.int64)).to(self.model.device)
        logits = torch.cat([self.model(input_ids=part).logits for part in inputs.split(64)])
        q = logits[torch.arange(len(place)), torch.from_numpy(place)].double().cpu().softmax(-1)
        p = stationary_distribution(q, objective)
        k = min(self.top_k, q.shape[1])
        pairs = {
            "entropy": (own.entropy, torch.special.entr(p).sum(-1) - entropy(q.log())),
            "head_mass": (own.head_mass[k], head_tail_mass(p.log(), k)[0] - head_tail_mass(q.log(), k)[0]),
        }
        found: Found = {}
        for metric, (everywhere, difference) in pairs.items():
            base, error = mean_and_error(everywhere.mean(1))
            moved, doubt = mean_and_error(difference.numpy())
            found[metric] = Estimate(base + moved, float(np.hypot(error or 0.0, doubt or 0.0)), len(rows))
        head = found["head_mass"]
        found["tail_mass"] = Estimate(1 - head.value, head.stderr, head.n)
        return found

    def _choice(self, benchmark: BenchmarkConfig) -> dict[str, Any]:
        """Accuracy at choosing, among four, the pair of context and continuation that the model finds likeliest."""
        items = CHOICE_TASKS[benchmark.task](self.corpus, benchmark.items)
        contexts, continuations = zip(*(pair for item in items for pair in item), strict=True)
        totals = np.empty(len(contexts))
        for batch, scores in likelihoods(self.model, contexts, continuations, BATCH_TOKENS):
            split = scores.log_probs.split([len(continuations[i]) for i in batch])
            totals[batch] = [part.sum().item() for part in split]
        by_item = totals.reshape(-1, CHOICES)
        right = by_item[:, 0] > by_item[:, 1:].max(1)  # the true pair stands first
        return {"found": {"accuracy": estimate(right.astype(np.float64))}, "detail": {}}

    def _samples(self, name: str, benchmark: BenchmarkConfig) -> list[Sample]:
        """Sampled answers with their rewards."""
        questions = load_items(benchmark.task, benchmark.dataset, self.corpus, benchmark.items)
        limit = benchmark.max_new_tokens or self.config.max_new_tokens
        sampling = Sampling(self.config.temperature * self.control.temperature, self.config.top_p, limit)
        identity: Mapping[str, Any] = {"name": name, "task": benchmark.task, "samples": benchmark.samples,
                    "dataset": benchmark.dataset, "sampling": asdict(sampling)}  # fmt: skip
        size = min(PIECE_TOKENS // (benchmark.samples * limit), -(-len(questions) // self.pieces.share.tasks))
        with Judge() as judge:
            return self.pieces.rows(
                name,
                identity,
                cut(len(questions), size),
                lambda items: sample_answers(
                    self.model,
                    self.corpus,
                    questions[items.start : items.stop],
                    benchmark.samples,
                    sampling,
                    zlib.crc32(name.encode()),
                    judge,
                    items.start,
                ),
            )


def evaluation_texts(config: EvaluationConfig, corpus: Corpus) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What the items of each benchmark say, for the search for contamination, and why some cannot be had."""
    texts: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for name, benchmark in config.benchmarks.items():
        if benchmark.kind == "text":
            held_out, *_ = text_rows(corpus, benchmark, config.text_length)
            texts[name] = corpus.tokenizer.batch_decode(held_out, skip_special_tokens=True)
        elif benchmark.kind == "choice":
            rows = [[*begin, *end] for (begin, end), *_ in CHOICE_TASKS[benchmark.task](corpus, benchmark.items)]
            texts[name] = corpus.tokenizer.batch_decode(rows, skip_special_tokens=True)
        elif benchmark.kind == "sampled":
            questions = load_items(benchmark.task, benchmark.dataset, corpus, benchmark.items)
            texts[name] = [question.question for question in questions]
        else:
            from pipelines.evaluation.lm_eval_tasks import item_texts

            try:
                texts[name] = item_texts(name, benchmark)
            except MissingData as error:
                missing[name] = str(error)
    return texts, missing


def text_rows(
    corpus: Corpus, benchmark: BenchmarkConfig, length: int
) -> tuple[NDArray[Any], NDArray[np.int64], list[str]]:
    """The held-out rows that a benchmark of text measures [items, length + 1], the domain of each token (its number,
    in the same shape), and the domains' names: packages of the documents, or the source of token shards."""
    rows = corpus.rows(benchmark.task, "test", length)
    if not len(rows):
        raise StageFailure(
            f"evaluation.text_length={length}: the held-out text of {benchmark.task} has not that many tokens; shorten "
            "it, or give data.text more"
        )
    chosen = _spread(len(rows), benchmark.items)
    if isinstance(rows, ShardRows):
        picked = rows[chosen]
        return picked, np.zeros(picked.shape, dtype=np.int64), [benchmark.task]
    rows, documents = corpus.rows_with_documents(benchmark.task, "test", length)
    packages = [document.module.split(".")[0] for document in corpus.documents("test")]
    names = list(dict.fromkeys(packages))
    return rows[chosen], np.array([names.index(package) for package in packages])[documents[chosen]], names


def sample_answers(
    model: PreTrainedModel,
    corpus: Corpus,
    questions: list[Question],
    n: int,
    sampling: Sampling,
    seed: int,
    judge: Judge,
    first: int = 0,
) -> Rows:
    """Rows of `pipelines.evaluation.samples`, without the benchmark's name: `n` answers to each question, judged.

    `first` is the number of the first question in its benchmark. A response that the limit cut has no answer.
    """
    prompts = [question.prompt for question in questions]
    rollouts = generate(model, [corpus.encode(prompt) for prompt in prompts], n, sampling, (seed,), first=first)
    responses = corpus.tokenizer.batch_decode(rollouts.responses(), skip_special_tokens=True)
    stopped = rollouts.stopped.tolist()
    judged = [questions[i // n].judged(response) for i, response in enumerate(responses)]
    judged = [(name, answer if stopped[i] else None, gold) for i, (name, answer, gold) in enumerate(judged)]
    asked = [(prompt, question.question) for prompt, question in zip(prompts, questions, strict=True)]
    return sample_rows(
        asked,
        responses,
        judged,
        judge,
        rollouts.log_probs.double().sum(1).tolist(),
        rollouts.lengths.tolist(),
        stopped,
        first,
    )


def _spread(size: int, count: int) -> NDArray[np.int64]:
    """At most `count` indices spread evenly over `size`."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).round().astype(np.int64))


Pair = tuple[list[int], list[int]]
"""Token ids of a context and of what is scored after it."""

CHOICE_TOKENS = 32


def _module(corpus: Corpus, count: int) -> list[list[Pair]]:
    """Knowledge: which module's heading makes a docstring, seen in training, likeliest? The true one stands first."""
    documents = corpus.documents("train")
    _enough(len({document.module for document in documents}), "modules with docstrings")
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
    tokens = [ids.tolist() for ids in corpus.document_tokens("test") if len(ids) >= 3 * CHOICE_TOKENS]
    _enough(len(tokens), f"held-out docstrings of {3 * CHOICE_TOKENS} tokens")
    rng = np.random.default_rng(0)
    items = []
    for index in rng.permutation(len(tokens))[:count]:
        others = [i for i in rng.permutation(len(tokens)) if i != index][: CHOICES - 1]
        begin, end = 2 * CHOICE_TOKENS, 3 * CHOICE_TOKENS
        items.append([(tokens[index][:begin], tokens[i][begin:end]) for i in (index, *others)])
    return items


def _enough(count: int, what: str) -> None:
    if count < CHOICES:
        raise StageFailure(
            f"data.text: it has {count} {what}, and a question has {CHOICES} choices; name more packages, or leave the "
            "multiple-choice benchmarks out"
        )


CHOICE_TASKS = {"module": _module, "continuation": _continuation}
"""Name of a multiple-choice task -> its items, four (context, continuation) pairs each, the true one first."""
