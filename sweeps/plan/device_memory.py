"""What a rank of a stage run holds on its device, whether that fits, and the nearest `compute.*` setting that does.

It is arithmetic and does not load torch. The allocator's overhead, buffers of collectives and workspaces are not in it:
`USABLE` leaves room for them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pipelines.configuration import START, TOKEN_STAGES
from pipelines.configuration.evaluation import SAMPLED
from pipelines.models.sizes import activations
from sweeps.plan.cost import BYTES_PER_WEIGHT, ModelOfRun
from sweeps.plan.graph import Plan, StageRun

DEVICE_BYTES = {"h100": 79 * 2**30, "h200": 139 * 2**30, "a100": 79 * 2**30}
"""Memory of a device as its driver reports it; the A100 is that of 80 GB."""
USABLE = 0.9
"""Share of a device's memory that a stage may fill by this arithmetic."""

# Constants of modules that load torch; a test compares them.
CHUNK_BYTES, LEAST_ROWS = 2**25, 64
"""Bytes and rows of the smallest chunk of logits of the fused loss (`shaping.loss`)."""
KEYS_SHARE = 0.3
"""Share of a device for keys and values (`pipelines.rollouts.transformers_engine`)."""
VLLM_SHARE = {"grpo": 0.4, "evaluate": 0.85}
"""Share of a device for vLLM, weights included (`pipelines.rollouts.engine`, `pipelines.evaluation.sampler`)."""
TEXT_TOKENS, TEXT_LOGITS = 16_384, 1 << 28
"""Most tokens and logits of a batch of held-out text (`pipelines.evaluation.distribution`)."""
TEXT_COPIES = 4
"""Tensors of the size of such a batch's logits that exist at a time: logits, scaled ones, probabilities, their sums."""

PROMPT_TOKENS = 1024
"""The longest prompt of RL, where the model has positions for it."""

SLOWDOWN = {"none": 1.0, "selective": 1.1, "full": 1.33}
"""Time of a step with recomputed activations: all products again are a third more; ours for `selective`."""
SHARDED_SLOWDOWN = 1.1
SMALLER_SLOWDOWN = 1.02
"""Guesses that only order settings: of sharding, and of half as many tokens at a time."""
MOST_RANKS = 1024


