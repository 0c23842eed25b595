"""A cell: the complete, typed configuration of one model through all stages.

The parts check their own values; the cell checks what one part requires of another. `Cell.from_config` turns a composed
configuration into these objects and so runs every check before anything is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from pipelines.configuration import TRAINING_STAGES
from pipelines.configuration.bounds import check_bounds
from pipelines.configuration.budgets import MidtrainConfig, PretrainConfig
from pipelines.configuration.compute import ComputeConfig, micro_batch
from pipelines.configuration.data import DataConfig
from pipelines.configuration.engines import check_shared, engine_fault
from pipelines.configuration.evaluation import CHOICE_TASKS, HARNESS, BenchmarkConfig, EvaluationConfig
from pipelines.configuration.grpo import QUESTION_FILE, GRPOConfig
from pipelines.configuration.held_out import check_family_split, check_question_file, check_shard_rows
from pipelines.configuration.model import ModelConfig
from pipelines.configuration.objective import ObjectiveConfig
from pipelines.configuration.start import StartConfig
from pipelines.configuration.start_checkpoint import StartCheckpoint, check_format, read_start
from pipelines.configuration.sweep import SweepConfig
from pipelines.configuration.tracking import TAG_LENGTH, TrackingConfig
from pipelines.errors import UserError, nearest, require, require_option
from pipelines.tasks.families import format_of
from pipelines.tasks.formats import FORMATS
from pipelines.tasks.judging import QUESTION_FORMAT
from pipelines.tasks.question_files import check_questions
from pipelines.tasks.question_sets import SETS, plugin_set


@dataclass
class Cell:
    """One model of the study: its architecture, objective, data, budgets and evaluation.

    The parts have no defaults, because a part made of defaults only would fail its own checks; the groups of `conf/`
    fill them.
    """

    model: ModelConfig = MISSING
    objective: ObjectiveConfig = MISSING
    data: DataConfig = MISSING
    pretrain: PretrainConfig = MISSING
    midtrain: MidtrainConfig = MISSING
    grpo: GRPOConfig = MISSING
    evaluation: EvaluationConfig = MISSING
    tracking: TrackingConfig = MISSING
    compute: ComputeConfig = MISSING
    sweep: SweepConfig = field(default_factory=SweepConfig)
    start: StartConfig = field(default_factory=StartConfig)
    seed: int = 1
    """Seed of the initial weights, the order of the data, and sampling."""
    scale: str = "nano"
    """Label of the study that the cell belongs to; tables are made per scale."""
    until: str = "grpo"
    """The last stage: `pretrain`, `midtrain` or `grpo`."""
    store: str = "store"
    """Folder of stage runs; created if it does not exist."""

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.seed >= 0, "seed", self.seed, fix="it must be 0 or more")
        require_option("until", self.until, TRAINING_STAGES)
        self._check_start()
        self._check_labels()
        self._check_head()
        self._check_token_stages()
        self._check_questions()
        self._check_adapters()
        self._check_engine()
        self._check_lengths()
        self.evaluation.check_means_something()
        for name, benchmark in self.evaluation.benchmarks.items():
            # lm-eval knows its own tasks.
            if benchmark.kind not in HARNESS and set(benchmark.stages) & set(self.stages):
                self._check_benchmark(name, benchmark)

    def _check_labels(self) -> None:
        """Check that names are words, and that W&B accepts those that become tags of its runs."""
        require(self.store.strip() != "", "store", repr(self.store), fix="name the folder of stage runs: store=FOLDER")
        tags = {"scale": self.scale, self._model_key: self.model_name, "objective.name": self.objective.name}
        names = tags | {"data.name": self.data.name, "evaluation.name": self.evaluation.name}
        for key, label in names.items():
            fix = "it is a name in tables and commands; give it letters or digits, and no line breaks"
            require(label.strip() != "" and label.isprintable(), key, repr(label), fix=fix)
        for key, label in (tags | {"sweep.name": self.sweep.name}).items():
            require(
                self.tracking.mode == "off" or len(label) <= TAG_LENGTH,
                key,
                label,
                fix=f"as a tag in W&B it may have {TAG_LENGTH} characters; shorten it, or set tracking=off",
            )

    @property
    def stages(self) -> tuple[str, ...]:
        """The training stages that run."""
        first = self.start.stage if self.start.checkpoint else TRAINING_STAGES[0]
        return TRAINING_STAGES[TRAINING_STAGES.index(first) : TRAINING_STAGES.index(self.until) + 1]

    @property
    def starts_from(self) -> StartCheckpoint | None:
        """The checkpoint that the first stage starts from; None where models are trained from new weights."""
        start = self.start
        return read_start(start.checkpoint, start.revision, code=start.remote_code) if start.checkpoint else None

    @property
    def model_name(self) -> str:
        """What the model is called in tables."""
        return self.start.label if self.start.checkpoint else self.model.name

    @property
    def _model_key(self) -> str:
        return "start.name" if self.start.checkpoint else "model.name"

    def _check_start(self) -> None:
        """Check that the start checkpoint exists, that a stage runs from it, and that it can be asked its questions."""
        start, checkpoint = self.start, self.starts_from
        if checkpoint is None:
            for key in ("pretrain", "midtrain"):
                fix = "only the model of a start checkpoint has one already; set a number"
                require(getattr(self, key).rope_base is not None, f"{key}.rope_base", "null", fix=fix)
            return
        require(
            TRAINING_STAGES.index(start.stage) <= TRAINING_STAGES.index(self.until),
            "start.stage",
            start.stage,
            fix=f"until={self.until} ends before it; set until={start.stage}, or an earlier start.stage",
        )
        fix = "the tokenizer of start.checkpoint has no chat template; leave start.prompts out"
        require(start.prompts == "plain" or checkpoint.has_chat_template, "start.prompts", start.prompts, fix=fix)
        for key, form in self._formats():
            check_format(checkpoint, form, key)
        for stage in (self.pretrain, self.midtrain):
            fix = f"the model of start.checkpoint has {checkpoint.positions} positions; lower it"
            fits = stage.key not in self.stages or stage.sequence_length <= checkpoint.positions
            require(fits, f"{stage.key}.sequence_length", stage.sequence_length, fix=fix)

    def _formats(self) -> Iterator[tuple[str, str]]:
        """The format of each data set of questions, after the key that names the data set."""
        tasks: list[tuple[str, str, str | None]] = [
            ("grpo.tasks", task, None) for task in self.grpo.tasks if "grpo" in self.stages
        ]
        for name, part in self.evaluation.benchmarks.items():
            if part.kind == "sampled" and set(part.stages) & set(self.stages):
                tasks.append((f"evaluation.benchmarks.{name}.task", part.task, part.dataset))
        for key, task, dataset in tasks:
            is_file = dataset is not None or task.endswith(QUESTION_FILE)
            form = (task if dataset else QUESTION_FORMAT) if is_file else format_of(task)
            if form in FORMATS:  # other names are refused where the task is checked
                yield f"{key}={task}", form

    def _check_head(self) -> None:
        checkpoint = self.starts_from
        vocabulary = checkpoint.vocabulary if checkpoint else self.data.vocab_size
        of = "that of start.checkpoint, which has " if checkpoint else "data.vocab_size="
        require(
            self.objective.top_k <= vocabulary,
            "objective.top_k",
            self.objective.top_k,
            fix=f"the head cannot be larger than the vocabulary, {of}{vocabulary}",
        )

    def _check_token_stages(self) -> None:
        """Check that batches can be divided, that mixtures name existing sources, and that rows do not get shorter."""
        data = self.data
        sources = [*(["text"] if data.text else []), *data.tasks, *data.sources]
        for stage in (self.pretrain, self.midtrain):
            if stage.key not in self.stages:
                continue
            micro_batch(stage, self.compute, 1)
            for source, weight in stage.mixture.items():
                key = f"{stage.key}.mixture.{source}"
                self._check_text(key, weight, reads_text=source == "text" and weight > 0)
                fix = "the data have neither text nor tasks nor sources; name some in data.sources"
                require(bool(sources), key, weight, fix=fix)
                if source != "text":
                    require_option(f"{stage.key}.mixture", source, sources)
                if weight > 0 and source in data.tasks:
                    check_family_split(key, source, data=data, split="train")
                elif weight > 0:
                    length = stage.sequence_length
                    check_shard_rows(key, weight, data=data, source=source, split="train", length=length)
        require(
            not {"pretrain", "midtrain"} <= set(self.stages)
            or self.midtrain.sequence_length >= self.pretrain.sequence_length,
            "midtrain.sequence_length",
            self.midtrain.sequence_length,
            fix=f"mid-training does not shorten pretrain.sequence_length={self.pretrain.sequence_length}",
        )

    def _check_text(self, key: str, value: object, *, reads_text: bool) -> None:
        fix = "data.text is empty, so there are no docstrings; name packages in data.text, or sources in data.sources"
        require(bool(self.data.text) or not reads_text, key, value, fix=fix)

    def _check_questions(self) -> None:
        """Check that the data sets of RL are families of `data.tasks`, or files of questions."""
        for task in self.grpo.tasks if "grpo" in self.stages else ():
            if task in self.grpo.question_files.values() and not Path(task).is_file():
                continue  # it can be planned; `unsupported` says how to make the file
            if task.endswith(QUESTION_FILE):
                require(Path(task).is_file(), "grpo.tasks", task, fix="no such file; give the path of an existing one")
                check_questions(task, QUESTION_FORMAT)
                check_question_file("grpo.tasks", task, QUESTION_FORMAT)
            elif not self.data.tasks:
                raise UserError(
                    f"grpo.tasks={task}: data.tasks is empty; name a file of questions: grpo.tasks=[FILE.jsonl]"
                )
            else:
                require_option("grpo.tasks", task, self.data.tasks)
                for split in ("rl", "validation"):
                    check_family_split("grpo.tasks", task, data=self.data, split=split)

    def _check_adapters(self) -> None:
        """Check that adapters are trained on whole models."""
        for stage, lora in (("midtrain", self.midtrain.lora), ("grpo", self.grpo.lora)):
            if stage in self.stages and lora.rank:
                fix = f"adapters are trained on whole models; set compute.strategy=ddp, or {stage}.lora.rank=0"
                require(
                    self.compute.strategy not in ("fsdp", "hsdp"), "compute.strategy", self.compute.strategy, fix=fix
                )

    def _check_engine(self) -> None:
        """Check that RL's engine can be used so; the number of ranks that share it is known when they start."""
        if "grpo" in self.stages:
            check_shared(self.grpo.engine, self.compute.tensor_parallel)
            fix = "the model is dense, so nothing is routed; set it to false, or choose a mixture (model.experts)"
            routed = bool(self.model.experts or self.starts_from)
            require(routed or not self.grpo.routing_replay, "grpo.routing_replay", True, fix=fix)

    def _check_lengths(self) -> None:
        """Check that rows and answers are not longer than the rows that the model of their stage was trained on.

        A start checkpoint keeps its positions.
        """
        start = self.starts_from
        for stage in self.stages:
            trained = self.pretrain if stage == "pretrain" else self.midtrain
            limit = start.positions if start else trained.sequence_length
            fix = (
                f"models after {stage} are trained on {trained.key}.sequence_length={limit}; lower this, or raise that"
            )
            if start:
                fix = f"the model of start.checkpoint has {limit} positions; lower it"
            longest = {}
            if stage == "grpo":
                longest["grpo.max_new_tokens"] = self.grpo.max_new_tokens
                if self.grpo.response_limit(self.grpo.steps) != self.grpo.max_new_tokens:
                    longest["grpo.extended_max_new_tokens"] = self.grpo.extended_max_new_tokens
            for key, length in (longest | self.evaluation.longest(stage)).items():
                require(length <= limit, key, length, fix=fix)

    def _check_benchmark(self, name: str, benchmark: BenchmarkConfig) -> None:
        """Check that the corpus or a local file has what the benchmark measures."""
        key = f"evaluation.benchmarks.{name}"
        if benchmark.kind == "sampled" and benchmark.dataset is not None:
            require(
                benchmark.local,
                f"{key}.dataset",
                benchmark.dataset,
                fix="questions of a `sampled` benchmark come from a local .jsonl or .parquet file",
            )
            tasks = list(FORMATS)
            require_option(f"{key}.task", benchmark.task, tasks)
            check_questions(benchmark.dataset, benchmark.task)
        else:
            tasks = {
                "text": [*(["text"] if self.data.text else []), *self.data.sources],
                "choice": list(CHOICE_TASKS),
                "sampled": list(self.data.tasks),
            }[benchmark.kind]
            tasks += SETS[benchmark.kind]
        items = plugin_set(benchmark.kind, benchmark.task) if benchmark.dataset is None else None
        fix = "both data.sources and a plugin's benchmark have this name; rename one of them"
        require(items is None or benchmark.task not in self.data.sources, f"{key}.task", benchmark.task, fix=fix)
        reads_text = benchmark.kind == "choice" or (benchmark.kind == "text" and benchmark.task == "text")
        self._check_text(f"{key}.task", benchmark.task, reads_text=reads_text and items is None)
        fix = (
            "there is no held-out text: name packages in data.text, or sources in data.sources"
            if benchmark.kind == "text"
            else f"data.tasks is empty; name a file of questions: {key}.dataset=FILE.jsonl and {key}.task=boxed"
        )
        require(bool(tasks), f"{key}.task", benchmark.task, fix=fix)
        require_option(f"{key}.task", benchmark.task, tasks)
        if items:
            items.read(benchmark.task)
        elif benchmark.kind == "sampled" and benchmark.dataset is None:
            check_family_split(f"{key}.task", benchmark.task, data=self.data, split="test")
        elif benchmark.kind == "text":
            length = self.evaluation.text_length
            check_shard_rows(
                f"{key}.task", benchmark.task, data=self.data, source=benchmark.task, split="validation", length=length
            )

    @classmethod
    def from_config(cls, config: DictConfig) -> "Cell":
        """Returns the typed cell of a composed configuration. Raises `UserError` for an impossible value."""
        cell = typed(config)
        assert isinstance(cell, cls)
        return cell


