"""The memory of a rank, part by part against torch and the modules that take it, and what does not fit."""

import pytest

from sweeps.commands.plan_report import PlanReport
from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.plan import device_memory
from sweeps.plan.cost import Assumptions, Capacity, Rate
from sweeps.plan.device_memory import DEVICE_BYTES, USABLE, rank_memory, shortage
from sweeps.plan.graph import Plan, StageRun
from sweeps.plan.planner import plan
from tests.sweeps.plan.test_cost import PAPER, runs

EIGHT = dict.fromkeys(("pretrain", "midtrain", "grpo", "evaluate"), 8)


@pytest.mark.parametrize("name", ["nano", "micro", "20M", "nano-moe", "micro-moe"])
def test_activations_are_those_that_torch_keeps(name: str) -> None:
    """Bytes of all storages that autograd saves for one more layer, without weights."""
    import torch

    from pipelines.models.causal_lm import empty_model, model_config
    from pipelines.models.sizes import activations

    shape = compose_cell([f"model={name}"]).model

    def saved(layers: int) -> int:
        shape.layers = layers
        model = empty_model(model_config(shape, 512, 1e4)).train()
        weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model.model(input_ids=torch.randint(0, 512, (2, 64))).last_hidden_state
        assert hidden.requires_grad
        return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in weights)

    assert (saved(2) - saved(1)) / (4 * 128) == pytest.approx(activations(vars(shape)), rel=0.03)


def test_memory_of_a_rank() -> None:
    sharded = ["compute=sharded", "compute.micro_batch_tokens=4096"]
    graph, stage = runs("model=4B", *PAPER, *sharded, "until=pretrain")
    parts = rank_memory(graph, stage["pretrain"], 64)
    assert parts["parameters"] * 64 == pytest.approx(4 * 4.022e9, rel=0.001)
    assert parts["optimizer"] == 2 * parts["parameters"]
    assert parts["gradients"] == pytest.approx(64 * parts["parameters"]), "whole between micro-batches"
    assert parts["logits avoided"] == 2 * 4 * 4096 * 151_936
    assert parts["total"] == sum(v for k, v in parts.items() if k not in ("total", "logits avoided"))
    assert parts["total"] < 80e9
    graph, stage = runs("model=4B", *PAPER, "until=pretrain")
    assert rank_memory(graph, stage["pretrain"], 64)["parameters"] == 64 * parts["parameters"]


@pytest.mark.parametrize("model", ["4B", "10B-A0.5B"])
def test_rl_fits_eight_devices_of_a_node(model: str) -> None:
    """Sharded weights and moments, the whole gradient of an update, and a copy in bfloat16 while it samples."""
    graph, stage = runs(f"model={model}", *PAPER, "compute=sharded")
    parts = rank_memory(graph, stage["grpo"], 8)
    assert parts["gradients"] == pytest.approx(8 * parts["parameters"], rel=1e-6)
    assert parts["sampler"] == pytest.approx(parts["gradients"] / 2)
    sampling = parts["parameters"] + parts["optimizer"] + parts["sampler"] + parts["keys and values"]
    assert sampling < parts["total"] < 80e9
    # One process holds everything, and its sampler is the model itself.
    graph, stage = runs(f"model={model}", *PAPER, "grpo.engine=transformers")
    alone = rank_memory(graph, stage["grpo"])
    assert alone["sampler"] == 0
    assert alone["total"] > 4 * alone["parameters"]
    graph, stage = runs(f"model={model}", *PAPER, "compute=sharded", "grpo.kl_weight=0.1")
    assert rank_memory(graph, stage["grpo"], 8)["reference"] == parts["parameters"]


def report(graph: Plan, per_run: dict[str, int], device: str = "h100") -> list[str]:
    """The lines of the plan's report about what does not fit."""
    statuses = dict.fromkeys(graph.runs, "missing")
    lines = PlanReport(graph, statuses, Rate(device), Capacity(per_run=per_run), Assumptions()).lines()
    return [line for line in lines if line.startswith("Does not fit")]


