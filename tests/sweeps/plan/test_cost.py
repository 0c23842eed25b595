"""What a plan costs, against torch's own counts and figures from the formulas."""

import math
from dataclasses import replace

import pytest

from pipelines.models.sizes import active_parameters, parameters
from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.compose.launcher_options import LocalLauncherConfig, SlurmLauncherConfig, StageResources
from sweeps.plan.cost import Capacity, Estimate, Rate, Work, _wall_hours, capacity, estimate, memory, storage, work
from sweeps.plan.graph import Plan, StageRun
from sweeps.plan.planner import plan

PAPER = ["data=paper", "pretrain=paper", "midtrain=paper", "grpo=paper", "evaluation=paper"]


def model_of(name: str) -> tuple[dict[str, object], int]:
    cell = compose_cell([f"model={name}", *PAPER])
    (pretrain, *_) = plan([cell]).runs.values()
    return pretrain.config["model"], cell.data.vocab_size


@pytest.mark.parametrize("name", ["1B", "4B", "5B-A0.3B", "10B-A0.5B"])
def test_parameters_are_those_of_transformers_classes(name: str) -> None:
    """Counted on meta tensors, which take no memory."""
    import torch
    from transformers import MiniMaxM2Config, MiniMaxM2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    model, vocabulary = model_of(name)
    shared = {
        "vocab_size": vocabulary,
        "hidden_size": model["d_model"],
        "intermediate_size": model["ffn"],
        "num_hidden_layers": model["layers"],
        "num_attention_heads": model["heads"],
        "num_key_value_heads": model["kv_heads"],
        "head_dim": model["head_dim"],
        "tie_word_embeddings": True,
    }
    with torch.device("meta"):
        if "experts" in model:
            experts = {"num_local_experts": model["experts"], "num_experts_per_tok": model["active_experts"]}
            theirs = MiniMaxM2ForCausalLM(MiniMaxM2Config(**shared, **experts))
        else:
            theirs = Qwen3ForCausalLM(Qwen3Config(**shared))
    assert parameters(model, vocabulary) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("1B", 1.05e9, None), ("4B", 4.02e9, None), ("5B-A0.3B", 4.80e9, 0.26e9), ("10B-A0.5B", 9.53e9, 0.52e9)],
)
def test_the_papers_models_have_the_papers_sizes(name: str, total: float, active: float | None) -> None:
    model, vocabulary = model_of(name)
    assert parameters(model, vocabulary) == pytest.approx(total, rel=0.005)
    if active:  # without embeddings
        layers = active_parameters(model, vocabulary) - vocabulary * int(str(model["d_model"]))
        assert layers == pytest.approx(active, rel=0.02)


def runs(*overrides: str) -> tuple[Plan, dict[str, StageRun]]:
    graph = plan([compose_cell(list(overrides))])
    return graph, {run.stage: run for run in graph.runs.values()}


def test_training_costs_6nd_and_attention() -> None:
    graph, stage = runs("model=4B", *PAPER)
    cost = work(graph, stage["pretrain"])
    tokens = 500_000_000_000 // 2**24 * 2**24
    active = active_parameters(*model_of("4B"))
    # scores and weighted values: 2 operations each, for every head's channel and attended position, 3 passes in all
    attention = 3 * 36 * (2 * 2 * 32 * 128) * 2048.5
    assert cost.training == pytest.approx(tokens * (6 * active + attention), rel=1e-9)
    assert cost.trained_tokens == tokens
    assert 0.1 < attention / (6 * active) < 0.2


def test_rl_costs_its_samples() -> None:
    graph, stage = runs("model=4B", *PAPER)
    cost = work(graph, stage["grpo"])
    kept = 128 * 16 * (700 * (200 + 4096) + 300 * (200 + 8192))
    assert cost.trained_tokens == pytest.approx(kept)
    # Half of the groups are kept, so each of up to 20 further rounds samples half of the round before.
    assert cost.sampled_tokens == pytest.approx(kept * 2)
    assert cost.sampling / cost.training == pytest.approx(2 / 3)


