"""What a worker runs: one stage run, from its spec to its outcome.

Importing this module brings torch, transformers, lightning and wandb; the fork server does it once for all workers.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from pipelines.configuration.budgets import MidtrainConfig, PretrainConfig
from pipelines.configuration.compute import ComputeConfig
from pipelines.configuration.data import DataConfig
from pipelines.configuration.evaluation import BenchmarkConfig, EvaluationConfig
from pipelines.configuration.grpo import GRPOConfig
from pipelines.configuration.model import ModelConfig
from pipelines.configuration.tracking import TrackingConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.data.token_shards import fingerprint
from pipelines.errors import StageFailure
from pipelines.evaluation.distribution import matched_temperature, mean_entropy
from pipelines.evaluation.evaluate import AS_IT_IS, Control, evaluate, text_rows
from pipelines.evaluation.piece_cache import Pieces, Share
from pipelines.grpo import train_grpo
from pipelines.ledger import Ledger
from pipelines.models.causal_lm import build_model, load_model, on_device, parameter_count, save_checkpoint
from pipelines.models.model_card import model_card
from pipelines.training.next_token import Budget, train
from pipelines.wandb_run import start_wandb_run
from shaping.objective import Objective

get_checkpoint_conversion_mapping("qwen3")  # compiles a thousand patterns, once for all models that are loaded

Outcome = dict[str, Any]
"""`metrics` (the numbers that sum the stage run up) and `measurements` (benchmark results of an evaluation)."""


@dataclass(frozen=True)
class _Context:
    """What every stage is given."""

    spec: dict[str, Any]
    folder: Path
    output: Path
    """Where an evaluation writes: `folder`, or nowhere that lasts for a rank above 0."""
    parent: Path | None
    corpus: Corpus
    ledger: Ledger
    interrupted: Callable[[], bool]
    """Whether the stage was asked to stop (SIGUSR2, SIGTERM, SIGINT). A stage asks between steps; when it is true the
    stage saves its trainer state (`pipelines.training.trainer_state`) in `resume` and raises
    `pipelines.errors.Interrupted`."""

    root: Path
    """Of the store."""
    reference: Path | None = None
    """Folder of the stage run that a control is matched to."""
    rank: int = 0
    """Of several processes at one stage run, which this is; the first alone writes."""
    tasks: int = 1
    nodes: int = 1

    @property
    def resume(self) -> Path:
        """The folder of the trainer state, for exact resume; not published. A stage that finds a state there goes on
        from it; rows of the ledger for steps that are done again replace the old ones by themselves."""
        return self.folder / "resume"

    @property
    def config(self) -> dict[str, Any]:
        return self.spec["config"]

    @property
    def source(self) -> Path:
        """The parent's checkpoint that this stage run starts from, or measures."""
        assert self.parent is not None
        return self.parent / "checkpoints" / self.spec["checkpoint"]

    @property
    def compute(self) -> ComputeConfig:
        return ComputeConfig(**{key: value for key, value in self.spec["compute"].items() if key != "shards"})

    def keep(self, model: Any, step: int, weights: dict[str, Tensor] | None = None) -> None:
        """Save a milestone checkpoint, with a card that says what it is."""
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        place = self.folder / "checkpoints" / f"step-{step:06d}"
        card = model_card(self.spec, step, parameter_count(model), self.ledger.newest)
        save_checkpoint(model, self.corpus.tokenizer, place, card, weights)


def run_stage(
    spec: dict[str, Any],
    folder: Path,
    parent: Path | None,
    root: Path,
    tracking: TrackingConfig,
    interrupted: Callable[[], bool] = lambda: False,
    rank: int = 0,
    tasks: int = 1,
    nodes: int = 1,
    reference: Path | None = None,
) -> Outcome:
    """Do the work of `spec` in `folder` of the store at `root`; `parent` is the folder of the stage run before,
    `reference` that of the one that a control is matched to.

    Returns `{"metrics": ..., "measurements": ...}`. The same spec gives the same numbers on the same machine, also
    when the work was interrupted and goes on from `folder / "resume"`. Raises `Interrupted` soon after
    `interrupted()` turns true. Pre-training, mid-training and evaluations may be shared by `tasks` processes on
    `nodes` nodes; what those of a `rank` above 0 would write goes nowhere, but for the pieces of an evaluation.
    """
    corpus = prepare(_data(spec), root / "cache")
    torch.manual_seed(spec["config"]["seed"])
    with tempfile.TemporaryDirectory() as nowhere:
        output = Path(nowhere) if rank else folder
        with Ledger(output, None if rank else start_wandb_run(spec, root, tracking)) as ledger:
            context = _Context(
                spec, folder, output, parent, corpus, ledger, interrupted, root, reference, rank, tasks, nodes
            )
            outcome = STAGES[spec["stage"]](context)
            ledger.summarize(outcome["metrics"])
    return outcome


