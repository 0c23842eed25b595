"""Benchmarks of the kinds `harness` and `harness_choice`: tasks of lm-eval.

Any task of lm-eval can be a benchmark, and so can the files in `lm_eval_task_files`, which take precedence. The extra
`evaluation` installs lm-eval.
"""

import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences
from lm_eval.tasks import TaskManager

from pipelines.configuration.evaluation import TASK_FILES, BenchmarkConfig
from pipelines.data.hub import without_waiting
from pipelines.data.selection import evenly
from pipelines.errors import MissingData, UserError
from pipelines.evaluation.context import BenchmarkResult, Coverage, EvaluationContext
from pipelines.evaluation.lm_eval_model import RolloutLM
from pipelines.evaluation.metrics import RIGHT, estimate
from pipelines.evaluation.sampled_answers import answered, judged_responses
from pipelines.evaluation.samples import Sample, cut_answers, measure, sample_rows, unverified
from pipelines.files import sha256_of
from pipelines.random_streams import Stream, stream_seed
from pipelines.rollouts import Sampling, verified
from pipelines.tasks.answer_extraction import final_answer, last_program
from pipelines.tasks.judging import conversation
from pipelines.verifiers import VERIFIERS, Judge
from pipelines.verifiers.content import verifier_content
from pipelines.verifiers.judge import Item

LM_EVAL_TASKS = Path(lm_eval.__file__).parent / "tasks"


def run_task(context: EvaluationContext, name: str, benchmark: BenchmarkConfig) -> BenchmarkResult:
    """Measure a benchmark: sampled answers if it has several samples per item, else the accuracy by lm-eval."""
    tasks, chosen, available = chosen_docs(load_tasks(name, benchmark), benchmark.items)
    lm = RolloutLM(context.model, context.corpus.tokenizer, context.cache, sampler=context.sampler, cut_answers=False)
    if benchmark.samples > 1:
        samples = _sampled(context, name, benchmark, tasks=tasks, chosen=chosen, lm=lm)
        items = len({sample["item"] for sample in samples})
        coverage = Coverage(items, available, lm.cut_prompts, cut_answers(samples), unverified(samples))
        return BenchmarkResult(measure(samples, context.config.pass_k), coverage, samples)

    # lm-eval asks `lm`, whose answers come from the cache where they are stored, and scores them. The longest answer is
    # the benchmark's, as where answers are sampled, not that of lm-eval's task.
    for task in tasks.values():
        if task.OUTPUT_TYPE == "generate_until":
            settings = {"max_gen_toks": benchmark.max_new_tokens or context.config.max_new_tokens}
            task.set_config("generation_kwargs", {**(task.config.generation_kwargs or {}), **settings})
    loaded = {"tasks": tasks, "groups": {}, "group_map": {}}
    results = lm_eval.evaluate(lm, loaded, samples=chosen, bootstrap_iters=0)
    assert results is not None
    # A task with several filters has one row for each item and filter; keep those of the benchmark's metric.
    rows = [row for task in tasks for row in results["samples"][task]]
    metric, _, filter_name = (benchmark.metric or rows[0]["metrics"][0]).partition(",")
    scored = [row for row in rows if row["filter"] == (filter_name or row["filter"]) and metric in row]
    if not scored:
        metrics = sorted({f"{metric},{row['filter']}" for row in rows for metric in row["metrics"]})
        raise UserError(
            f"evaluation.benchmarks.{name}.metric={benchmark.metric}: unknown metric of this task; it is one of: "
            f"{', '.join(metrics)}"
        )
    coverage = Coverage(len(scored), available, lm.cut_prompts)
    return BenchmarkResult({"accuracy": estimate(np.array([float(row[metric]) for row in scored]))}, coverage)


def item_texts(name: str, benchmark: BenchmarkConfig) -> list[str]:
    """Question and answer of each item of a benchmark, without worked examples."""
    tasks, chosen, _ = chosen_docs(load_tasks(name, benchmark), benchmark.items)
    docs = [(task, doc) for key, task in tasks.items() for _, doc in task.doc_iterator(samples=chosen.get(key))]
    return [f"{task.doc_to_text(doc)} {task.doc_to_target(doc)}" for task, doc in docs]


def chosen_docs(tasks: Mapping[str, Any], items: int) -> tuple[dict[str, Any], dict[str, list[int]], int]:
    """The tasks that are measured, the indices of the documents of those that are measured in part, and all documents.

    At most `items` documents are drawn evenly from those of all tasks, one after another, so each task of a group has
    the same share as in the whole group.
    """
    sizes = [len(task.eval_docs) for task in tasks.values()]
    ends = np.cumsum(sizes, dtype=np.int64)
    drawn = evenly(sum(sizes), items)
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    indices = {
        name: (part - (end - size)).tolist()
        for name, part, size, end in zip(tasks, parts, sizes, ends.tolist(), strict=True)
    }
    measured = {name: task for name, task in tasks.items() if indices[name]}
    part = {name: indices[name] for name, task in measured.items() if len(indices[name]) < len(task.eval_docs)}
    return measured, part, sum(sizes)