def test_counted_forward_operations_agree_with_torch() -> None:
    """With torch's counter on the nano model: matrix products and attention, forward and backward."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen3Config, Qwen3ForCausalLM

    graph, stage = runs(
        "pretrain.tokens=512", "pretrain.batch_tokens=512", "pretrain.warmup_steps=0", "pretrain.milestones=1"
    )
    run, model = stage["pretrain"], stage["pretrain"].config["model"]
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=640,
            hidden_size=model["d_model"],
            intermediate_size=model["ffn"],
            num_hidden_layers=model["layers"],
            num_attention_heads=model["heads"],
            num_key_value_heads=model["kv_heads"],
            head_dim=model["head_dim"],
            attn_implementation="eager",
        )
    )
    with FlopCounterMode(display=False) as counter:
        theirs(input_ids=torch.zeros((8, 64), dtype=torch.long)).logits.sum().backward()
    ours = work(graph, run).training
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.12)  # eager attention also computes what is masked
    assert ours < counter.get_total_flops()


def test_the_whole_study_has_sensible_figures() -> None:
    graph = plan(compose_cells(["+sweep=paper"]))
    assert len(graph.cells) == 20
    stages, hours = estimate(graph, set(graph.runs), rate=Rate("h100", 0.4, 0.1), capacity=Capacity())
    total = sum(stage.device_hours for stage in stages.values())
    assert 5e4 < total < 5e5  # 6 N D: 9e22 operations for pre-training, 6e4 H100-hours at 40 %
    assert stages["pretrain"].device_hours == pytest.approx(stages["pretrain"].work.training / (989e12 * 0.4) / 3600)
    assert stages["pretrain"].runs == 20
    assert stages["evaluate"].runs == 20 * (10 + 4 + 10)
    assert 5e12 < sum(stage.storage for stage in stages.values()) < 5e13
    longest = max(hours_of(graph, cell) for cell in graph.cells)
    assert hours == pytest.approx(longest)


def hours_of(graph: Plan, cell: str) -> float:
    """Returns the device-hours of a cell's longest chain: its training stages and the last evaluation."""
    rate, ends = Rate("h100", 0.4, 0.1), {}
    for signature in graph.cells[cell]:
        run = graph.runs[signature]
        start = ends[run.parent[1]] if run.parent else 0.0
        ends[signature] = start + rate.seconds(work(graph, run)) / 3600
    return max(ends.values())


def test_wall_time_depends_on_devices_and_time_limits() -> None:
    graph = plan(compose_cells(["seed=1,2,3,4", "until=pretrain"]))
    graph = graph.part(signature for signature, run in graph.runs.items() if run.stage == "pretrain")

    def estimated(capacity: Capacity, *finished: str) -> tuple[dict[str, Estimate], float]:
        return estimate(graph, set(graph.runs) - set(finished), rate=Rate("core", 1.0, 1.0), capacity=capacity)

    def wall(devices: int, per_run: int = 1) -> float:
        return estimated(Capacity(devices, {"pretrain": per_run}))[1]

    one = estimated(Capacity())[1]
    assert one > 0
    assert [wall(n) / one for n in (1, 2, 3, 4, 9)] == pytest.approx([4, 2, 2, 1, 1])
    assert wall(4, per_run=2) / one == pytest.approx(1.0)  # half as long each, two at a time
    limited = estimated(Capacity(0, {}, {"pretrain": one / 2.5}))[0]
    assert limited["pretrain"].jobs == 4 * math.ceil(2.5)
    stages, hours = estimated(Capacity(1), next(iter(graph.runs)))
    assert (stages["pretrain"].runs, hours / one) == (3, pytest.approx(3))


def test_storage_and_memory() -> None:
    graph, stage = runs()
    numbers = parameters(stage["pretrain"].config["model"], 640)
    assert storage(graph, stage["pretrain"]) == 4 * 4 * numbers  # four milestones in float32
    assert storage(graph, stage["evaluate"]) == 0
    assert 0.5e9 < memory(graph, stage["grpo"]) < 2e9
    graph, stage = runs("model=4B", *PAPER)
    assert memory(graph, stage["pretrain"]) > 16 * 4.0e9


