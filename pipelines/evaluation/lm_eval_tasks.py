"""Tasks of lm-eval on a checkpoint: our `LM` on the rollout engine, and the rows of the evaluation table it runs.

`RolloutLM` answers lm-eval's three kinds of request as its `hf` backend does, token by token the same, and faster:
requests run in batches of like length, worked examples that all contexts begin with are run once, the options of an
item share their context, and several samples of one prompt share its prefill. What is answered is kept in pieces, so a
task that was killed goes on, and several processes share the requests out.

The extra `evaluation` installs lm-eval. Tasks are found by folder, since indexing all of lm-eval's takes 20 s.
"""

import hashlib
import json
import logging
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.configuration.evaluation import BenchmarkConfig, EvaluationConfig
from pipelines.errors import MissingData, UserError
from pipelines.evaluation.metrics import Estimate, estimate
from pipelines.evaluation.piece_cache import Pieces, Rows, cut
from pipelines.evaluation.samples import Judged, Sample, measure, sample_rows
from pipelines.rollouts import Rollouts, Sampling, generate, likelihoods
from pipelines.tasks.answer_extraction import final_answer
from pipelines.verifiers import VERIFIERS, Judge

BATCH_TOKENS = 16_384
PIECE_REQUESTS = 2048
"""Log-likelihood requests of one piece."""
PIECE_TOKENS = 1 << 18
"""Most tokens that the answers of one piece may come to."""
MAX_NEW_TOKENS = 256
"""Longest answer where a task does not say, as in lm-eval."""

OWN_TASKS = Path(__file__).parent / "lm_eval_task_files"
FOLDERS = {
    "mmlu_flan_cot_fewshot": "mmlu/flan_cot_fewshot",
    "mmlu_pro": "mmlu_pro",
    "triviaqa": "triviaqa",
    "nq_open": "nq_open",
    "hellaswag": "hellaswag",
    "social_iqa": "siqa",
    "piqa": "piqa",
    "winogrande": "winogrande",
    "openbookqa": "openbookqa",
    "commonsense_qa": "commonsense_qa",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "bbh_cot_fewshot": "bbh/cot_fewshot",
    "gsm8k_cot": "gsm8k",
    "hendrycks_math500": "hendrycks_math",
    "aime24": "aime",
    "aime25": "aime",
}
"""Task of lm-eval -> its folder there."""


