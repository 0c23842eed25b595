"""Low-rank adapters (LoRA): a stage trains small matrices next to the frozen ones, and saves the merged model.

y = W x + (alpha / rank) B A x, where A [rank, in] is random and B [out, rank] begins at 0, so training begins at the
model itself (Hu et al., arXiv 2106.09685). The adapters are peft's, put into the model in place: it stays of its class,
and everything that runs its modules runs them too.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipelines.configuration.lora import LoRAConfig
from pipelines.errors import StageFailure
from pipelines.random_streams import Stream, stream_seed

ADAPTER = "adapter"
"""Folder of the adapters by themselves, inside a checkpoint, as peft loads them."""


def add_adapters(model: PreTrainedModel, config: LoRAConfig, *, key: str, seed: int) -> None:
    """Put adapters into `model` in place and freeze everything else; equal seeds give equal adapters.

    Raises `StageFailure`, which begins with `key`, if no layer has a name in `config.targets`.
    """
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(Stream.ADAPTERS, seed)[0])
        try:
            peft.inject_adapter_in_model(_peft_config(config), model)
        except ValueError as error:
            raise StageFailure(
                f"{key}.targets={config.targets}: {type(model).__name__} has no such layers; name layers such as "
                "q_proj, or leave it empty for all"
            ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` was called on the model."""
    return any("lora_" in name for name, _ in model.named_parameters())


@torch.no_grad()
def merged_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The `tensors` of `model` with the adapters added to the weights that they are of, under the start model's names.

    One sum is made at a time, so that a reader that takes them one by one never has a second copy of the model.
    """
    for name, tensor in tensors.items():
        if "lora_" not in name:
            layer, is_adapted, rest = name.partition(".base_layer.")
            if is_adapted and rest == "weight":
                adapted: Any = model.get_submodule(layer)
                tensor = tensor + adapted.get_delta_weight("default")
            yield name.replace(".base_layer.", "."), tensor


def save_adapters(model: PreTrainedModel, config: LoRAConfig, checkpoint: Path) -> None:
    """Write the adapters of `model` into a folder of `checkpoint`, for `PeftModel.from_pretrained(START, folder)`."""
    folder = checkpoint / ADAPTER
    folder.mkdir()
    tensors = {
        f"base_model.model.{name}".replace(".default.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    # Written by hand: peft's own depends on its version, and a checkpoint's files are hashed.
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.scale,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(content, indent=2) + "\n")


def _peft_config(config: LoRAConfig) -> Any:
    import peft

    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.scale,  # type: ignore[arg-type]
        target_modules=list(config.targets) or "all-linear",
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
