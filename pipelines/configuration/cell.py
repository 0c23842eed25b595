"""A cell: the complete, typed configuration of one model taken through all stages.

Its parts stand in `pipelines.configuration`; here is what one part asks of another. Turning a composed configuration
into these objects (`Cell.from_config`) runs every check, before anything is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from pipelines.configuration import TRAINING_STAGES
from pipelines.configuration.budgets import MidtrainConfig, PretrainConfig
from pipelines.configuration.compute import ComputeConfig, micro_batch
from pipelines.configuration.data import DataConfig
from pipelines.configuration.evaluation import CHOICE_TASKS, HARNESS, EvaluationConfig
from pipelines.configuration.grpo import GRPOConfig
from pipelines.configuration.model import ModelConfig
from pipelines.configuration.objective import ObjectiveConfig
from pipelines.configuration.sweep import SweepConfig
from pipelines.configuration.tracking import TrackingConfig
from pipelines.errors import UserError, nearest, require
from pipelines.tasks.formats import FORMATS


@dataclass
class Cell:
    """One model's way through the study: what it is, what it learns from and how it is measured.

    The parts have no defaults here (a part made from defaults alone would fail its own checks); the groups of `conf/`
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
    seed: int = 1
    scale: str = "nano"
    until: str = "grpo"
    """The last stage: `pretrain`, `midtrain` or `grpo`."""
    store: str = "store"

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, fix="it must be 0 or more")
        require(self.until in TRAINING_STAGES, "until", self.until, fix=nearest(self.until, TRAINING_STAGES))
        require(
            self.objective.top_k <= self.data.vocab_size,
            "objective.top_k",
            self.objective.top_k,
            fix=f"the head cannot be larger than the vocabulary, data.vocab_size={self.data.vocab_size}",
        )
        for stage in (self.pretrain, self.midtrain):
            if TRAINING_STAGES.index(stage.key) <= TRAINING_STAGES.index(self.until):
                micro_batch(stage, self.compute, 1)
            for source in stage.mixture:
                known = ["text", *self.data.tasks, *self.data.sources]
                require(source in known, f"{stage.key}.mixture", source, fix=nearest(source, known))
        for name, benchmark in self.evaluation.benchmarks.items():
            if benchmark.kind in HARNESS:
                continue
            key = f"evaluation.benchmarks.{name}.task"
            if benchmark.kind == "sampled" and benchmark.dataset is not None:
                require(
                    benchmark.local,
                    f"evaluation.benchmarks.{name}.dataset",
                    benchmark.dataset,
                    fix="questions of our own formats come from a local .jsonl or .parquet file",
                )
                asked = list(FORMATS)
            else:
                asked = {
                    "text": ["text", *self.data.sources],
                    "choice": list(CHOICE_TASKS),
                    "sampled": self.data.tasks,
                }[benchmark.kind]
            require(benchmark.task in asked, key, benchmark.task, fix=nearest(benchmark.task, asked))
        for task in self.grpo.tasks:
            if task.endswith(".jsonl"):
                require(Path(task).is_file(), "grpo.tasks", task, fix="there is no such file")
            else:
                require(task in self.data.tasks, "grpo.tasks", task, fix=nearest(task, self.data.tasks))
        require(
            self.midtrain.sequence_length >= self.pretrain.sequence_length,
            "midtrain.sequence_length",
            self.midtrain.sequence_length,
            fix=f"mid-training does not shorten pretrain.sequence_length={self.pretrain.sequence_length}",
        )

    @classmethod
    def from_config(cls, config: DictConfig) -> "Cell":
        """The typed cell of a composed configuration; raises `UserError` where a value is impossible."""
        cell = typed(config)
        assert isinstance(cell, cls)
        return cell


def unsupported(cell: Cell) -> str | None:
    """Why the pipelines cannot train a cell that can be planned, in one sentence; None where they can."""
    data = cell.data
    if data.shards is not None and not (Path(data.shards) / "index.json").is_file():
        return (
            f"data.shards={data.shards}: there are no token shards yet; make them with shaping-data prepare "
            f"data={data.name}"
        )
    if find_spec("lm_eval") is None:
        for name, benchmark in cell.evaluation.benchmarks.items():
            if benchmark.kind in HARNESS:
                return (
                    f"evaluation.benchmarks.{name}: it is a task of lm-eval, which is not installed: pip install "
                    "'shaping[evaluation]', or choose evaluation=nano"
                )
    return None


def typed(config: DictConfig, prefix: str = "") -> Any:
    """The object of a composed configuration, or of the part of one whose keys begin with `prefix`.

    Raises `UserError` for a key that there is not, and where a value is impossible.
    """
    for key, known in _added(config, prefix):
        raise UserError(f"{key}: there is no such key; {nearest(key, known)}")
    return OmegaConf.to_object(config)


def _added(config: DictConfig, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Keys that `+key=value` put into a typed part of the configuration, each with the keys that there are."""
    kind = OmegaConf.get_type(config)
    known = [prefix + f.name for f in fields(kind)] if is_dataclass(kind) else []
    for key in map(str, config):
        if known and prefix + key not in known:
            yield prefix + key, known
        elif not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            yield from _added(config[key], f"{prefix}{key}.")
