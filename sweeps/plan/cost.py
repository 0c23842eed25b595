"""What a plan costs before anything has run: operations (`pipelines.models.sizes`), GPU-hours, wall time, storage.

It is arithmetic and does not load torch. What no configuration says is assumed (`Assumptions`).
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.configuration import STAGES, START, TOKEN_STAGES
from pipelines.models.sizes import PEAKS, forward_operations, parameters
from sweeps.compose.launcher_options import LocalLauncherConfig, SlurmLauncherConfig, resources
from sweeps.plan.graph import Plan, StageRun

CHOICES = 4
"""Options of a multiple-choice item."""
CHOICE_TOKENS = 100
"""Tokens of one option with its context."""

DEVICES = {**PEAKS, "core": 1e11}
"""Peak operations per second; `core` is a CPU core in float32: 32 per cycle (AVX2) at about 3 GHz."""

BYTES_PER_WEIGHT = 4
"""Checkpoints and trainer states are float32."""
WEIGHTS_PER_THREAD = 1_000_000
"""A model with fewer weights than this is computed by one thread; the nano models have half of it."""
PROCESS_BYTES = 7 * 2**27
"""Memory of a worker that has loaded its libraries: 0.9 GiB."""


@dataclass(frozen=True)
class Assumptions:
    """What the cost of sampling depends on and no configuration says; `sweeps.plan.calibration` measures it."""

    prompt_tokens: float = 200.0
    """Mean tokens of a prompt; at most the limit of a response."""
    response_share: float = 0.5
    """Mean tokens of a response as a share of its limit."""
    mixed_share: float = 0.5
    """Share of RL's groups whose rewards are not all equal; the others are dropped and sampled again."""

    def lengths(self, limit: float) -> tuple[float, float]:
        """Returns the mean tokens of a prompt, and of a response with this limit."""
        return min(self.prompt_tokens, limit), self.response_share * limit


@dataclass(frozen=True)
class Work:
    """The operations of one stage run, and the tokens that they run through the model."""

    training: float = 0.0
    """Operations of forward and backward passes."""
    sampling: float = 0.0
    """Operations of forward passes only; decoding token by token uses a device far less well than training."""
    trained_tokens: float = 0.0
    sampled_tokens: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class ModelOfRun:
    """The model of a stage run."""

    shape: Mapping[str, Any]
    vocabulary: int

    @classmethod
    def of(cls, plan: Plan, run: StageRun) -> "ModelOfRun":
        """Returns the model that the first ancestor of `run` builds."""
        root = run
        while root.parent:
            root = plan.runs[root.parent[1]]
        # A start checkpoint has a vocabulary of its own.
        return cls(root.config["model"], root.config.get("vocab_size") or run.config["data"]["vocab_size"])

    @property
    def weights(self) -> int:
        """Returns the number of parameters."""
        return parameters(self.shape, self.vocabulary)

    def forward(self, tokens: float, length: float) -> float:
        """Returns the operations of a forward pass over `tokens` in sequences of `length`."""
        return forward_operations(self.shape, self.vocabulary, tokens=tokens, length=length)


def work(plan: Plan, run: StageRun, assumptions: Assumptions = Assumptions()) -> Work:
    """Returns the operations and tokens of one stage run."""
    if run.stage == START:
        return Work()
    model = ModelOfRun.of(plan, run)
    if run.stage in TOKEN_STAGES:
        budget = run.config[run.stage]
        tokens = run.steps * budget["batch_tokens"]
        # The backward pass costs twice the forward pass.
        return Work(training=3 * model.forward(tokens, budget["sequence_length"]), trained_tokens=tokens)
    if run.stage == "grpo":
        return _grpo(model, run.config["grpo"], assumptions)
    return _evaluation(model, run.config["evaluation"], assumptions)


