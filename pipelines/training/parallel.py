"""How a model is distributed over ranks and how much memory it takes: Lightning's strategies, set by `ComputeConfig`.

Nothing here changes what is computed, only where it is held and in which order sums are taken.
"""

from functools import partial
from itertools import chain
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from pipelines.configuration.compute import ComputeConfig
from pipelines.errors import StageFailure
from pipelines.models.deferred import when_made
from pipelines.rollouts.architectures import decoder_layers
from pipelines.rollouts.attention import use_attention_by_blocks

SAVED_OPERATORS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._grouped_mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)
"""Operators whose results selective activation checkpointing keeps: those that cost the most to compute again."""


def strategy(compute: ComputeConfig, ranks: int, nodes: int) -> str | Strategy:
    """Lightning's strategy for `ranks` processes on `nodes` nodes.

    Raises `StageFailure` if the ranks cannot be divided into groups of `compute.shard_ranks`.
    """
    if ranks == 1:
        return "auto"
    match compute.strategy:
        case "fsdp":
            return ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1)
        case "hsdp":
            shards = compute.shard_ranks or ranks // nodes
            if ranks % shards:
                raise StageFailure(
                    f"compute.shard_ranks={shards}: {ranks} ranks cannot be divided into groups of that size; it must "
                    f"be one of {', '.join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)}"
                )
            # Lightning's mesh has two named dimensions; FSDP copies over the first and shards over the second.
            return ModelParallelStrategy(data_parallel_size=ranks // shards, tensor_parallel_size=shards)
        case _:
            return DDPStrategy(gradient_as_bucket_view=True)


def is_sharded(compute: ComputeConfig, ranks: int) -> bool:
    """Whether each rank holds only a part of the weights."""
    return ranks > 1 and compute.strategy in ("fsdp", "hsdp")


def shard(
    module: nn.Module, model: PreTrainedModel, *, mesh: DeviceMesh, precision: str, in_main_memory: bool = False
) -> None:
    """FSDP2 in place: each layer of `model` is a group, and `module`, whose forward returns the loss, is the last one.

    Every rank makes the weights of a deferred model group by group, each whole, and keeps its part: they are those of a
    single process, bit for bit. With `in_main_memory` a GPU has only the group that is being computed.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    mixed = precision == "bfloat16-mixed"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
    # One dimension shards only; two copy over the first and shard over the second.
    if mesh["tensor_parallel"].size() == 1:
        mesh = mesh["data_parallel"]
    offload = CPUOffloadPolicy() if in_main_memory and mesh.device_type != "cpu" else OffloadPolicy()
    # One after the other, because a layer is made when it is asked for.
    for group in chain(when_made(model, decoder_layers(model)), [module]):
        fully_shard(group, mesh=mesh, mp_policy=policy, offload_policy=offload)


def prepare(model: PreTrainedModel, compute: ComputeConfig, *, precision: str, documents: bool) -> None:
    """Configure the model in place: precision, attention, experts, activation checkpointing, compilation."""
    if precision == "bfloat16":
        # Parameters only: buffers hold biases that move by 1e-3 and rotary angles, which need float32.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    if documents and torch.cuda.is_available():
        model.set_attn_implementation("flex_attention")
    use_attention_by_blocks(model)
    if hasattr(model.config, "num_local_experts") or hasattr(model.config, "num_experts"):
        model.set_experts_implementation("grouped_mm")
    if compute.activation_checkpointing != "none":
        options: dict[str, Any] = {"use_reentrant": False}
        if compute.activation_checkpointing == "selective":
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _checkpoint_policy)
        model.gradient_checkpointing_enable(options)
    if compute.compile:
        for layer in decoder_layers(model):
            layer.compile()


def _checkpoint_policy(context: object, operator: Any, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in SAVED_OPERATORS else CheckpointPolicy.PREFER_RECOMPUTE


def local_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers as this rank holds them, without gradient; tied ones once."""
    saved = model.state_dict().keys()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return parameters | {name: buffer for name, buffer in model.named_buffers() if name in saved}
