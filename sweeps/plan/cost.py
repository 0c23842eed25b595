"""What a plan costs before anything has run: operations (`pipelines.models.sizes`), GPU-hours, wall time, storage.
Arithmetic alone, no torch.

What cannot be known is assumed (`Assumed`), and printed with the figures.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.configuration import STAGES, TOKEN_STAGES
from pipelines.models.sizes import PEAKS, activations, forward_operations, parameters
from sweeps.compose.launchers import LocalLauncherConfig, SlurmLauncherConfig, resources
from sweeps.plan.graph import Plan, StageRun

CHOICES = 4
CHOICE_TOKENS = 100
"""Options of a multiple-choice item, and tokens of one with its context."""

DEVICES = {**PEAKS, "core": 1e11}
"""Operations a second; `core` is a CPU core in float32: 32 a cycle (AVX2), about 3 GHz."""

BYTES_A_WEIGHT = 4
"""Checkpoints and trainer states are float32."""
CHUNK_BYTES = 2**25
"""Logits that the fused loss holds at a time (`shaping.loss`, which loads torch)."""
PROCESS_BYTES = 7 * 2**27
"""Of a worker with its libraries loaded: 0.9 GiB."""


@dataclass(frozen=True)
class Assumed:
    """What the cost of sampling depends on and no configuration says; `sweeps.plan.calibration` measures it."""

    prompt_tokens: float = 200.0
    """Mean length of a prompt, or the limit of a response where that is less."""
    response_share: float = 0.5
    """Mean length of a response as a share of its limit."""
    mixed_share: float = 0.5
    """Share of RL's groups whose rewards are not all equal; the others are dropped and sampled anew."""

    def lengths(self, limit: float) -> tuple[float, float]:
        """Mean tokens of a prompt and of a response whose limit this is."""
        return min(self.prompt_tokens, limit), self.response_share * limit


@dataclass(frozen=True)
class Work:
    """What one stage run does: operations of training and of sampling, and tokens through the model of each."""

    training: float = 0.0
    sampling: float = 0.0
    """Forward passes alone; decoding token by token uses a device far less well."""
    trained_tokens: float = 0.0
    sampled_tokens: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def _root(plan: Plan, run: StageRun) -> StageRun:
    while run.parent:
        run = plan.runs[run.parent[1]]
    return run


def work(plan: Plan, run: StageRun, assumed: Assumed = Assumed()) -> Work:
    """Operations and tokens of one stage run."""
    model = _root(plan, run).config["model"]
    vocabulary = run.config["data"]["vocab_size"]
    if run.stage in TOKEN_STAGES:
        budget = run.config[run.stage]
        tokens = run.steps * budget["batch_tokens"]
        return Work(
            training=3 * forward_operations(model, vocabulary, tokens=tokens, length=budget["sequence_length"]),
            trained_tokens=tokens,
        )
    if run.stage == "grpo":
        return _grpo(model, vocabulary, run.config["grpo"], assumed)
    return _evaluation(model, vocabulary, run.config["evaluation"], assumed)


def _grpo(model: Mapping[str, Any], vocabulary: int, config: Mapping[str, Any], assumed: Assumed) -> Work:
    total = Work()
    first = config.get("extended_from_step")
    early = config["steps"] if first is None else min(config["steps"], first)
    rounds = config["resample_rounds"] if config.get("dynamic_sampling", True) else 0
    asked = sum((1 - assumed.mixed_share) ** i for i in range(rounds + 1))
    for steps, limit in ((early, config["max_new_tokens"]), (config["steps"] - early, _extended(config))):
        prompt, response = assumed.lengths(limit)
        kept = steps * config["prompts"] * config["samples"] * (prompt + response)
        sampled = kept * asked
        total += Work(
            training=3 * forward_operations(
                model, vocabulary, tokens=kept * config.get("epochs", 1), length=prompt + response
            ),
            sampling=forward_operations(model, vocabulary, tokens=sampled, length=prompt + response),
            trained_tokens=kept,
            sampled_tokens=sampled,
        )
    return total


def _extended(config: Mapping[str, Any]) -> int:
    return int(config.get("extended_max_new_tokens", config["max_new_tokens"]))


