"""Runs one stage run inside a worker, from its spec to its outcome.

Importing this module imports torch, transformers and lightning; the fork server does so once for all workers.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from pipelines.configuration import START
from pipelines.configuration.budgets import MidtrainConfig, PretrainConfig
from pipelines.configuration.compute import ComputeConfig
from pipelines.configuration.data import DataConfig
from pipelines.configuration.evaluation import LOCAL_FILES, BenchmarkConfig, EvaluationConfig
from pipelines.configuration.grpo import QUESTION_FILE, GRPOConfig
from pipelines.configuration.local_files import content_name, path_of
from pipelines.configuration.model import ModelConfig
from pipelines.configuration.tracking import TrackingConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.data.token_shards import fingerprint
from pipelines.data.tokenizer import StartTokenizer
from pipelines.errors import StageFailure
from pipelines.evaluation.benchmark_cache import BenchmarkCache
from pipelines.evaluation.context import Control, EvaluationContext
from pipelines.evaluation.distribution import matched_temperature, mean_entropy
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.held_out_text import held_out_rows
from pipelines.evaluation.sampler import check_sampler
from pipelines.grpo import train_grpo
from pipelines.ledger import Ledger
from pipelines.models.adapters import add_adapters
from pipelines.models.causal_lm import build_model, load_model, on_device, parameter_count
from pipelines.models.logit_scale import scale_logits
from pipelines.models.start_import import import_start
from pipelines.plugins.loading import load_planned
from pipelines.rollouts.attention import use_attention_by_blocks
from pipelines.stage_context import Ranks, StageContext, never_interrupted
from pipelines.tracking.start import start_trackers
from pipelines.training.parallel import is_sharded
from pipelines.training.train import train
from pipelines.training.weight_stream import weight_stream
from shaping.objective import Objective

logger = logging.getLogger("pipelines")

get_checkpoint_conversion_mapping("qwen3")  # compiles a thousand patterns, once for all models that are loaded later

Outcome = dict[str, Any]
"""`metrics`: the numbers that summarize the stage run. `measurements`: the benchmark results of an evaluation."""


def run_stage(
    spec: dict[str, Any],
    *,
    folder: Path,
    root: Path,
    tracking: TrackingConfig,
    parent: Path | None = None,
    reference: Path | None = None,
    inputs: Mapping[str, str] | None = None,
    interrupted: Callable[[], bool] = never_interrupted,
    rank: int = 0,
    tasks: int = 1,
    nodes: int = 1,
) -> Outcome:
    """Run the stage of `spec` in `folder`, which is inside the store at `root`.

    `parent` is the folder of the stage run that this one continues or measures, `reference` that of the one that a
    control is matched to; `inputs` are the hashes of the models that are loaded from both. Returns
    `{"metrics": ..., "measurements": ...}`. The same spec gives the same numbers on the same machine, also if the work
    was interrupted and resumes from `folder / "resume"`. Raises `Interrupted` soon
    after `interrupted()` turns true.

    `tasks` processes on `nodes` nodes can share pre-training, mid-training and evaluations; files that those with a
    `rank` above 0 write are discarded, except for the cached rows of an evaluation.
    """
    if spec["stage"] == START:
        return import_start(spec, folder) if rank == 0 else {"metrics": {}, "measurements": []}
    started, config = time.monotonic(), spec["config"]
    name = f"{spec['stage']}/{spec['signature']}"
    labels = "  ".join(f"{key} {value}" for key, value in spec["labels"].items() if value not in ("", None))
    logger.info("%s starts as rank %d of %d:  %s", name, rank, tasks, labels)
    # The corpus is built on the first use of its configuration and read from the cache afterwards.
    load_planned(spec["compute"].get("plugins", {}))
    corpus = prepare(_data_config(spec), root / "cache", _start_tokenizer(spec, parent))
    torch.manual_seed(config["seed"])
    compute = {key: value for key, value in spec["compute"].items() if key not in ("shards", "files", "plugins")}
    # Rank 0 writes to the store and to the trackers; the others write the same files to a folder that is deleted.
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary) if rank else None
        trackers = [] if rank else start_trackers(spec, root, tracking)
        with Ledger(scratch or folder, trackers) as ledger:
            context = StageContext(
                folder=folder,
                corpus=corpus,
                ledger=ledger,
                seed=config["seed"],
                compute=ComputeConfig(**compute),
                ranks=Ranks(rank, tasks, nodes),
                interrupted=interrupted,
                spec=spec,
                parent=parent,
                reference=reference,
                inputs=inputs or {},
                root=root,
                scratch=scratch,
            )
            outcome = STAGE_FUNCTIONS[spec["stage"]](context)
            ledger.summarize(outcome["metrics"])
    logger.info("%s finished after %.1f s", name, time.monotonic() - started)
    return outcome


def _data_config(spec: dict[str, Any]) -> DataConfig:
    """The data of a stage run. Raises `StageFailure` if its token shards have changed since it was planned."""
    content = {key: value for key, value in spec["config"]["data"].items() if key != "version"}
    planned = content.pop("shards", None)  # the fingerprint of the shards, in place of their folder
    folder = spec["compute"]["shards"]
    if planned != (folder and fingerprint(folder)):
        raise StageFailure(
            f"data.shards={folder}: its index has another sha256 than when this stage run was planned; launch it again "
            "to plan it with the current shards"
        )
    return DataConfig(name="", **content, shards=folder)


def _start_tokenizer(spec: dict[str, Any], parent: Path | None) -> StartTokenizer | None:
    """The tokenizer of a chain with a start checkpoint, which each of its checkpoints has; None for other chains."""
    start = spec["config"].get("start")
    if start is None:
        return None
    assert parent is not None
    return StartTokenizer(parent / "checkpoints" / spec["checkpoint"], start.get("prompts") == "chat")


def _pretrain(context: StageContext) -> Outcome:
    config, corpus = context.config, context.corpus
    budget = PretrainConfig(**config["pretrain"])
    objective = _objective(config, corpus)
    if "start" in config:
        model = load_model(context.source, tokenizer=corpus.tokenizer, deferred=_deferred(context))
        metrics = train(model, objective, budget, context=context, balance_rate=config.get("balance_rate", 0.0))
        return {"metrics": metrics | {"parameters": parameter_count(model)}, "measurements": []}
    assert budget.rope_base is not None
    shape = ModelConfig(name="", **config["model"])
    # Shards name a vocabulary that the tokenizer may not fill.
    model = build_model(
        shape,
        corpus.tokenizer,
        budget.rope_base,
        seed=context.seed,
        vocabulary=config["data"]["vocab_size"] if corpus.sharded else None,
        length=budget.sequence_length,
        deferred=_deferred(context),
    )
    metrics = train(model, objective, budget, context=context, balance_rate=shape.balance_rate)
    return {"metrics": metrics | {"parameters": parameter_count(model)}, "measurements": []}


def _deferred(context: StageContext) -> bool:
    """Whether the ranks make the weights while they shard them, so that none of them holds the whole model."""
    return is_sharded(context.compute, context.ranks.tasks)


def _midtrain(context: StageContext) -> Outcome:
    config = context.config
    budget = MidtrainConfig(**config["midtrain"])
    # A start checkpoint keeps its positions.
    length = None if "start" in config else budget.sequence_length
    model = load_model(
        context.source, budget.rope_base, context.corpus.tokenizer, length=length, deferred=_deferred(context)
    )
    if budget.lora.rank:
        add_adapters(model, budget.lora, key="midtrain.lora", seed=context.seed)
    objective = _objective(config, context.corpus)
    metrics = train(model, objective, budget, context=context, balance_rate=config.get("balance_rate", 0.0))
    return {"metrics": metrics, "measurements": []}


def _grpo(context: StageContext) -> Outcome:
    # The entropy of a tempered model is measured with the whole model on every rank.
    deferred = _deferred(context) and "variant" not in context.config
    model = load_model(context.source, tokenizer=context.corpus.tokenizer, deferred=deferred)
    content = {key: value for key, value in context.config["grpo"].items() if key not in ("judged", "plugins")}
    files = context.spec["compute"].get("files", {})
    tasks = [path_of(task, files, "grpo.tasks") if task.endswith(QUESTION_FILE) else task for task in content["tasks"]]
    tempered = _temper(model, context) if "variant" in context.config else {}
    config = GRPOConfig(**content | {"tasks": tasks})
    if config.lora.rank:
        add_adapters(model, config.lora, key="grpo.lora", seed=context.seed)
    metrics = train_grpo(model, config, context)
    return {"metrics": metrics | tempered, "measurements": []}


def _temper(model: PreTrainedModel, context: StageContext) -> dict[str, float]:
    """Scale the logits of RL's start model, in place, until its entropy on held-out text is that of the reference.

    Returns the temperature and both entropies. A resumed run finds the same temperature again.
    """
    variant, rank = context.config["variant"], context.ranks.rank
    text = BenchmarkConfig("text", "text", variant["text"]["task"], items=variant["text"]["items"])
    rows = held_out_rows(context.corpus, text, variant["text"]["length"]).tokens
    assert context.reference is not None
    reference = load_model(context.reference / "checkpoints" / variant["reference"]["checkpoint"])
    entropy, _slope = mean_entropy(_measurable(reference, rank), rows)
    del reference
    temperature = matched_temperature(_measurable(model, rank), rows, entropy)
    scale_logits(model, 1 / temperature)
    reached, _slope = mean_entropy(model, rows)
    context.log("%s: T = %.4f, entropy %.4f nats, wanted %.4f", variant["name"], temperature, reached, entropy)
    model.cpu()  # the trainer moves it, or its shards, itself
    return {"start_temperature": temperature, "start_entropy": reached, "reference_entropy": entropy}


def _evaluate(context: StageContext) -> Outcome:
    config = dict(context.config["evaluation"])
    planned = config.pop("sampler", None)
    files = context.spec["compute"].get("files", {})
    benchmarks = {name: _benchmark(name, content, files) for name, content in config.pop("benchmarks").items()}
    # What cached rows depend on, besides the benchmark itself.
    variant = context.config.get("variant")
    identity = {key: context.spec[key] for key in ("version", "parent", "checkpoint")} | {"variant": variant}
    identity |= {key: context.config[key] for key in ("data", "text_versions")} | {"inputs": context.inputs}
    cache = BenchmarkCache(context.cache / "evaluations", identity, context.ranks, context.interrupted)
    model = _measurable(load_model(context.source, tokenizer=context.corpus.tokenizer), context.ranks.rank)
    _log_model(model)
    settings = {key: planned[key] for key in ("engine", "precision")} if planned else {}
    evaluation = EvaluationContext(
        stage=context,
        model=model,
        config=EvaluationConfig(name="", **config, **settings, benchmarks=benchmarks),
        top_k=context.config["data"]["top_k"],
        cache=cache,
        weights=partial(weight_stream, model),
    )
    check_sampler(evaluation.config, planned)
    if variant:
        evaluation = replace(evaluation, control=_control(evaluation, variant))
    with closing(evaluation.sampler):
        return evaluate(evaluation)


def _measurable(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    """The model on the device of `rank`, in evaluation mode."""
    use_attention_by_blocks(model)
    return on_device(model, rank)


def _benchmark(name: str, content: dict[str, Any], files: dict[str, str]) -> BenchmarkConfig:
    """The benchmark of a signed configuration. Raises `StageFailure` if a file of it has changed since the plan."""
    key = f"evaluation.benchmarks.{name}.dataset"
    signed_only = ("examples", "definition", "judged", "plugins")
    row = {field: value for field, value in content.items() if field not in signed_only}
    # Not every data set is a local file.
    if str(row["dataset"]).endswith(LOCAL_FILES):
        row["dataset"] = path_of(row["dataset"], files, key)
    if "task_folder" in row:
        row["task_folder"] = path_of(row["task_folder"], files, f"evaluation.benchmarks.{name}.task_folder")
    benchmark = BenchmarkConfig(**row, stages=[])
    examples = benchmark.examples and content_name(benchmark.examples)
    if examples != content.get("examples"):
        raise StageFailure(
            f"{key}={benchmark.dataset}: its file of worked examples has changed since this stage run was planned; "
            "launch it again to plan it with the current file"
        )
    return benchmark


def _control(evaluation: EvaluationContext, variant: dict[str, Any]) -> Control:
    """The control that the variant names; its temperature is computed once and cached with the evaluation's rows."""
    context, config = evaluation.stage, evaluation.config
    if "objective" in variant:
        return Control(variant["name"], objective=_objective(variant, context.corpus))
    # The first by name: the order of keys in a configuration may not change a result.
    text = next(benchmark for _, benchmark in sorted(config.benchmarks.items()) if benchmark.kind == "text")
    rows = held_out_rows(context.corpus, text, config.text_length).tokens

    def compute(_: range) -> list[dict[str, Any]]:
        assert context.reference is not None
        reference = load_model(context.reference / "checkpoints" / variant["reference"]["checkpoint"])
        entropy, _slope = mean_entropy(_measurable(reference, context.ranks.rank), rows)
        return [{"temperature": matched_temperature(evaluation.model, rows, entropy)}]

    key = {"temperature": variant, "task": text.task, "items": text.items, "text_length": config.text_length}
    (row,) = evaluation.cache.rows("temperature", key, ranges=[range(1)], compute=compute)
    return Control(variant["name"], temperature=row["temperature"])


def _objective(config: dict[str, Any], corpus: Corpus) -> Objective:
    parameters = config["objective"]
    return Objective(**{**parameters, "top_k": parameters["top_k"] or corpus.top_k})


def _log_model(model: PreTrainedModel) -> None:
    logger.info("model: %s parameters in %s on %s", f"{parameter_count(model):,}", model.dtype, model.device)


STAGE_FUNCTIONS: dict[str, Callable[[StageContext], Outcome]] = {
    "pretrain": _pretrain,
    "midtrain": _midtrain,
    "grpo": _grpo,
    "evaluate": _evaluate,
}