def test_the_whole_paper_fits_eight_devices_of_a_node() -> None:
    """Every stage and evaluation of four models, with the setting that the sweep itself chooses."""
    graph = plan(compose_cells(["+sweep=paper", "objective=ce"]))
    assert report(graph, EIGHT) == []
    usable = USABLE * DEVICE_BYTES["h100"]
    totals = {(run.labels["model"], run.stage): rank_memory(graph, run, 8)["total"] for run in graph.runs.values()}
    assert {stage for model, stage in totals if model == "10B-A0.5B"} == set(EIGHT)
    assert max(totals.values()) <= usable
    # It is not lavish: what the sharded setting alone does is not enough for the largest model.
    graph = plan(compose_cells(["+sweep=paper", "objective=ce", "compute.activation_checkpointing=selective"]))
    lines = report(graph, EIGHT)
    assert [line.split(" needs ")[0] for line in lines] == [
        f"Does not fit: 10B-A0.5B {stage}" for stage in ("pretrain", "midtrain", "grpo")
    ]
    for line in lines:
        assert "needs 79.1 GB on each of 8 ranks, and h100 has 76.3 GB for it; " in line
        assert line.endswith("with compute.activation_checkpointing=full")


@pytest.mark.parametrize(("model", "ranks"), [("4B", 8), ("10B-A0.5B", 64)])
def test_the_setting_that_is_named_is_valid_and_fits(model: str, ranks: int) -> None:
    """Typed as it is printed, the cell composes, its batches divide, and the stage fits."""
    overrides = [f"model={model}", *PAPER]
    graph, stage = runs(*overrides)
    named = 0
    for name in ("pretrain", "midtrain", "grpo"):
        short = shortage(graph, stage[name], ranks, device="h100")
        if short is None:
            continue
        named += 1
        assert short.setting is not None
        assert short.ranks == ranks
        typed = [f"compute.{key}={value}" for key, value in short.setting.items()]
        changed, stages = runs(*overrides, *typed)
        assert stages[name].signature == stage[name].signature
        assert rank_memory(changed, stages[name], ranks)["total"] == short.then <= short.usable < short.needs
        if short.setting.get("micro_batch_tokens"):
            from pipelines.configuration.compute import micro_batch

            cell = compose_cell([*overrides, *typed])
            for budget in (cell.pretrain, cell.midtrain):
                micro_batch(budget, cell.compute, ranks)
        # Nearest: no setting of fewer keys fits.
        for key in short.setting:
            fewer = {k: v for k, v in short.setting.items() if k != key}
            less = StageRun(**{**vars(stage[name]), "compute": {**stage[name].compute, **fewer}})
            assert rank_memory(graph, less, ranks)["total"] > short.usable
    assert named


def test_more_ranks_are_named_where_no_setting_does() -> None:
    graph, stage = runs("model=10B-A0.5B", *PAPER)
    (line,) = (line for line in report(graph, {}) if " grpo " in line)
    assert "on its one rank" in line
    assert line.endswith("with 8 ranks and compute.strategy=fsdp compute.activation_checkpointing=full")
    assert shortage(graph, stage["grpo"], 8, device="core") is None, "a core's memory is not a device's"
    huge = ["model=10B-A0.5B", *PAPER, "model.layers=160"]
    graph, stage = runs(*huge)
    assert next(line for line in report(graph, EIGHT) if "evaluate" in line).endswith("choose a larger device")


def test_nano_fits_and_says_nothing() -> None:
    graph, _ = runs()
    assert report(graph, {}) == []


