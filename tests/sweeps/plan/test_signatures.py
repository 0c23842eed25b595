"""Every configuration key either can change a result, and changes signatures, or cannot, and does not.

A new key needs an entry in `CHANGES` or `KEEPS`; without one the first test fails.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipelines.configuration import STAGES, engines
from pipelines.configuration.cell import Cell
from pipelines.configuration.data import SourceConfig
from pipelines.configuration.evaluation import TASK_FILES, BenchmarkConfig, EvaluationConfig
from pipelines.configuration.question_sets import QuestionSetConfig
from pipelines.configuration.tracking import OTHER_TRACKERS
from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.compose.launcher_options import LAUNCHERS
from sweeps.execute.display import title
from sweeps.plan.planner import plan
from sweeps.plan.signatures import control_content, signature_of

CHANGES = {
    "pretrain": """
        seed
        model.layers model.d_model model.ffn model.heads model.kv_heads model.head_dim model.tied_embeddings
        model.experts model.active_experts model.balance_rate
        objective.beta objective.lam_head objective.lam_tail objective.top_k
        data.text data.tasks data.tasks_per_family data.worked_share data.vocab_size data.top_k data.seed
        data.careless_share data.shards
        pretrain.attention pretrain.precision pretrain.spike_sigmas pretrain.max_skipped
        pretrain.tokens pretrain.batch_tokens pretrain.sequence_length pretrain.learning_rate pretrain.rope_base
        pretrain.mixture pretrain.milestones pretrain.weight_decay pretrain.adam_beta1 pretrain.adam_beta2
        pretrain.gradient_clip pretrain.warmup_steps
    """,
    "midtrain": """
        midtrain.attention midtrain.precision midtrain.spike_sigmas midtrain.max_skipped
        midtrain.tokens midtrain.batch_tokens midtrain.sequence_length midtrain.learning_rate midtrain.rope_base
        midtrain.mixture midtrain.milestones midtrain.weight_decay midtrain.adam_beta1 midtrain.adam_beta2
        midtrain.gradient_clip midtrain.final_learning_rate midtrain.decay midtrain.objective
    """,
    "grpo": """
        grpo.steps grpo.prompts grpo.samples grpo.temperature grpo.learning_rate grpo.max_new_tokens grpo.tasks
        grpo.clip_low grpo.clip_high grpo.resample_rounds grpo.milestones grpo.weight_decay grpo.adam_beta1
        grpo.adam_beta2 grpo.gradient_clip grpo.warmup_steps grpo.micro_batch_tokens grpo.engine grpo.importance_cap
        grpo.extended_from_step grpo.extended_max_new_tokens grpo.advantage grpo.loss grpo.epochs grpo.minibatches
        grpo.kl_weight grpo.overlong grpo.overlong_buffer grpo.dynamic_sampling grpo.leftovers grpo.pass_rate_low
        grpo.pass_rate_high grpo.held_out_every grpo.held_out_problems grpo.collapse grpo.collapse_entropy
        grpo.collapse_length grpo.precision grpo.start_divergence grpo.seed grpo.routing_replay
    """,
    "evaluate": """
        evaluation.temperature evaluation.top_p evaluation.max_new_tokens evaluation.text_length evaluation.pass_k
        evaluation.stage_max_new_tokens evaluation.engine evaluation.precision
        evaluation.benchmarks evaluation.benchmarks.*.kind evaluation.benchmarks.*.group evaluation.benchmarks.*.task
        evaluation.benchmarks.*.stages evaluation.benchmarks.*.items evaluation.benchmarks.*.samples
        evaluation.benchmarks.*.dataset evaluation.benchmarks.*.shots evaluation.benchmarks.*.metric
        evaluation.benchmarks.*.verifier evaluation.benchmarks.*.max_new_tokens
        evaluation.benchmarks.*.task_folder
    """,
}
"""The first stage whose signature a key changes; those after it follow through their parents."""

START = """
    start.checkpoint start.stage start.name start.revision start.prompts start.remote_code
    midtrain.lora.rank midtrain.lora.alpha midtrain.lora.targets grpo.lora.rank grpo.lora.alpha grpo.lora.targets
"""
"""Keys of a start checkpoint and of adapters, which the cells here do not have; `test_start.py` tests them."""

KEEPS = """
    model.name objective.name data.name evaluation.name scale store sweep.name sweep.points sweep.grid sweep.zip
    tracking.mode tracking.project tracking.entity tracking.console tracking.system_metrics
    tracking.tensorboard tracking.csv tracking.mlflow tracking.others
    until evaluation.controls
    grpo.questions grpo.questions_folder
    data.sources data.tokenizer data.mixtures.pretrain data.mixtures.midtrain
    compute.micro_batch_tokens compute.strategy compute.shard_ranks compute.activation_checkpointing compute.compile
    compute.keep_last compute.verifier_workers compute.tensor_parallel