def _grpo(model: ModelOfRun, config: Mapping[str, Any], assumptions: Assumptions) -> Work:
    # The limit of responses is raised once, so there are two phases.
    first_extended = config.get("extended_from_step")
    early_steps = config["steps"] if first_extended is None else min(config["steps"], first_extended)
    extended_limit = int(config.get("extended_max_new_tokens", config["max_new_tokens"]))
    phases = ((early_steps, config["max_new_tokens"]), (config["steps"] - early_steps, extended_limit))
    # Groups that are dropped are sampled again, and of those again some are dropped.
    rounds = config["resample_rounds"] if config.get("dynamic_sampling", True) else 0
    samplings = sum((1 - assumptions.mixed_share) ** i for i in range(rounds + 1))
    total = Work()
    for steps, limit in phases:
        prompt, response = assumptions.lengths(limit)
        length = prompt + response
        # Tokens of the responses that are trained on, with their prompts, and of all that are sampled.
        kept = steps * config["prompts"] * config["samples"] * length
        sampled = kept * samplings
        total += Work(
            training=3 * model.forward(kept * config.get("epochs", 1), length),
            sampling=model.forward(sampled, length),
            trained_tokens=kept,
            sampled_tokens=sampled,
        )
    return total


def _evaluation(model: ModelOfRun, config: Mapping[str, Any], assumptions: Assumptions) -> Work:
    total = Work()
    for benchmark in config["benchmarks"].values():
        limit = benchmark["max_new_tokens"] or config["max_new_tokens"]
        match benchmark["kind"]:
            case "text":
                length = config["text_length"]
                tokens = benchmark["items"] * length
            case "choice" | "harness_choice":
                length = CHOICE_TOKENS
                tokens = benchmark["items"] * CHOICES * length
            # Everything else samples answers.
            case _:
                length = sum(assumptions.lengths(limit))
                tokens = benchmark["items"] * benchmark["samples"] * length
        total += Work(sampling=model.forward(tokens, length), sampled_tokens=tokens)
    return total


def storage(plan: Plan, run: StageRun) -> int:
    """Returns the bytes of the checkpoints that a stage run publishes."""
    if run.stage == "evaluate":
        return 0
    checkpoints = 1 if run.stage == START else run.config[run.stage]["milestones"]
    return BYTES_PER_WEIGHT * checkpoints * ModelOfRun.of(plan, run).weights


def trainer_state(plan: Plan, run: StageRun) -> int:
    """Returns the bytes of a stage's trainer state: weights and AdamW's two moments. It exists while the stage runs."""
    if run.stage in (START, "evaluate"):
        return 0
    return 3 * BYTES_PER_WEIGHT * ModelOfRun.of(plan, run).weights


def memory(plan: Plan, run: StageRun, *, on_gpu: bool = False) -> int:
    """Returns about how many bytes of main memory a stage run needs in one process, as workers of this machine run it.

    Ranks that share a model need less: their part, the tensors outside of layers and a layer while they start.
    """
    if run.stage == START:
        return PROCESS_BYTES
    model = ModelOfRun.of(plan, run)
    if on_gpu:
        # Training is on the device; main memory holds a checkpoint that is being loaded or saved.
        return PROCESS_BYTES + 2 * BYTES_PER_WEIGHT * model.weights
    if run.stage == "evaluate":
        return PROCESS_BYTES + BYTES_PER_WEIGHT * model.weights
    # Weights, gradients and two moments; then logits and hidden states.
    tokens = run.config[run.stage].get("batch_tokens", 16_384)
    per_token = 4 * model.vocabulary + 16 * model.shape["layers"] * model.shape["d_model"]
    return PROCESS_BYTES + BYTES_PER_WEIGHT * (4 * model.weights + tokens * per_token)


def useful_threads(plan: Plan, run: StageRun) -> int:
    """Returns how many threads on CPU cores a stage run can use; more only make a small model slower."""
    return 1 + ModelOfRun.of(plan, run).weights // WEIGHTS_PER_THREAD


@dataclass(frozen=True)
class Rate:
    """How fast a device computes."""

    device: str = "h100"
    mfu: float = 0.4
    """Share of the device's peak that training reaches."""
    sampling_mfu: float = 0.1
    """Share of the device's peak that sampling reaches."""

    def seconds(self, work: Work) -> float:
        """Returns the device-seconds of some work."""
        peak = DEVICES[self.device]
        return work.training / (peak * self.mfu) + work.sampling / (peak * self.sampling_mfu)


