"""What goes into a stage run's signature: its stage and version, its parent, and what of a cell can change its result.

Names, labels, paths, tracking, launcher options and the number of workers are not in it. Local files are in it by their
content (`pipelines.configuration.local_files`).
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.configuration import DATA_VERSION
from pipelines.configuration.budgets import MidtrainConfig
from pipelines.configuration.data import DataConfig
from pipelines.configuration.evaluation import HARNESS, SAMPLED, BenchmarkConfig, EvaluationConfig
from pipelines.configuration.grpo import QUESTION_FILE, GRPOConfig
from pipelines.configuration.local_files import content_name
from pipelines.configuration.model import ModelConfig
from pipelines.configuration.objective import ObjectiveConfig
from pipelines.configuration.signed_content import signed_content
from pipelines.data.token_shards import fingerprint
from pipelines.files import sha256_of
from pipelines.tasks.families import FAMILIES
from pipelines.tasks.judging import QUESTION_FORMAT, judging, plugin_judging
from pipelines.tasks.question_files import file_formats
from pipelines.tasks.question_sets import QuestionSet, plugin_set
from pipelines.verifiers.content import verifier_content

Content = dict[str, Any]
"""A part of a configuration as plain values, less what cannot change a result."""

CONTROL_KINDS = {"matched": ("text", "sampled"), "theory": ("text",)}
"""Kinds of benchmarks that a control changes."""


def stage_signature(
    stage: str, *, version: int, config: Mapping[str, Any], parent: str | None, checkpoint: str | None
) -> str:
    """Returns the signature of a stage run; `parent` is the signature of the one that it starts from."""
    return sha256_of([stage, version, config, parent, checkpoint])[:16]


def signature_of(spec: Mapping[str, Any]) -> str:
    """Returns the signature that a stored spec should have; raises `KeyError` where a key of it is missing."""
    return stage_signature(
        spec["stage"],
        version=spec["version"],
        config=spec["config"],
        parent=spec["parent"] and spec["parent"]["signature"],
        checkpoint=spec["checkpoint"],
    )


class SharedContents:
    """Contents of parts of cells, each computed once for all cells with equal parts.

    The cells of a sweep differ in few parts. Sharing saves time, and memory in plans of thousands of stage runs.
    """

    def __init__(self) -> None:
        self._contents: dict[tuple[Any, ...], Any] = {}

    def __call__(self, content: Callable[..., Content], *parts: Any) -> Content:
        """Returns `content(*parts)`; the result is shared and must not be changed."""
        key = (content, *map(repr, parts))
        if key not in self._contents:
            self._contents[key] = content(*parts)
        return self._contents[key]


def nameless_content(part: Any) -> Content:
    """Returns a part of which every key but the name can change a result."""
    content: Content = signed_content(part)
    content.pop("name", None)
    return content


def model_content(model: ModelConfig) -> Content:
    """Returns a model's shape; a dense model has no keys about experts."""
    content = nameless_content(model)
    if not model.experts:
        for key in ("experts", "active_experts", "balance_rate"):
            del content[key]
    return content


def objective_content(objective: ObjectiveConfig) -> Content:
    """Returns the knobs that have an effect: with equal lambdas the size of the head has none."""
    content = nameless_content(objective)
    if objective.lam_head == objective.lam_tail:
        content["top_k"] = None
    return content


def midtrain_objective_content(objective: ObjectiveConfig, midtrain: MidtrainConfig) -> Content:
    """Returns the knobs of the objective that mid-training uses."""
    return objective_content(objective if midtrain.objective == "inherit" else ObjectiveConfig())


def midtrain_content(midtrain: MidtrainConfig) -> Content:
    """Returns mid-training's budget; its objective is in `midtrain_objective_content`."""
    content = nameless_content(midtrain)
    del content["objective"]
    return content


def data_content(data: DataConfig) -> Content:
    """Returns the data; token shards are identified by their hash, whatever their folder and recipe."""
    content = nameless_content(data)
    # How shards are made is their recipe; with shards the tokenizer is theirs. Stages have their mixtures themselves.
    shards = content.pop("shards")
    del content["sources"], content["tokenizer"], content["mixtures"]
    if shards is not None:
        content["shards"] = fingerprint(shards)
    return content | {"version": DATA_VERSION}