"""
"""Names, paths and tracking; how shards are made, which are identified by their hash; how a stage is computed; and
`until` and `controls`, which change how much is run and not its results."""

OTHER_VALUES: dict[str, Any] = {
    "until": "midtrain",
    "pretrain.attention": "document",
    "pretrain.precision": "bfloat16",
    "pretrain.spike_sigmas": 6.0,
    "pretrain.max_skipped": 3,
    "midtrain.attention": "document",
    "midtrain.precision": "bfloat16",
    "midtrain.spike_sigmas": 6.0,
    "midtrain.max_skipped": 3,
    "data.shards": "tokens",
    "data.sources": {"web": SourceConfig("text", "*.txt")},
    "data.tokenizer": "folder",
    "data.mixtures.pretrain": {"text": 1.0},
    "data.mixtures.midtrain": {"text": 1.0},
    "compute.micro_batch_tokens": 128,
    "compute.strategy": "fsdp",
    "compute.shard_ranks": 2,
    "compute.verifier_workers": 2,
    "compute.activation_checkpointing": "full",
    "midtrain.objective": "ce",
    "midtrain.decay": "linear",
    "midtrain.sequence_length": 256,
    "data.text": ["networkx"],
    "data.tasks": ["chain3", "chain4", "chain5", "python", "boolean", "order"][::-1],
    "grpo.tasks": ["chain3"],
    "tracking.mode": "off",
    "tracking.others": ["board"],
    "grpo.seed": 7,
    "grpo.advantage": "centred",
    "grpo.loss": "sequence",
    "grpo.overlong": "filter",
    "grpo.leftovers": "keep",
    "grpo.collapse": "off",
    "grpo.engine": "vllm",
    "grpo.importance_cap": 2.0,
    "grpo.questions": {"x": QuestionSetConfig("x.jsonl")},
    "grpo.precision": "bfloat16",
    "grpo.kl_weight": 0.1,
    "grpo.warmup_steps": 1,
    "grpo.pass_rate_low": 0.1,
    "grpo.pass_rate_high": 0.9,
    "grpo.extended_from_step": 800,
    "evaluation.stage_max_new_tokens": dict.fromkeys(("pretrain", "midtrain", "grpo"), 7),
    "objective.top_k": 5,
    "evaluation.benchmarks.*.kind": "text",
    "evaluation.benchmarks.*.stages": ["pretrain", "midtrain"],
    "evaluation.benchmarks.*.task": "chain4",
    "evaluation.benchmarks.*.dataset": str(Path(__file__).parents[3] / "tests/sweeps/questions.jsonl"),
    "evaluation.benchmarks.*.shots": 3,
    "evaluation.benchmarks.*.metric": "acc",
    "evaluation.benchmarks.*.verifier": "math",
    "evaluation.benchmarks.*.task_folder": str(TASK_FILES),
    "evaluation.benchmarks.*.max_new_tokens": 7,
    "evaluation.max_new_tokens": 20,
    "evaluation.engine": "replica",
    "evaluation.precision": "float32",
    "evaluation.text_length": 32,
    "evaluation.controls": {},
    "evaluation.pass_k": [2],
    "sweep.points": [{"seed": 1}],
    "sweep.grid": {"seed": [1]},
    "sweep.zip": {"seed": [1]},
}
"""Other valid values, where they do not follow from the type."""


def keys_of(kind: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(kind):
        if is_dataclass(field.type):
            yield from keys_of(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


ALL_KEYS = [key for key in keys_of(Cell) if key not in START.split()]
ALL_KEYS += keys_of(BenchmarkConfig, "evaluation.benchmarks.*.")
DECIDED = {key: stage for stage, keys in CHANGES.items() for key in keys.split()} | dict.fromkeys(KEEPS.split())


@pytest.fixture(autouse=True)
def _extended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OTHER_TRACKERS, "board", "board:Board")
    # So that ranks can share the engine of these cells.
    monkeypatch.setattr(engines, "SHARED_ENGINES", tuple(engines.ENGINES))


def test_every_key_has_a_decision() -> None:
    assert set(START.split()) <= set(keys_of(Cell))
    assert set(ALL_KEYS) - set(DECIDED) == set(), "say in CHANGES or KEEPS whether the key can change a result"
    assert set(DECIDED) - set(ALL_KEYS) == set(), "remove these keys, which do not exist any more"
    assert len(DECIDED) == sum(len(keys.split()) for keys in [*CHANGES.values(), KEEPS])


def base() -> Cell:
    """Returns a shaped cell with experts, so that every key has an effect."""
    experts = ["model.experts=8", "model.active_experts=2"]
    return compose_cell(["objective.beta=0.1", "objective.lam_head=0.1", "objective.lam_tail=-0.1", *experts])


BASE = base()
BEFORE = {stage: [r.signature for r in plan([BASE]).runs.values() if r.stage == stage] for stage in CHANGES}


def changed(key: str) -> Cell:
    """Returns the base cell with another valid value of `key`."""
    content = OmegaConf.structured(BASE)
    path = key.replace("*", "Chain-3")
    old = OmegaConf.select(content, path)
    if key in OTHER_VALUES:
        new = OTHER_VALUES[key]
    elif OmegaConf.is_dict(old):
        new = {name: old[name] for name in list(old)[:-1]}  # one entry fewer
    elif isinstance(old, bool):
        new = not old
    elif isinstance(old, int | float):
        new = type(old)(old * 2)
        if key.endswith(
            ("beta1", "beta2", "top_p", "worked_share", "careless_share", "clip_low", "final_learning_rate", "rate")
        ):
            new = old / 2
        if key.endswith((".tokens", "_tokens", "heads")) and isinstance(old, int):
            new = old // 2 if key == "model.kv_heads" else old * 2
        if key == "data.seed":
            new = 3
    else:
        new = "other"
    assert new != old, key
    parent, _, name = path.rpartition(".")
    node = OmegaConf.select(content, parent) if parent else content
    OmegaConf.set_struct(content, False)
    node[name] = new
    if key == "evaluation.precision":  # that of the default engine is fixed
        node.engine = "replica"
    if name in ("kind", "dataset"):  # a kind has its own tasks, and a file's are formats
        node.task = "text" if name == "kind" else "marked"
    if name == "task_folder":  # only tasks of lm-eval have one
        node.kind, node.task = "harness", sorted(TASK_FILES.glob("*.yaml"))[0].stem
    cell = OmegaConf.to_object(content)
    assert isinstance(cell, Cell)
    return cell


def by_stage(cell: Cell) -> dict[str, list[str]]:
    runs = plan([cell]).runs.values()
    return {stage: [r.signature for r in runs if r.stage == stage] for stage in CHANGES}


@pytest.mark.parametrize("key", ALL_KEYS)
def test_a_key_changes_the_signatures_that_it_should(key: str) -> None:
    before, after = BEFORE, by_stage(changed(key))
    first = DECIDED[key]
    if first is None:
        assert all(set(after[stage]) <= set(before[stage]) for stage in before)
        return
    stages = list(CHANGES)
    for stage in stages:
        if stages.index(stage) < stages.index(first):
            assert before[stage] == after[stage]
    assert not set(before[first]) & set(after[first]) or key.startswith("evaluation.benchmarks")
    assert before[first] != after[first]
    if first != "evaluate":
        assert not set(before["grpo"]) & set(after["grpo"])


def test_an_engine_is_signed_where_it_samples_with_its_type_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage runs and controls that only score texts stay as they are; no two engines, types or versions share one."""
    versions = {"vllm": "0.32.0"}
    monkeypatch.setattr("pipelines.configuration.engines.installed_version", versions.get)

    def evaluations(*overrides: str) -> dict[str, str]:
        graph = plan(compose_cells(["objective=ce,diversity", *overrides]))
        return {title(run): signature for signature, run in graph.runs.items() if run.stage == "evaluate"}

    plain = evaluations()
    others = [
        evaluations(*overrides)
        for overrides in (
            ["evaluation.engine=replica"],
            ["evaluation.engine=replica", "evaluation.precision=float32"],
            ["evaluation.engine=vllm"],
            ["evaluation.engine=vllm", "evaluation.precision=float32"],
        )
    ]
    versions["vllm"] = "0.32.1"
    others.append(evaluations("evaluation.engine=vllm"))
    assert plain == evaluations("evaluation.engine=transformers", "evaluation.precision=float32")
    for name, signature in plain.items():
        different = {signature, *(other[name] for other in others)}
        assert len(different) == (1 if "theory" in name else 1 + len(others)), name
    assert any("theory" in name for name in plain)