def _evaluation(model: Mapping[str, Any], vocabulary: int, config: Mapping[str, Any], assumed: Assumed) -> Work:
    total = Work()
    for benchmark in config["benchmarks"].values():
        limit = benchmark["max_new_tokens"] or config["max_new_tokens"]
        match benchmark["kind"]:
            case "text":
                tokens, length = benchmark["items"] * config["text_length"], config["text_length"]
            case "choice" | "harness_choice":
                tokens, length = benchmark["items"] * CHOICES * CHOICE_TOKENS, CHOICE_TOKENS
            case _:
                length = sum(assumed.lengths(limit))
                tokens = benchmark["items"] * benchmark["samples"] * length
        operations = forward_operations(model, vocabulary, tokens=tokens, length=length)
        total += Work(sampling=operations, sampled_tokens=tokens)
    return total


def storage(plan: Plan, run: StageRun) -> int:
    """Bytes of the checkpoints that a stage run publishes."""
    if run.stage == "evaluate":
        return 0
    kept = run.config[run.stage]["milestones"]
    return BYTES_A_WEIGHT * kept * parameters(_root(plan, run).config["model"], run.config["data"]["vocab_size"])


def trainer_state(plan: Plan, run: StageRun) -> int:
    """Bytes of the trainer state while a training stage is at work: weights and AdamW's two moments."""
    if run.stage == "evaluate":
        return 0
    return 3 * BYTES_A_WEIGHT * parameters(_root(plan, run).config["model"], run.config["data"]["vocab_size"])


def memory(plan: Plan, run: StageRun, on_gpu: bool = False) -> int:
    """Bytes of main memory that a stage run needs, about: a worker's libraries, weights, gradients, moments, logits."""
    weights = parameters(_root(plan, run).config["model"], run.config["data"]["vocab_size"])
    if on_gpu:
        return PROCESS_BYTES + 2 * BYTES_A_WEIGHT * weights  # a checkpoint on its way in or out
    if run.stage == "evaluate":
        return PROCESS_BYTES + BYTES_A_WEIGHT * weights
    rows = run.config[run.stage].get("batch_tokens", 16_384)
    model = _root(plan, run).config["model"]
    activations = rows * (4 * run.config["data"]["vocab_size"] + 16 * model["layers"] * model["d_model"])
    return PROCESS_BYTES + BYTES_A_WEIGHT * (4 * weights + activations)


def rank_memory(plan: Plan, run: StageRun, ranks: int = 1) -> dict[str, int]:
    """Bytes that a rank of a token stage holds on its device, by what they are for, their `total`, and the `logits
    avoided`: what a loss that holds logits and their gradient would add.

    Sharded over all ranks with `fsdp`, over `shard_ranks` with `hsdp` (0: counted as all of them). Activations are
    those of one micro-batch. The allocator's own needs, buffers of collectives and workspaces are not in it.
    """
    model, budget, compute = _root(plan, run).config["model"], run.config[run.stage], run.compute
    vocabulary = run.config["data"]["vocab_size"]
    shards = {"fsdp": ranks, "hsdp": compute["shard_ranks"] or ranks}.get(compute["strategy"], 1)
    precision = budget["precision"]
    weights = parameters(model, vocabulary) * (2 if precision == "bfloat16" else 4) // shards
    tokens = compute["micro_batch_tokens"] or budget["batch_tokens"] // ranks
    size = 4 if precision == "float32" else 2
    how = compute["activation_checkpointing"]
    kept = model["layers"] * activations(model, how)
    if how != "none":
        kept += activations(model)  # of the one layer that is computed again
    logits = 4 * tokens * vocabulary
    parts = {
        "parameters": weights,
        "gradients": weights,
        "optimizer": 2 * weights,
        "activations": int(tokens * size * kept),
        "logits": 3 * logits if logits <= CHUNK_BYTES else 2 * CHUNK_BYTES + 4 * vocabulary * model["d_model"],
    }
    return parts | {"total": sum(parts.values()), "logits avoided": 2 * logits if logits > CHUNK_BYTES else 0}


@dataclass(frozen=True)
class Rate:
    """How fast a device works."""

    device: str = "h100"
    mfu: float = 0.4
    """Share of the device's peak that training reaches."""
    sampling_mfu: float = 0.1
    """The same for sampling."""

    def seconds(self, work: Work) -> float:
        """Device-seconds of some work."""
        peak = DEVICES[self.device]
        return work.training / (peak * self.mfu) + work.sampling / (peak * self.sampling_mfu)