def grpo_content(grpo: GRPOConfig, seed: int) -> Content:
    """Returns RL's configuration; a file of questions is identified by its content, and by how it is judged.

    An RL seed that is the cell's `seed` is the same as none.
    """
    content = nameless_content(grpo)
    if content.get("seed") == seed:
        del content["seed"]
    files = [task for task in grpo.tasks if task.endswith(QUESTION_FILE)]
    content["tasks"] = [_file_content(task) if task in files else task for task in grpo.tasks]
    # How files of questions are made is their recipe.
    for key in ("questions", "questions_folder"):
        del content[key]
    formats = [FAMILIES[task].format for task in grpo.tasks if task in FAMILIES]
    formats += [name for path in files if Path(path).is_file() for name in file_formats(path, QUESTION_FORMAT)]
    return content | ({"judged": judging(QUESTION_FORMAT)} if files else {}) | _plugins(formats)


def _plugins(formats: Iterable[str], source: str | None = None) -> Content:
    """Returns the key `plugins` with what plugins do to questions in these formats; nothing where there are none.

    `source` is that of the plugin which the items come from.
    """
    content = plugin_judging(formats) | ({"questions": source} if source else {})
    return {"plugins": content} if content else {}


def _file_content(path: str) -> str:
    """The content name of a file, or its name alone where it has to be made yet and the stage run is only planned."""
    return content_name(path) if Path(path).is_file() else f"missing/{Path(path).name}"


def evaluation_content(evaluation: EvaluationConfig, stage: str) -> Content:
    """Returns the part of the evaluation table that is measured at the checkpoints of `stage`."""
    content = nameless_content(evaluation)
    # The limit of this stage only, so that another stage's limit changes nothing here.
    content["max_new_tokens"] = content.pop("stage_max_new_tokens").get(stage, content["max_new_tokens"])
    # Controls are separate stage runs and change no other one.
    del content["controls"]
    # Likewise only the benchmarks of this stage, without the list of stages.
    content["benchmarks"] = {
        name: benchmark for name, benchmark in content["benchmarks"].items() if stage in benchmark.pop("stages")
    }
    for name, benchmark in content["benchmarks"].items():
        benchmark |= _benchmark_content(evaluation.benchmarks[name])
    # The engine as it is installed, where answers are sampled by another than the checkpoint itself.
    content.pop("engine", None)
    content.pop("precision", None)
    return _with_sampler(content, evaluation)


def _with_sampler(content: Content, evaluation: EvaluationConfig) -> Content:
    """The content with what samples answers, if any of its benchmarks does and it is not the checkpoint itself."""
    content.pop("sampler", None)
    samples = any(benchmark["kind"] in SAMPLED for benchmark in content["benchmarks"].values())
    return content | ({"sampler": evaluation.sampler} if evaluation.sampler and samples else {})


def _benchmark_content(benchmark: BenchmarkConfig) -> Content:
    """Returns what a benchmark depends on by content: its files, the definition of its task, and its verifier."""
    content: Content = {}
    if benchmark.local:
        content["dataset"] = content_name(str(benchmark.dataset))
        if benchmark.examples:
            content["examples"] = content_name(benchmark.examples)
    if benchmark.task_folder is not None:
        content["task_folder"] = content_name(benchmark.task_folder)
    if benchmark.kind in HARNESS:
        content["definition"] = benchmark.definition
        if benchmark.verifier:
            content["judged"] = verifier_content(benchmark.verifier)
    elif benchmark.local:
        content["judged"] = judging(benchmark.task)
        content |= _plugins(file_formats(str(benchmark.dataset), benchmark.task))
    elif items := plugin_set(benchmark.kind, benchmark.task):
        content |= _plugins([items.format] if isinstance(items, QuestionSet) else [], items.source)
    elif benchmark.kind == "sampled" and benchmark.task in FAMILIES:
        content |= _plugins([FAMILIES[benchmark.task].format])
    return content


def local_files(grpo: GRPOConfig, evaluation: EvaluationConfig) -> dict[str, str]:
    """Returns content name -> absolute path of each local file that a stage run reads."""
    benchmarks = evaluation.benchmarks.values()
    datasets = [str(benchmark.dataset) for benchmark in benchmarks if benchmark.local]
    datasets += [benchmark.task_folder for benchmark in benchmarks if benchmark.task_folder is not None]
    tasks = [task for task in grpo.tasks if task.endswith(QUESTION_FILE) and Path(task).is_file()]
    return {content_name(path): str(Path(path).absolute()) for path in (*datasets, *tasks)}


def control_content(evaluation: EvaluationConfig, stage: str, control: str) -> Content:
    """Returns the part of the evaluation table that a control is measured on."""
    content = evaluation_content(evaluation, stage)
    kinds = CONTROL_KINDS[control]
    content["benchmarks"] = {name: b for name, b in content["benchmarks"].items() if b["kind"] in kinds}
    return _with_sampler(content, evaluation)