def test_in_the_estimate_the_longest_chain_goes_first() -> None:
    graph = Plan()
    for signature, parent in (("b", None), ("c", None), ("d", None), ("a", None), ("a2", "a"), ("a3", "a2")):
        needed = ("pretrain", parent) if parent else None
        graph.add(StageRun("pretrain", signature, 1, {}, needed, None, 1, {}))
    hours = dict.fromkeys(graph.runs, 1.0)
    assert [_wall_hours(graph, hours, Capacity(devices)) for devices in (1, 2, 3, 0)] == [6.0, 3.0, 3.0, 3.0]


def test_a_device_leaves_two_copies_of_a_checkpoint_to_main_memory() -> None:
    graph, stage = runs("model=4B", *PAPER)
    weights = parameters(*model_of("4B"))
    assert {memory(graph, run, on_gpu=True) for run in stage.values()} == {7 * 2**27 + 2 * 4 * weights}


@pytest.mark.parametrize(
    ("benchmark", "tokens"),
    [
        ({"kind": "text"}, 30 * 64),
        ({"kind": "choice"}, 30 * 4 * 100),
        ({"kind": "harness_choice"}, 30 * 4 * 100),
        ({"kind": "sampled"}, 30 * 8 * (200 + 500)),
        ({"kind": "harness"}, 30 * 8 * (200 + 500)),
        ({"kind": "sampled", "max_new_tokens": 100}, 30 * 8 * (100 + 50)),  # its own limit, which prompts have too
    ],
)
def test_an_evaluation_costs_the_tokens_of_its_items(benchmark: dict[str, object], tokens: float) -> None:
    graph, stage = runs()
    entry = {"items": 30, "samples": 8, "max_new_tokens": None} | benchmark
    config = {"benchmarks": {"one": entry}, "text_length": 64, "max_new_tokens": 1000}
    measured = replace(stage["evaluate"], config=stage["evaluate"].config | {"evaluation": config})
    cost = work(graph, measured)
    assert (cost.sampled_tokens, cost.trained_tokens, cost.training) == (tokens, 0, 0)
    two = {"benchmarks": {"one": entry, "two": entry}}
    twice = replace(measured, config=measured.config | {"evaluation": config | two})
    assert work(graph, twice).sampling == pytest.approx(2 * cost.sampling)
    assert cost.sampling > 0


def test_rl_trains_each_epoch_and_samples_again_what_was_dropped() -> None:
    graph, stage = runs()
    budget = {"steps": 10, "prompts": 4, "samples": 8, "max_new_tokens": 400, "resample_rounds": 2}

    def cost(**changes: object) -> Work:
        return work(graph, replace(stage["grpo"], config=stage["grpo"].config | {"grpo": budget | changes}))

    kept = 10 * 4 * 8 * (200 + 200)
    once = cost()
    assert (once.trained_tokens, once.sampled_tokens) == (kept, kept * (1 + 0.5 + 0.25))
    assert cost(epochs=3).training == pytest.approx(3 * once.training)
    assert cost(epochs=3).sampling == once.sampling
    assert cost(dynamic_sampling=False).sampled_tokens == kept
    assert cost(extended_from_step=4, extended_max_new_tokens=800).trained_tokens == (
        4 * 8 * (4 * (200 + 200) + 6 * (200 + 400))
    )


def test_the_launchers_ranks_and_hours_are_those_of_its_jobs() -> None:
    options = SlurmLauncherConfig(nodes=2, gpus=4, time=90, grpo=StageResources(time=30, tasks=1))
    given = capacity(options, 16)
    assert (given.devices, given.per_run["pretrain"], given.per_run["grpo"]) == (16, 8, 2)
    assert (given.time_limits["pretrain"], given.time_limits["grpo"]) == (1.5, 0.5)
    assert [capacity(LocalLauncherConfig(workers=3), devices).devices for devices in (0, 5)] == [3, 5]


def test_of_trainer_states_the_largest_counts() -> None:
    """They exist only while a stage runs, and what is published stays."""
    graph = plan(compose_cells(["seed=1,2", "until=pretrain"]))
    (total,) = [part for stage, part in estimate(graph, set(graph.runs), rate=Rate(), capacity=Capacity())[0].items()
                if stage == "pretrain"]  # fmt: skip
    (run, *_) = graph.runs.values()
    numbers = parameters(run.config["model"], 640)
    assert (total.trainer_states, total.storage) == (3 * 4 * numbers, 2 * 4 * 4 * numbers)