@dataclass(frozen=True)
class Capacity:
    """How many devices there are, and how long jobs may run."""

    devices: int = 0
    """Devices that all stage runs together may use at a time; 0: no limit."""
    per_run: Mapping[str, int] = field(default_factory=dict)
    """Stage -> devices of one stage run; 1 for a stage without an entry."""
    time_limits: Mapping[str, float] = field(default_factory=dict)
    """Stage -> hours after which a job is requeued; no limit for a stage without an entry."""

    def devices_of(self, run: StageRun) -> int:
        """Returns the devices of one stage run."""
        return self.per_run.get(run.stage, 1)


def capacity(launcher: LocalLauncherConfig | SlurmLauncherConfig, devices: int) -> Capacity:
    """Returns the capacity that a launcher's options give, with `devices` in all (0: as the launcher has it)."""
    if isinstance(launcher, LocalLauncherConfig):
        return Capacity(devices or launcher.workers)
    requested = {stage: resources(launcher, stage) for stage in STAGES}
    return Capacity(
        devices,
        {stage: values["nodes"] * values["tasks"] for stage, values in requested.items()},
        {stage: values["time"] / 60 for stage, values in requested.items()},
    )


@dataclass
class Estimate:
    """The cost of the stage runs of one stage."""

    runs: int = 0
    work: Work = field(default_factory=Work)
    device_hours: float = 0.0
    storage: int = 0
    """Bytes that are published."""
    trainer_states: int = 0
    """Bytes of the largest trainer state."""
    jobs: int = 0
    """Jobs; a stage run that is requeued counts once for each time limit that it reaches."""

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
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
    plan: Plan, missing: set[str], *, rate: Rate, capacity: Capacity, assumptions: Assumptions = Assumptions()
) -> tuple[dict[str, Estimate], float]:
    """Returns the cost of the stage runs in `missing` by stage, and the hours until the last of them is done."""
    stages: dict[str, Estimate] = defaultdict(Estimate)
    hours: dict[str, float] = {}
    for signature, run in plan.runs.items():
        if signature not in missing:
            continue
        run_work = work(plan, run, assumptions)
        device_hours = rate.seconds(run_work) / 3600
        hours[signature] = device_hours / capacity.devices_of(run)
        total = stages[run.stage]
        total.runs += 1
        total.work += run_work
        total.device_hours += device_hours
        total.storage += storage(plan, run)
        total.trainer_states = max(total.trainer_states, trainer_state(plan, run))
        # A job that reaches the time limit is requeued, which counts as another job.
        limit = capacity.time_limits.get(run.stage)
        total.jobs += max(1, math.ceil(hours[signature] / limit)) if limit else 1
    return dict(stages), _wall_hours(plan, hours, capacity)


def _wall_hours(plan: Plan, hours: dict[str, float], capacity: Capacity) -> float:
    """Returns the hours of the whole graph, without time in the queue, where the longest chain always goes first."""
    # Hours from the start of a stage run to the end of the longest chain that follows it.
    chain: dict[str, float] = {}
    for signature in reversed(plan.runs):
        if signature in hours:
            after = max((chain.get(child.signature, 0.0) for child in plan.children(signature)), default=0.0)
            chain[signature] = hours[signature] + after
    if not chain:
        return 0.0
    # With a device for every stage run, nothing waits but for its needs.
    if not capacity.devices:
        return max(chain.values())
    # A simulation: start what is ready while devices are free, then advance to the next end.
    free, now = capacity.devices, 0.0
    # Signature -> how many of its needs are not done yet.
    unmet = {s: sum(need in hours for need in plan.runs[s].needs) for s in hours}
    ready = [(-chain[s], s) for s, count in unmet.items() if not count]
    heapq.heapify(ready)
    ends: list[tuple[float, str, int]] = []
    while ready or ends:
        while ready and (not ends or free >= capacity.devices_of(plan.runs[ready[0][1]])):
            signature = heapq.heappop(ready)[1]
            used = min(capacity.devices_of(plan.runs[signature]), capacity.devices)
            free -= used
            heapq.heappush(ends, (now + hours[signature], signature, used))
        # Advance to the next end, which may make children ready.
        now, signature, used = heapq.heappop(ends)
        free += used
        for child in plan.children(signature):
            if child.signature in hours:
                unmet[child.signature] -= 1
                if not unmet[child.signature]:
                    heapq.heappush(ready, (-chain[child.signature], child.signature))
    return now