@dataclass(frozen=True)
class Room:
    """What may run at once, and for how long."""

    devices: int = 0
    """At once, over all stage runs; 0: as many as there is work for."""
    per_run: Mapping[str, int] = field(default_factory=dict)
    """Devices of one stage run, by stage; 1 where it does not say."""
    limit: Mapping[str, float] = field(default_factory=dict)
    """Hours after which a job of a stage is put back into the queue; none where it does not say."""


def room(launcher: LocalLauncherConfig | SlurmLauncherConfig, devices: int) -> Room:
    """What a launcher's options come to; `devices` at once in all."""
    if isinstance(launcher, LocalLauncherConfig):
        return Room(devices or launcher.workers)
    asked = {stage: resources(launcher, stage) for stage in STAGES}
    return Room(
        devices,
        {stage: found["nodes"] * found["tasks"] for stage, found in asked.items()},
        {stage: found["time"] / 60 for stage, found in asked.items()},
    )


@dataclass
class Estimate:
    """The cost of some stage runs."""

    runs: int = 0
    work: Work = field(default_factory=Work)
    device_hours: float = 0.0
    storage: int = 0
    """Bytes published."""
    trainer_states: int = 0
    """Bytes of the largest trainer state, there while its stage run is at work."""
    jobs: int = 0
    """Jobs, those counted that go on where a time limit cut one off."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "stage_runs": self.runs,
            "jobs": self.jobs,
            "training_flops": self.work.training,
            "sampling_flops": self.work.sampling,
            "trained_tokens": self.work.trained_tokens,
            "sampled_tokens": self.work.sampled_tokens,
            "device_hours": self.device_hours,
            "storage_bytes": self.storage,
            "trainer_state_bytes": self.trainer_states,
        }


def estimate(
    plan: Plan, missing: set[str], rate: Rate, room: Room, assumed: Assumed = Assumed()
) -> tuple[dict[str, Estimate], float]:
    """The cost of the stage runs in `missing` by stage, and the hours until the last of them is done."""
    stages: dict[str, Estimate] = defaultdict(Estimate)
    hours: dict[str, float] = {}
    known: dict[tuple[Any, ...], Work] = {}
    for signature, run in plan.runs.items():
        if signature not in missing:
            continue
        # Objectives and seeds cost the same: work is counted once for each of what it depends on.
        budget = run.config[run.stage if run.stage != "evaluate" else "evaluation"]
        key = (id(budget), id(_root(plan, run).config["model"]), run.stage)
        if key not in known:
            known[key] = work(plan, run, assumed)
        total = stages[run.stage]
        spent = rate.seconds(known[key]) / 3600
        hours[signature] = spent / room.per_run.get(run.stage, 1)
        total.runs += 1
        total.work += known[key]
        total.device_hours += spent
        total.storage += storage(plan, run)
        total.trainer_states = max(total.trainer_states, trainer_state(plan, run))
        limit = room.limit.get(run.stage)
        total.jobs += max(1, math.ceil(hours[signature] / limit)) if limit else 1
    return dict(stages), _wall(plan, hours, room)


def _wall(plan: Plan, hours: dict[str, float], room: Room) -> float:
    """Hours of the whole graph: longest chain first, at most `room.devices` at once. Time in the queue is not in it."""
    chain: dict[str, float] = {}
    for signature in reversed(plan.runs):
        if signature in hours:
            after = max((chain.get(c.signature, 0.0) for c in plan.children(signature)), default=0.0)
            chain[signature] = hours[signature] + after
    if not chain:
        return 0.0
    if not room.devices:
        return max(chain.values())
    free, now = room.devices, 0.0
    lacking = {s: sum(need in hours for need in plan.runs[s].needs) for s in hours}
    ready = [(-chain[s], s) for s, count in lacking.items() if not count]
    heapq.heapify(ready)
    ends: list[tuple[float, str, int]] = []
    while ready or ends:
        while ready and (not ends or free >= _devices(plan, ready[0][1], room)):
            signature = heapq.heappop(ready)[1]
            used = min(_devices(plan, signature, room), room.devices)
            free -= used
            heapq.heappush(ends, (now + hours[signature], signature, used))
        now, signature, used = heapq.heappop(ends)
        free += used
        for child in plan.children(signature):
            if child.signature in hours:
                lacking[child.signature] -= 1
                if not lacking[child.signature]:
                    heapq.heappush(ready, (-chain[child.signature], child.signature))
    return now


def _devices(plan: Plan, signature: str, room: Room) -> int:
    return room.per_run.get(plan.runs[signature].stage, 1)