def load_tasks(name: str, benchmark: BenchmarkConfig) -> dict[str, Any]:
    """lm-eval's task objects of a benchmark by name; a group has several.

    Raises `UserError` if lm-eval does not have the task, and `MissingData` if its data set is neither on this machine
    nor reachable.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not benchmark.local:
        without_waiting()
    manager = _task_manager(benchmark.task, benchmark.task_folder)
    if benchmark.task not in manager.all_tasks:
        raise UserError(
            f"evaluation.benchmarks.{name}.task={benchmark.task}: unknown task of lm-eval; list them with "
            "`lm-eval ls tasks`"
        )
    try:
        if benchmark.local:
            tasks = _with_local_file(name, benchmark, manager)
        else:
            tasks = dict(manager.load(benchmark.task)["tasks"])
    except UserError:
        raise
    except Exception as error:  # lm-eval and its data sets raise errors of many types
        message = str(error).splitlines()[0][:160] if str(error) else ""
        raise MissingData(
            f"its data set {benchmark.dataset or 'of ' + benchmark.task} is neither on this machine nor reachable "
            f"({type(error).__name__}: {message}); name a local copy with "
            f"evaluation.benchmarks.{name}.dataset=FILE.jsonl or FILE.parquet"
        ) from error
    # The seed chooses the worked examples of each item.
    for task in tasks.values():
        if benchmark.shots is not None:
            task.set_config(key="num_fewshot", value=benchmark.shots)
        task.set_fewshot_seed(seed=0)
    return tasks


def _task_manager(task: str, own_folder: str | None = None) -> TaskManager:
    """A task manager that knows `task` and the tasks of its group, if lm-eval or `own_folder` has it.

    It indexes one folder, which takes a second at most; all folders of lm-eval take 20 s.
    """
    if own_folder is not None:
        manager = TaskManager(include_path=own_folder, include_defaults=False)
        return manager if _is_complete(task, manager) else TaskManager(include_path=own_folder)
    folder = TASK_FILES if (TASK_FILES / f"{task}.yaml").exists() else _folder_of(task)
    if folder is not None:
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        if _is_complete(task, manager):
            return manager
    # A tag, or a group whose tasks are in several folders.
    return TaskManager()


@cache
def _folder_of(task: str) -> Path | None:
    """The folder of lm-eval with the file of a task or group, or None.

    The files are searched as text, which takes less than a second.
    """
    line = re.compile(rb"^(?:task|group):[ \t]*[\"']?%s[\"']?[ \t]*(?:#.*)?$" % re.escape(task).encode(), re.MULTILINE)
    matches = (path for path in sorted(LM_EVAL_TASKS.rglob("*.yaml")) if line.search(path.read_bytes()))
    first = next(matches, None)
    return first and first.parent


def _is_complete(task: str, manager: TaskManager) -> bool:
    """Whether `manager` knows `task` and, if that is a group, all of its tasks."""
    entry = manager.task_index.get(task)
    if entry is None:
        return False
    return task not in manager.all_groups or all(_is_complete(member, manager) for member in _members(entry.cfg or {}))


def _members(group: Mapping[str, Any]) -> Iterator[str]:
    """The names of the tasks and groups in a group's configuration, which may contain whole groups."""
    for member in group.get("task") or []:
        if isinstance(member, str):
            yield member
        elif isinstance(member.get("task"), list):
            yield from _members(member)
        else:
            yield member.get("task") or member["group"]


def _with_local_file(name: str, benchmark: BenchmarkConfig, manager: TaskManager) -> dict[str, Any]:
    """The task of a benchmark, with a local file in place of its data set.

    Worked examples come from FILE.train.jsonl if it exists, else from the task's definition, else from FILE itself,
    where an item is never its own example.
    """
    task = benchmark.task
    definition = manager.task_index[task].yaml_path
    if definition is None or task in manager.all_groups:
        raise UserError(
            f"evaluation.benchmarks.{name}.dataset={benchmark.dataset}: {task} is a group of tasks, each with its own "
            "data set; name one of them as the task"
        )
    # A task file that includes the definition and overrides where its items come from.
    file, examples = Path(str(benchmark.dataset)).absolute(), benchmark.examples
    examples_split = "train" if examples else None
    files = {"test": str(file)} | ({"train": str(examples.absolute())} if examples else {})
    overrides: dict[str, Any] = {
        "include": str(definition),
        "task": task,
        "dataset_path": "json" if file.suffix == ".jsonl" else "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "keep_in_memory": True},
        "test_split": "test",
        "validation_split": None,
        "training_split": examples_split,
        "fewshot_split": examples_split,
    }

    def load() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            # The library's own cache knows a file by its path and time only.
            overrides["dataset_kwargs"] |= {"cache_dir": folder}
            (Path(folder) / f"{task}.yaml").write_text(json.dumps(overrides))  # JSON is YAML
            return dict(TaskManager(include_path=folder, include_defaults=False).load(task)["tasks"])

    tasks = load()
    if not examples_split and tasks[task].fewshot_cfg.samples is None:  # no examples in the task's definition
        overrides["fewshot_split"] = "test"
        tasks = load()
    return tasks