def rank_memory(plan: Plan, run: StageRun, ranks: int = 1, *, device: str = "h100") -> dict[str, int]:
    """Returns the bytes that a rank holds on its device, by purpose, with the most at a time as `total`.

    `logits avoided` are what a loss that holds all logits and their gradient would add. Weights are sharded over all
    ranks with `fsdp`, and over `shard_ranks` with `hsdp` (0 counts as all ranks). Activations are those of one
    micro-batch. The whole gradient is held between micro-batches, and while RL does not update a `sampler`, a copy of
    the model, or a part of it with `tensor_parallel`, with its keys and values. An evaluation holds either the
    checkpoint or the engine that samples.
    """
    model = ModelOfRun.of(plan, run)
    if run.stage == "evaluate":
        return _evaluation_memory(plan, run, model, device=device)
    budget, compute = run.config[run.stage], run.compute
    shards = {"fsdp": ranks, "hsdp": compute["shard_ranks"] or ranks}.get(compute["strategy"], 1)
    precision = budget.get("precision", "float32")
    whole = model.weights * (2 if precision == "bfloat16" else 4)
    rl = run.stage == "grpo"
    longest = _longest_response(plan, run) if rl else 0
    share = 0 if rl else budget["batch_tokens"] // ranks
    tokens = compute["micro_batch_tokens"] or (budget["micro_batch_tokens"] if rl else share)
    accumulates = tokens < share  # gradients meet once an optimizer step, so a rank has a whole one until then
    tokens = max(tokens, longest)  # a response is never divided
    # Numbers per token that are kept for the backward pass; with checkpointing one layer is computed again.
    checkpointing = compute["activation_checkpointing"]
    kept = model.shape["layers"] * activations(model.shape, checkpointing)
    if checkpointing != "none":
        kept += activations(model.shape)
    logits = 4 * tokens * model.vocabulary
    is_chunked = logits > CHUNK_BYTES
    held_logits = _chunked_logits(model, tokens) if is_chunked else 3 * logits
    always = {"parameters": whole // shards, "optimizer": 2 * whole // shards}
    update = {
        "gradients": whole // (1 if rl or accumulates else shards),
        "activations": int(tokens * (4 if precision == "float32" else 2) * kept),
        "logits": held_logits,
    }
    sampling = {}
    if rl:
        always["reference"] = whole // shards if budget["kl_weight"] else 0
        itself = budget["engine"] == "transformers"
        copied = 0 if itself and shards == 1 else whole if itself else 2 * model.weights // compute["tensor_parallel"]
        number = whole // model.weights if itself else 2
        sampling = _sampler_memory(
            model, copied, number, longest=longest, vllm=VLLM_SHARE["grpo"] if budget["engine"] == "vllm" else None,
            device=device,
        )  # fmt: skip
    total = sum(always.values()) + max(sum(update.values()), sum(sampling.values()))
    return always | update | sampling | {"total": total, "logits avoided": 2 * logits if is_chunked else 0}


def _chunked_logits(model: ModelOfRun, tokens: int) -> int:
    """Of many logits the fused loss holds two chunks, the gradient of the output matrix, and a product to be added."""
    width = model.shape["d_model"]
    rows = max(LEAST_ROWS, CHUNK_BYTES // (4 * model.vocabulary), width // 2)
    return 4 * model.vocabulary * (2 * min(rows, tokens) + 2 * width)


def _longest_response(plan: Plan, run: StageRun) -> int:
    """Tokens of the longest prompt and response of RL together; they end where the model's positions end."""
    budget = run.config["grpo"]
    limit = max(budget["max_new_tokens"], budget["extended_max_new_tokens"] if budget["extended_from_step"] else 0)
    return int(min(_positions(plan, run), PROMPT_TOKENS + limit))


def _positions(plan: Plan, run: StageRun) -> int:
    """Positions of the model: the length of the rows of the last token stage before `run`, itself included.

    A start checkpoint keeps its own in every stage.
    """
    first = run
    while first.parent is not None:
        first = plan.runs[first.parent[1]]
    if first.stage == START:
        return int(first.config["positions"])
    while run.stage not in TOKEN_STAGES:
        assert run.parent is not None
        run = plan.runs[run.parent[1]]
    return int(run.config[run.stage]["sequence_length"])


def _sampler_memory(
    model: ModelOfRun, weights: int, number: int, *, longest: int, vllm: float | None, device: str
) -> dict[str, int]:
    """A sampler's weights, and keys and values of `number` bytes each: a share of the device, or one sequence's."""
    shape = model.shape
    one = 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"] * number * longest
    memory = DEVICE_BYTES.get(device, 0)
    if vllm is None:
        return {"sampler": weights, "keys and values": max(one, int(KEYS_SHARE * memory))}
    # vLLM takes its share; where one sequence does not fit into it, the device would have to be larger.
    taken = vllm * memory if weights + one <= vllm * memory else (weights + one) / vllm
    return {"sampler": weights, "keys and values": int(taken) - weights}


def _evaluation_memory(plan: Plan, run: StageRun, model: ModelOfRun, *, device: str) -> dict[str, int]:
    config = run.config["evaluation"]
    checkpoint = BYTES_PER_WEIGHT * model.weights
    kinds = {benchmark["kind"] for benchmark in config["benchmarks"].values()}
    length = config["text_length"]
    rows = max(1, min(TEXT_TOKENS, TEXT_LOGITS // model.vocabulary) // length) if "text" in kinds else 0
    scoring = {"checkpoint": checkpoint, "logits": TEXT_COPIES * 4 * rows * length * model.vocabulary}
    sampling: dict[str, int] = {}
    if kinds & set(SAMPLED):
        sampler = config.get("sampler")
        number = 4 if sampler is None or sampler["precision"] == "float32" else 2
        sampling = _sampler_memory(
            model, number * model.weights, number, longest=_positions(plan, run), device=device,
            vllm=VLLM_SHARE["evaluate"] if sampler and sampler["engine"] == "vllm" else None,
        )  # fmt: skip
    return scoring | sampling | {"total": max(sum(scoring.values()), sum(sampling.values()))}


@dataclass(frozen=True)
class Shortage:
    """A stage run that does not fit on its device."""

    needs: int
    """Bytes."""
    usable: int
    """Bytes."""
    ranks: int
    """Ranks with which `setting` fits: those of the launcher, or the fewest more."""
    setting: Mapping[str, Any] | None
    """Keys of `compute` to change, and their values; None if no setting fits, on any number of ranks."""
    then: int = 0
    """Bytes with the setting."""


def shortage(plan: Plan, run: StageRun, ranks: int, *, device: str) -> Shortage | None:
    """Returns what is missing for `run` on `ranks` devices, with the nearest setting that fits; None if it fits.

    The nearest changes the fewest keys, and of those with equally many it costs the least time.
    """
    if device not in DEVICE_BYTES or run.stage == START:
        return None
    usable = int(USABLE * DEVICE_BYTES[device])
    needs = rank_memory(plan, run, ranks, device=device)["total"]
    if needs <= usable:
        return None
    count = ranks
    # An evaluation has the whole model on every rank, whatever `compute` says.
    while count <= MOST_RANKS and run.stage != "evaluate":
        for setting in _settings(plan, run, count):
            changed = _with(run, setting)
            then = rank_memory(plan, changed, count, device=device)["total"]
            if then <= usable:
                return Shortage(needs, usable, count, setting, then)
        count = 8 if count < 8 else 2 * count
    return Shortage(needs, usable, ranks, None)


def _with(run: StageRun, setting: Mapping[str, Any]) -> StageRun:
    return StageRun(**{**vars(run), "compute": {**run.compute, **setting}})


def _settings(plan: Plan, run: StageRun, ranks: int) -> Iterator[dict[str, Any]]:
    """Changes of `compute`, the nearest first, that every token stage of the run's cells accepts."""
    compute = run.compute
    strategies = dict.fromkeys([compute["strategy"], "fsdp"]) if ranks > 1 else [compute["strategy"]]
    checkpointing = [name for name in SLOWDOWN if SLOWDOWN[name] >= SLOWDOWN[compute["activation_checkpointing"]]]
    candidates = []
    tokens = _micro_batches(plan, run, ranks)
    for strategy, recomputed, (halvings, micro) in product(strategies, checkpointing, enumerate(tokens)):
        chosen = {"strategy": strategy, "activation_checkpointing": recomputed, "micro_batch_tokens": micro}
        changes = {key: value for key, value in chosen.items() if value != compute[key]}
        slowdown = SLOWDOWN[recomputed] * SMALLER_SLOWDOWN**halvings
        slowdown *= SHARDED_SLOWDOWN if strategy != compute["strategy"] else 1.0
        candidates.append((len(changes), slowdown, changes))
    yield from (changes for _, _, changes in sorted(candidates, key=lambda candidate: candidate[:2]))


def _micro_batches(plan: Plan, run: StageRun, ranks: int) -> list[int | None]:
    """The configured tokens at a time, then halves of them that divide the share of every token stage of the cells."""
    cells = [signatures for signatures in plan.cells.values() if run.signature in signatures]
    stages = [plan.runs[s] for cell in cells for s in cell if plan.runs[s].stage in TOKEN_STAGES]
    shapes = {(r.config[r.stage]["sequence_length"], r.config[r.stage]["batch_tokens"]) for r in stages}
    configured = run.compute["micro_batch_tokens"]
    share = max((batch // ranks for _, batch in shapes), default=0)
    tokens: int = configured or (run.config["grpo"]["micro_batch_tokens"] if run.stage == "grpo" else share)
    result: list[int | None] = [configured]
    while (tokens := tokens // 2) and tokens >= max((length for length, _ in shapes), default=1):
        if all(_divides(tokens, length, batch // ranks) for length, batch in shapes):
            result.append(tokens)
    return result


def _divides(tokens: int, length: int, share: int) -> bool:
    """Whether a rank's share of a batch is a whole number of micro-batches of whole rows."""
    return tokens % length == 0 and math.gcd(share, tokens) == tokens