class RolloutLM(TemplateLM):
    """lm-eval's model interface on a `transformers` model in this process."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pieces: Pieces | None = None
    ) -> None:
        """With no `pieces`, answers are kept in a folder that goes with this object."""
        super().__init__()
        self._model = model.eval()
        self.tokenizer: Any = tokenizer
        self._folder = tempfile.TemporaryDirectory()
        self._pieces = pieces or Pieces(Path(self._folder.name), {})
        self.max_length = int(model.config.max_position_embeddings)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text with no context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; special tokens as the tokenizer adds them unless told."""
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **special))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether each of its tokens is the likeliest) of each request.

        A context that is too long loses its beginning.
        """
        pairs = [
            ((context + continuation)[-self.max_length - 1 : -len(continuation)], continuation)
            for _, context, continuation in requests
        ]

        def make(order: list[int]) -> Callable[[range], Rows]:
            def piece(items: range) -> Rows:
                chosen = order[items.start : items.stop]
                found: dict[int, tuple[float, bool]] = {}
                some = [pairs[i][0] for i in chosen], [pairs[i][1] for i in chosen]
                for batch, scores in likelihoods(self._model, *some, BATCH_TOKENS):
                    sizes = [len(some[1][i]) for i in batch]
                    sums = [part.sum().item() for part in scores.log_probs.split(sizes)]
                    greedy = [bool(part.all()) for part in scores.likeliest.split(sizes)]
                    found |= dict(zip(batch, zip(sums, greedy, strict=True), strict=True))
                return [{"request": i, "value": found[place]} for place, i in enumerate(chosen)]

            return piece

        order = sorted(range(len(pairs)), key=lambda i: pairs[i][0])
        rows = self._kept("log-likelihood", pairs, PIECE_REQUESTS, make(order))
        answers = {row["request"]: (row["value"][0], row["value"][1]) for row in rows}
        return [answers[i] for i in range(len(pairs))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of the model's length, each token predicted once."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(*request.args),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owners.append(owner)
        totals = np.zeros(len(requests))
        for owner, (log_prob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += log_prob
        return [float(total) for total in totals]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first stop string; equal requests that sample are different samples of one prompt."""
        answers: list[str | None] = [None] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
        for indices in groups.values():
            asked: dict[str, list[int]] = {}
            for i in indices:
                asked.setdefault(requests[i].args[0], []).append(i)
            kwargs = requests[indices[0]].args[1]
            for n in sorted({len(places) for places in asked.values()}):
                contexts = [context for context, places in asked.items() if len(places) == n]
                texts = self._texts(contexts, kwargs, n)
                for context, several in zip(contexts, texts, strict=True):
                    for i, text in zip(asked[context], several, strict=True):
                        answers[i] = text
        return [answer for answer in answers if answer is not None]

    def _texts(self, contexts: list[str], kwargs: dict[str, Any], n: int) -> list[list[str]]:
        """`n` texts for each context; one, repeated, where nothing is sampled."""
        settings = normalize_gen_kwargs(dict(kwargs), MAX_NEW_TOKENS)
        until = handle_stop_sequences(settings.get("until"), eos=None)
        temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        sampling = Sampling(temperature, float(settings.get("top_p", 1.0)), int(settings["max_gen_toks"]))
        samples = n if sampling.temperature else 1
        order = sorted(range(len(contexts)), key=lambda i: -len(contexts[i]))

        def piece(items: range) -> Rows:
            chosen = order[items.start : items.stop]
            prompts = [self.prompt(contexts[i], sampling.max_new_tokens) for i in chosen]
            seed = zlib.crc32(json.dumps(kwargs, sort_keys=True, default=str).encode())
            rollouts = self.sample(prompts, samples, sampling, (seed,), until, items.start)
            texts = self.decode(rollouts, until)
            return [
                {"request": i, "texts": texts[place * samples : (place + 1) * samples]}
                for place, i in enumerate(chosen)
            ]

        size = max(1, PIECE_TOKENS // (samples * sampling.max_new_tokens))
        rows = self._kept("generation", [contexts, kwargs, samples], size, piece, len(contexts))
        answers = {row["request"]: row["texts"] for row in rows}
        return [answers[i] * (n // samples) for i in range(len(contexts))]

    def prompt(self, context: str, limit: int) -> list[int]:
        """Token ids of a context, without its beginning where the answer would find no room."""
        return self.tok_encode(context)[-(self.max_length - limit) :] or [self.prefix_token_id]

    def sample(
        self,
        prompts: list[list[int]],
        n: int,
        sampling: Sampling,
        seed: Sequence[int],
        until: Sequence[str],
        first: int = 0,
    ) -> Rollouts:
        """`n` responses to each prompt; one that holds a stop string is not gone on with."""

        def ended(responses: list[list[int]]) -> list[bool]:
            texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
            return [any(stop in text for stop in until) for text in texts]

        return generate(self._model, prompts, n, sampling, seed, first=first, ended=ended if until else None)

    def decode(self, rollouts: Rollouts, until: Sequence[str]) -> list[str]:
        """The responses as texts, each up to its first stop string."""
        texts = self.tokenizer.batch_decode(rollouts.responses(), skip_special_tokens=True)
        return [cut_at(text, until) for text in texts]

    def _kept(
        self, kind: str, content: Any, size: int, make: Callable[[range], Rows], count: int | None = None
    ) -> Rows:
        """The rows of all requests, made in pieces of `size` unless they are there."""
        digest = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
        count = len(content) if count is None else count
        size = min(size, -(-count // self._pieces.share.tasks))
        return self._pieces.rows(kind, {"lm-eval": kind, "requests": digest}, cut(count, size), make)


def cut_at(text: str, until: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    for stop in until:
        if stop:
            text = text.split(stop, 1)[0]
    return text


def load_tasks(name: str, benchmark: BenchmarkConfig) -> dict[str, Any]:
    """lm-eval's task objects of a row of the table, a group's subtasks all, by name.

    Raises `MissingData` where the data set is neither here nor reachable.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folder = FOLDERS.get(benchmark.task)
    paths = [OWN_TASKS] + ([Path(lm_eval.__file__).parent / "tasks" / folder] if folder else [])
    known = folder is not None or (OWN_TASKS / f"{benchmark.task}.yaml").exists()
    manager = TaskManager(include_path=[str(path) for path in paths], include_defaults=not known)
    if benchmark.task not in manager.all_tasks:
        raise UserError(f"evaluation.benchmarks.{name}.task={benchmark.task}: lm-eval has no task of that name")
    try:
        if benchmark.local:
            tasks = _on_file(name, benchmark.task, manager, str(benchmark.dataset))
        else:
            tasks = dict(manager.load(benchmark.task)["tasks"])
    except UserError:
        raise
    except Exception as error:
        raise MissingData(
            f"its data set {benchmark.dataset or 'of ' + benchmark.task} is neither here nor reachable "
            f"({type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}); name a local copy by "
            f"evaluation.benchmarks.{name}.dataset=FILE.jsonl or FILE.parquet"
        ) from error
    for task in tasks.values():
        if benchmark.shots is not None:
            task.set_config(key="num_fewshot", value=benchmark.shots)
        task.set_fewshot_seed(seed=0)
    return tasks


def _on_file(name: str, task: str, manager: TaskManager, path: str) -> dict[str, Any]:
    """The task, with a file here in the place of its data set. Worked examples come from FILE.train.jsonl if it is
    there, else from the task's own file, else from the file itself, where an item is never its own example."""
    source = manager.task_index[task].yaml_path
    if source is None or task in manager.all_groups:
        raise UserError(
            f"evaluation.benchmarks.{name}.dataset={path}: {task} is a group of tasks, each with its own data set; "
            "name one of them as the task"
        )
    file = Path(path).absolute()
    examples = file.with_suffix(f".train{file.suffix}")
    splits = {"test": str(file)} | ({"train": str(examples)} if examples.exists() else {})
    changed = {
        "include": str(source),
        "task": task,
        "dataset_path": "json" if file.suffix == ".jsonl" else "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": splits},
        "test_split": "test",
        "validation_split": None,
        "training_split": "train" if examples.exists() else None,
        "fewshot_split": "train" if examples.exists() else None,
    }

    def load() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / f"{task}.yaml").write_text(json.dumps(changed))  # JSON is YAML
            return dict(TaskManager(include_path=folder, include_defaults=False).load(task)["tasks"])

    tasks = load()
    if not examples.exists() and tasks[task].fewshot_cfg.samples is None:  # the task's file holds no examples itself
        changed["fewshot_split"] = "test"
        tasks = load()
    return tasks


def run_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    benchmark: BenchmarkConfig,
    config: EvaluationConfig,
    pieces: Pieces,
) -> tuple[dict[str, Estimate], list[Sample], dict[str, Any]]:
    """Measure one row of the table whose kind is `harness` or `harness_choice`: metrics, samples, no details."""
    tasks = load_tasks(name, benchmark)
    lm = RolloutLM(model, tokenizer, pieces)
    limit = max(1, benchmark.items // len(tasks))
    if benchmark.samples > 1:
        samples = _sampled(lm, name, benchmark, config, tasks, limit)
        return measure(samples, config.pass_k), samples, {}
    results = lm_eval.evaluate(lm, {"tasks": tasks, "groups": {}, "group_map": {}}, limit=limit, bootstrap_iters=0)
    assert results is not None
    rows = [row for name in tasks for row in results["samples"][name]]
    wanted, _, form = (benchmark.metric or rows[0]["metrics"][0]).partition(",")
    own = [row for row in rows if row["filter"] == (form or row["filter"]) and wanted in row]
    if not own:
        found = sorted({f"{metric},{row['filter']}" for row in rows for metric in row["metrics"]})
        raise UserError(
            f"evaluation.benchmarks.{name}.metric={benchmark.metric}: the task has no such metric; one of: "
            f"{', '.join(found)}"
        )
    values = np.array([float(row[wanted]) for row in own])
    return {"accuracy": estimate(values)}, [], {}


def item_texts(name: str, benchmark: BenchmarkConfig) -> list[str]:
    """What the items of a row say, without worked examples."""
    tasks = load_tasks(name, benchmark)
    limit = max(1, benchmark.items // len(tasks))
    docs = [(task, doc) for task in tasks.values() for _, doc in task.doc_iterator(limit=limit)]
    return [f"{task.doc_to_text(doc)} {task.doc_to_target(doc)}" for task, doc in docs]


def _sampled(
    lm: RolloutLM,
    name: str,
    benchmark: BenchmarkConfig,
    config: EvaluationConfig,
    tasks: dict[str, Any],
    limit: int,
) -> list[Sample]:
    """Samples of a generation task's prompts, judged by a verifier or by the task itself."""
    items: list[tuple[Any, Instance]] = []
    for task in tasks.values():
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        items += [(task, instance) for instance in task.instances]
    longest = benchmark.max_new_tokens or config.max_new_tokens
    sampling = Sampling(config.temperature, config.top_p, longest)
    until = handle_stop_sequences(items[0][1].args[1].get("until"), eos=None)
    contexts = [instance.args[0] for _, instance in items]
    n = benchmark.samples

    def piece(judge: Judge, chosen: range) -> Rows:
        some = items[chosen.start : chosen.stop]
        prompts = [lm.prompt(context, longest) for context in contexts[chosen.start : chosen.stop]]
        rollouts = lm.sample(prompts, n, sampling, (zlib.crc32(name.encode()),), until, chosen.start)
        texts = lm.decode(rollouts, until)
        judged = [_judged(benchmark, *some[i // n], text) for i, text in enumerate(texts)]
        return sample_rows(
            [(instance.args[0], instance.args[0]) for _, instance in some],
            texts,
            judged,
            judge,
            rollouts.log_probs.double().sum(1).tolist(),
            rollouts.lengths.tolist(),
            rollouts.stopped.tolist(),
            chosen.start,
        )

    digest = hashlib.sha256(json.dumps(contexts).encode()).hexdigest()
    identity = {"name": name, "contexts": digest, "samples": n, "sampling": sampling.__dict__, "until": until,
                "verifier": benchmark.verifier, "metric": benchmark.metric}  # fmt: skip
    size = min(PIECE_TOKENS // (n * longest), -(-len(items) // lm._pieces.share.tasks))
    with Judge() as judge:
        return lm._pieces.rows(name, identity, cut(len(items), size), lambda chosen: piece(judge, chosen))


def _judged(benchmark: BenchmarkConfig, task: Any, instance: Instance, text: str) -> Judged:
    """The item for `Judge.rewards` of one sample: its final answer, or its whole program if the reference is tests.

    Without a verifier, lm-eval scores the sample, and the item is its filtered answer with a reference that it equals
    if lm-eval accepts it.
    """
    if benchmark.verifier is not None:
        verifier = VERIFIERS[benchmark.verifier]
        if verifier.compares_answers:
            final = final_answer(text)
            answer = final and verifier.benchmark_answer.replace("{answer}", final)
        else:
            answer = _program(instance.args[0], text)
        return benchmark.verifier, answer, str(task.doc_to_target(instance.doc))
    instance.resps = [text]
    task.apply_filters()
    wanted, _, form = (benchmark.metric or "").partition(",")
    filtered = instance.filtered_resps[form or next(iter(instance.filtered_resps))]
    score = task.process_results(instance.doc, [filtered if isinstance(filtered, str) else filtered[0]])
    return "exact", str(filtered), str(filtered) if float(score[wanted or next(iter(score))]) >= 0.5 else ""


def _program(prompt: str, text: str) -> str:
    """A function that the prompt begins and the answer ends, or the program that stands in the answer."""
    body = text.split("```python\n", 1)[-1].split("```", 1)[0]
    return body if "```python\n" in text or "[BEGIN]" in prompt else prompt + text