def test_no_launcher_key_is_part_of_a_cell() -> None:
    """Workers, partitions, time limits and devices are options of the launcher, which are in no cell."""
    options = {f.name for launcher in LAUNCHERS.values() for f in fields(launcher)} - set(STAGES)  # resources by stage
    assert not {f.name for f in fields(Cell)} & {"hydra", "launcher", *options}
    content = json.dumps([run.config for run in plan([BASE]).runs.values()])
    assert not any(word in content for word in ("workers", "partition", "device", "strategy", "store"))


def test_a_spec_carries_its_signature() -> None:
    for run in plan([BASE]).runs.values():
        spec = json.loads(json.dumps(run.spec))
        assert signature_of(spec) == run.signature
        spec["config"]["seed"] += 1
        assert signature_of(spec) != run.signature


def test_a_cell_is_plain_values() -> None:
    assert base() == BASE
    json.dumps(asdict(BASE))


# A control of text needs no sampler, so another version of one does not measure it again.
def test_a_control_depends_on_the_sampler_only_if_it_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = compose_cell(["objective=ce"]).evaluation
    sampler = {"engine": "another", "precision": "float32", "version": "1"}
    monkeypatch.setattr(EvaluationConfig, "sampler", property(lambda self: sampler))
    assert control_content(evaluation, "midtrain", "matched")["sampler"] == sampler
    assert "sampler" not in control_content(evaluation, "midtrain", "theory")