def _sampled(
    context: EvaluationContext,
    name: str,
    benchmark: BenchmarkConfig,
    *,
    tasks: Mapping[str, Any],
    chosen: Mapping[str, list[int]],
    lm: RolloutLM,
) -> list[Sample]:
    """Samples of the prompts of generation tasks, judged by the benchmark's verifier or by lm-eval."""
    # One request for each item, in the order of the tasks; `until` and the settings are those of the first.
    items: list[tuple[Any, Instance]] = []
    for key, task in tasks.items():
        task.build_all_requests(samples=chosen.get(key), rank=0, world_size=1)
        items += [(task, instance) for instance in task.instances]
    prompts = [instance.args[0] for _, instance in items]
    until = handle_stop_sequences(items[0][1].args[1].get("until"), eos=None)
    config, n = context.config, benchmark.samples
    limit = benchmark.max_new_tokens or config.max_new_tokens
    sampling = Sampling(config.temperature, config.top_p, limit)
    encoded = [lm.prompt(prompt, limit) for prompt in prompts]
    cache_key = {
        "name": name,
        "prompts": sha256_of(prompts),
        "samples": n,
        "sampling": asdict(sampling),
        "until": until,
        "judged": _judging(benchmark, items),
        **context.sampler.identity,
    }
    ranges = context.cache.ranges(len(items), most=context.sampler.range_tokens // (n * limit))
    with Judge(context.stage.verifier_workers) as judge:

        def compute(part: range) -> list[Sample]:
            some = prompts[part.start : part.stop]
            token_ids = encoded[part.start : part.stop]
            seed = stream_seed(Stream.BENCHMARK, name)
            result = verified(
                partial(context.sampler.generate, token_ids, sampling, n=n, seed=seed, first=part.start, stop=until),
                judge,
                decode=partial(lm.decode, until=until),
                # The judge receives `n` answers for each prompt.
                item=lambda i, text, stopped: answered(
                    _judged(benchmark, *items[part.start + i // n], text=text), stopped
                ),
            )
            responses = judged_responses(result)
            return sample_rows([(prompt, prompt) for prompt in some], responses, judge, first_item=part.start)

        return context.cache.rows(name, cache_key, ranges=ranges, compute=compute)


def _judging(benchmark: BenchmarkConfig, items: Sequence[tuple[Any, Instance]]) -> dict[str, Any]:
    """Everything that the verdicts on answers to `items` depend on, besides the answers."""
    if benchmark.verifier is not None:
        references = [str(task.doc_to_target(instance.doc)) for task, instance in items]
        return {"verifier": verifier_content(benchmark.verifier), "references": sha256_of(references)}
    # lm-eval's own scoring may read every field of a document.
    docs = json.dumps([instance.doc for _, instance in items], sort_keys=True, default=str)
    asked = {"task": benchmark.task, "definition": benchmark.definition, "metric": benchmark.metric}
    return asked | {"docs": sha256_of(docs)}


def _judged(benchmark: BenchmarkConfig, task: Any, instance: Instance, *, text: str) -> Item:
    """The item for `Judge.rewards` of one sample: its final answer, or its whole program if the reference is tests.

    Without a verifier, lm-eval scores the sample, and the item is its filtered answer with a reference that it equals
    if lm-eval accepts it.
    """
    if benchmark.verifier is not None:
        verifier = VERIFIERS[benchmark.verifier]
        answer: str | None
        if verifier.reads == "conversation":
            answer = conversation(instance.args[0], text)
        elif verifier.compares_answers or verifier.source:
            answer = final_answer(text)
        else:
            answer = _program(instance.args[0], text)
        return benchmark.verifier, answer, str(task.doc_to_target(instance.doc))

    # Let the task's filters see this response only: the other instances have none.
    instance.resps = [text]
    task._instances = [instance]
    task.apply_filters()
    metric, _, filter_name = (benchmark.metric or "").partition(",")
    filtered = instance.filtered_resps[filter_name or next(iter(instance.filtered_resps))]
    answer = filtered if isinstance(filtered, str) else filtered[0]
    scores = task.process_results(instance.doc, [answer])
    accepted = float(scores[metric or next(iter(scores))]) >= RIGHT
    return "exact", str(filtered), str(filtered) if accepted else ""


def _program(prompt: str, text: str) -> str:
    """The program in an answer: its code block if there is one, else the prompt's beginning of it with the answer."""
    return last_program(text) or (text.split("```", 1)[0] if "[BEGIN]" in prompt else prompt + text)