def test_keys_and_values_are_those_of_a_cache() -> None:
    """Of one sequence of the longest prompt and response, as transformers holds it for a small model."""
    import torch
    from transformers import DynamicCache

    from pipelines.models.causal_lm import empty_model, model_config

    shape = compose_cell(["model=micro"]).model
    cache = DynamicCache()
    model = empty_model(model_config(shape, 512, 1e4)).to(torch.bfloat16)
    model(input_ids=torch.randint(0, 512, (1, 50)), past_key_values=cache, use_cache=True)
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    graph, stage = runs("model=micro", "grpo.engine=replica", "midtrain.sequence_length=64")
    parts = rank_memory(graph, stage["grpo"], device="core")
    assert parts["keys and values"] == held / 50 * 64
    # On a device they take the engine's share of it.
    assert rank_memory(graph, stage["grpo"])["keys and values"] == int(0.3 * DEVICE_BYTES["h100"])
    graph, stage = runs("model=micro", "grpo.engine=vllm")
    parts = rank_memory(graph, stage["grpo"])
    assert parts["sampler"] + parts["keys and values"] == int(0.4 * DEVICE_BYTES["h100"])
    graph, stage = runs("model=micro", "grpo.engine=vllm", "compute.tensor_parallel=2")
    half = rank_memory(graph, stage["grpo"], 2)
    assert half["sampler"] == parts["sampler"] / 2
    assert half["sampler"] + half["keys and values"] == int(0.4 * DEVICE_BYTES["h100"])


def test_a_response_is_never_divided() -> None:
    """Fewer tokens at a time than the longest response save nothing."""
    settings = [["compute.micro_batch_tokens=16384"], ["compute.micro_batch_tokens=4096"]]
    totals = []
    for setting in settings:
        graph, stage = runs("model=4B", *PAPER, "until=grpo", "compute=sharded", "pretrain.sequence_length=4096",
                            "midtrain.sequence_length=4096", "grpo.max_new_tokens=4096", "grpo.extended_from_step=null",
                            "evaluation.max_new_tokens=4096", *setting)  # fmt: skip
        totals.append(rank_memory(graph, stage["grpo"], 8)["activations"])
    assert totals[0] == 4 * totals[1]
    graph, stage = runs("model=4B", *PAPER, "compute=sharded")
    longer = StageRun(**{**vars(stage["grpo"]), "compute": {**stage["grpo"].compute, "micro_batch_tokens": 4096}})
    assert rank_memory(graph, longer, 8) == rank_memory(graph, stage["grpo"], 8)


def test_an_evaluation_holds_the_checkpoint_or_the_engine() -> None:
    graph, stage = runs("model=4B", *PAPER)
    parts = rank_memory(graph, stage["evaluate"])
    weights = parts["checkpoint"] / 4
    assert parts["sampler"] == 2 * weights
    assert parts["total"] == int(0.85 * DEVICE_BYTES["h100"])
    graph, stage = runs("model=4B", *PAPER, "evaluation.engine=transformers")
    parts = rank_memory(graph, stage["evaluate"])
    assert parts["sampler"] == parts["checkpoint"]


def test_constants_are_those_of_the_modules_that_take_the_memory() -> None:
    from pipelines.evaluation import distribution, sampler
    from pipelines.rollouts import engine, transformers_engine
    from shaping import loss

    assert device_memory.KEYS_SHARE == transformers_engine.DEVICE_SHARE
    assert {"grpo": engine.IN_RL.memory_share, "evaluate": sampler.MEMORY_SHARE} == device_memory.VLLM_SHARE
    text = (distribution.BATCH_TOKENS, distribution.BATCH_LOGITS)
    assert text == (device_memory.TEXT_TOKENS, device_memory.TEXT_LOGITS)
    assert (device_memory.CHUNK_BYTES, device_memory.LEAST_ROWS) == (loss.CHUNK_BYTES, loss.LEAST_ROWS)


def test_chunks_of_logits_are_those_of_the_loss() -> None:
    """Two chunks, the gradient of the output layer and a product, of 16,384 tokens at the study's vocabulary."""
    from shaping.loss import default_chunk

    graph, stage = runs("model=4B", *PAPER, "compute=sharded")
    width = compose_cell(["model=4B"]).model.d_model
    rows = default_chunk(151_936, width)
    assert rank_memory(graph, stage["midtrain"], 8)["logits"] == 4 * 151_936 * (2 * rows + 2 * width)