def _data(spec: dict[str, Any]) -> DataConfig:
    """The data of a stage run; raises `StageFailure` where its token shards are not those that it was planned with."""
    content = dict(spec["config"]["data"])
    planned = content.pop("shards", None)
    folder = spec["compute"]["shards"]
    if planned != (folder and fingerprint(folder)):
        raise StageFailure(
            f"data.shards={folder}: its index has another sha256 than when this was planned; launch it again to plan "
            "it with what is there now"
        )
    return DataConfig(name="", **content, shards=folder)


def _pretrain(context: _Context) -> Outcome:
    config, corpus = context.config, context.corpus
    budget = PretrainConfig(**config["pretrain"])
    padded = config["data"]["vocab_size"] if corpus.sharded else None
    shape = ModelConfig(name="", **config["model"])
    model = build_model(shape, corpus.tokenizer, budget.rope_base, config["seed"], padded)
    metrics = _train(context, model, budget, shape.balance_rate)
    return {"metrics": metrics | {"parameters": parameter_count(model)}, "measurements": []}


def _train(context: _Context, model: PreTrainedModel, budget: Budget, balance_rate: float) -> dict[str, float]:
    return train(
        model,
        _objective(context.config, context.corpus),
        budget,
        context.corpus,
        context.config["seed"],
        context.ledger,
        context.keep,
        context.resume,
        context.interrupted,
        context.rank,
        context.tasks,
        context.nodes,
        context.compute,
        balance_rate,
    )


def _midtrain(context: _Context) -> Outcome:
    config, corpus = context.config, context.corpus
    budget = MidtrainConfig(**config["midtrain"])
    model = load_model(context.source, budget.rope_base, corpus.tokenizer)
    metrics = _train(context, model, budget, config.get("balance_rate", 0.0))
    return {"metrics": metrics, "measurements": []}


def _grpo(context: _Context) -> Outcome:
    model = load_model(context.source)
    metrics = train_grpo(
        model,
        GRPOConfig(**context.config["grpo"]),
        context.corpus,
        context.config["seed"],
        context.ledger,
        context.keep,
        context.folder,
        context.interrupted,
    )
    return {"metrics": metrics, "measurements": []}


def _evaluate(context: _Context) -> Outcome:
    config = dict(context.config["evaluation"])
    rows = {name: {k: v for k, v in b.items() if k != "dataset_sha256"} for name, b in config.pop("benchmarks").items()}
    benchmarks = {name: BenchmarkConfig(**row, stages=[]) for name, row in rows.items()}
    evaluation = EvaluationConfig(name="", **config, benchmarks=benchmarks)
    variant = context.config.get("variant")
    identity = {key: context.spec[key] for key in ("version", "parent", "checkpoint")} | {"variant": variant}
    identity |= {key: context.config[key] for key in ("data", "text_versions")}
    share = Share(context.rank, context.tasks, context.interrupted)
    pieces = Pieces(context.root / "cache" / "evaluations", identity, share)
    model = on_device(load_model(context.source), context.rank)
    return evaluate(
        model,
        evaluation,
        context.corpus,
        context.config["data"]["top_k"],
        context.ledger,
        context.output,
        pieces,
        _control(context, evaluation, model, pieces) if variant else AS_IT_IS,
    )


def _control(context: _Context, evaluation: EvaluationConfig, model: Any, pieces: Pieces) -> Control:
    """The control that a variant asks for; its temperature is found once and kept with the pieces."""
    variant = context.config["variant"]
    if "objective" in variant:
        return Control(variant["name"], objective=_objective(variant, context.corpus))
    text = next(b for b in evaluation.benchmarks.values() if b.kind == "text")
    rows, *_ = text_rows(context.corpus, text, evaluation.text_length)

    def find() -> list[dict[str, Any]]:
        assert context.reference is not None
        reference = load_model(context.reference / "checkpoints" / variant["reference"]["checkpoint"])
        wanted, _ = mean_entropy(on_device(reference, context.rank), rows)
        return [{"temperature": matched_temperature(model, rows, wanted)}]

    identity = {"temperature": variant, "items": text.items, "text_length": evaluation.text_length}
    (found,) = pieces.rows("temperature", identity, [range(1)], lambda _: find())
    return Control(variant["name"], temperature=found["temperature"])


def _objective(config: dict[str, Any], corpus: Corpus) -> Objective:
    knobs = config["objective"]
    return Objective(**{**knobs, "top_k": knobs["top_k"] or min(100, len(corpus.tokenizer))})


STAGES: dict[str, Callable[[_Context], Outcome]] = {
    "pretrain": _pretrain,
    "midtrain": _midtrain,
    "grpo": _grpo,
    "evaluate": _evaluate,
}