def unsupported(cell: Cell) -> str | None:
    """Returns why a cell can be planned but not trained here, in one sentence; None if it can be trained."""
    # Data and packages may be missing on the machine that plans, so these are no checks of the configuration.
    data = cell.data
    if data.shards is not None and not (Path(data.shards) / "index.json").is_file():
        return (
            f"data.shards={data.shards}: there are no token shards yet; make them with shaping-data prepare "
            f"data={data.name}"
        )
    names = {path: name for name, path in cell.grpo.question_files.items()}
    for task in cell.grpo.tasks if cell.until == "grpo" else ():
        if task in names and not Path(task).is_file():
            return (
                f"grpo.tasks={names[task]}: there is no {task} yet; make it with shaping-data questions and the same "
                f"overrides, or name a file of yours: grpo.tasks=[FILE.jsonl]"
            )
    if find_spec("lm_eval") is None:
        for name, benchmark in cell.evaluation.benchmarks.items():
            if benchmark.kind in HARNESS:
                return (
                    f"evaluation.benchmarks.{name}: it is a task of lm-eval, which is not installed: pip install "
                    "'shaping[evaluation]', or choose evaluation=nano"
                )
    engines = {"evaluation.engine": cell.evaluation.engine}
    if cell.until == "grpo":
        engines["grpo.engine"] = cell.grpo.engine
    for key, engine in engines.items():
        if fault := engine_fault(engine):
            return f"{key}={engine}: {fault}"
    return None


def typed(config: DictConfig, prefix: str = "") -> Any:
    """Returns the object of a composed configuration, or of the part of one whose keys begin with `prefix`.

    Raises `UserError` for an unknown key or an impossible value.
    """
    for key, allowed in _unknown_keys(config, prefix):
        raise UserError(f"{key}: unknown key; {nearest(key, allowed)}")
    return OmegaConf.to_object(config)


def _unknown_keys(config: DictConfig, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Keys that `+key=value` added to a typed part of the configuration, each with the keys of that part."""
    node_type = OmegaConf.get_type(config)
    allowed = [prefix + f.name for f in fields(node_type)] if is_dataclass(node_type) else []
    for key in map(str, config):
        if allowed and prefix + key not in allowed:
            yield prefix + key, allowed
        elif not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            yield from _unknown_keys(config[key], f"{prefix}{key}.")
