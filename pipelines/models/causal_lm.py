"""Builds models from a configuration, and saves and loads them in Hugging Face format.

A dense model is a `Qwen3ForCausalLM`, a mixture of experts a `MiniMaxM2ForCausalLM`: both are classes of transformers,
so checkpoints load in vLLM, lm-eval and other tools without conversion.
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MiniMaxM2Config,
    MiniMaxM2ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging

from pipelines.configuration.model import ModelConfig
from pipelines.configuration.start_checkpoint import has_code
from pipelines.data.tokenizer import StartTokenizer, end_tokens
from pipelines.errors import StageFailure
from pipelines.files import remove_leftovers, replacing
from pipelines.models.checkpoint_weights import checkpoint_model
from pipelines.models.seeded_weights import seeded_model

logging.disable_progress_bar()

FILE_BYTES = 5 * 2**30
"""Most bytes of weights in one file of a sharded model's checkpoint."""


def model_config(
    config: ModelConfig, vocabulary: int, rope_base: float, *, end: int | None = None, length: int | None = None
) -> PreTrainedConfig:
    """The transformers configuration for `config`.

    `end` is the token that starts, ends and pads documents. `length` are the tokens of a training row, which become the
    model's position limit; None keeps transformers' default.
    """
    shared: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": config.d_model,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_base},
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "use_cache": False,
    } | ({} if length is None else {"max_position_embeddings": length})
    if not config.experts:
        return Qwen3Config(**shared)
    return MiniMaxM2Config(
        **shared,
        num_local_experts=config.experts,
        num_experts_per_tok=config.active_experts,
        router_aux_loss_coef=0.0,  # balance comes from the router's bias (`pipelines.training.expert_balance`)
    )


def build_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    rope_base: float,
    *,
    seed: int,
    vocabulary: int | None = None,
    length: int | None = None,
    deferred: bool = False,
) -> PreTrainedModel:
    """A newly initialised model in float32; the same seed gives the same weights.

    `vocabulary` is by default the tokenizer's size. Raises `StageFailure` if it is smaller. For `length` see
    `model_config`. The weights of a `deferred` model are made when it is sharded (`pipelines.models.deferred`).
    """
    if vocabulary is not None and vocabulary < len(tokenizer):
        raise StageFailure(
            f"data.vocab_size={vocabulary}: the tokenizer of data.shards has {len(tokenizer)} entries; set at least "
            "that many"
        )
    end = tokenizer.eos_token_id
    architecture = model_config(config, vocabulary or len(tokenizer), rope_base, end=end, length=length)
    if deferred:
        return seeded_model(partial(empty_model, architecture), seed=seed)
    # The global generator is left unchanged.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return empty_model(architecture)


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a transformers configuration, on torch's default device, which may be `meta`."""
    if isinstance(config, MiniMaxM2Config):
        return MiniMaxM2ForCausalLM(config)
    assert isinstance(config, Qwen3Config)
    return Qwen3ForCausalLM(config)


def load_model(
    checkpoint: Path,
    rope_base: float | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    length: int | None = None,
    deferred: bool = False,
) -> PreTrainedModel:
    """The model of a checkpoint folder, in float32, with another RoPE base and position limit if they are given.

    The weights of a `deferred` model are read when it is sharded (`pipelines.models.deferred`); a checkpoint of another
    architecture than those that are trained here, or with code of its own, is read at once nevertheless.

    Raises `StageFailure` if the folder has no complete checkpoint, or if its vocabulary is smaller than `tokenizer`'s.
    """
    try:
        # A checkpoint in the store has code only where `start.remote_code` allowed it; None would ask on the terminal.
        code = has_code(checkpoint)
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=code)
        # The RoPE base has to be set before the model computes its rotary frequencies.
        if rope_base is not None:
            config.rope_parameters = {"rope_type": "default", "rope_theta": rope_base}
        if length is not None:
            config.max_position_embeddings = length
        if deferred and not code and type(config) in (Qwen3Config, MiniMaxM2Config):
            model = checkpoint_model(partial(empty_model, config), checkpoint)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=code
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise StageFailure(
            f"{checkpoint}: not a complete checkpoint ({str(error).splitlines()[0]}); delete the stage run "
            "that wrote it and run it again"
        ) from error
    except Exception as error:  # safetensors' error for a truncated file derives directly from Exception
        if type(error).__module__.split(".")[0] not in ("safetensors", "builtins"):
            raise
        raise StageFailure(f"{checkpoint}: its weights cannot be read ({error})") from error
    _without_dropout(model)
    if tokenizer is not None and not end_tokens(model):
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    if tokenizer is not None and len(tokenizer) > model.config.vocab_size:
        raise StageFailure(
            f"{checkpoint}: its vocabulary of {model.config.vocab_size} is smaller than the tokenizer's "
            f"{len(tokenizer)}; continue with the data that it was trained on"
        )
    return model


def _without_dropout(model: PreTrainedModel) -> None:
    """Switch dropout off, which some start checkpoints have: the policy must be the model that sampled."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def on_device(model: PreTrainedModel, rank: int = 0) -> PreTrainedModel:
    """The model in evaluation mode, on the GPU of process `rank` of this machine, or on the CPU without GPUs."""
    gpus = torch.cuda.device_count()
    return model.eval().to(f"cuda:{rank % gpus}" if gpus else "cpu")


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast | StartTokenizer,
    folder: Path,
    *,
    card: str | None = None,
    weights: Iterable[tuple[str, Tensor]] | None = None,
    more: Callable[[Path], None] | None = None,
) -> None:
    """Save model and tokenizer for `from_pretrained`; the folder appears complete or not at all.

    `card` becomes its README.md, and `more` writes what else belongs into the folder. `weights` are those of a sharded
    model, by their names in a checkpoint; only one file of them is in memory at a time. An existing folder is replaced:
    an earlier attempt may have saved it after its last trainer state.
    """
    remove_leftovers(folder.parent, folder.name)
    with replacing(folder) as temporary:
        if weights is None:
            model.save_pretrained(temporary)
        else:
            _write_weights(weights, temporary)
            model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
            for config in (model.config, model.generation_config):
                config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        _keep_readable_by_transformers_4(temporary)
        if more is not None:
            more(temporary)
        if card is not None:
            (temporary / "README.md").write_text(card)


def _keep_readable_by_transformers_4(folder: Path) -> None:
    """Write the base of the rotary embedding and the tokenizer's class where transformers 4.5x looks for them too.

    It does not know `rope_parameters`: without a `rope_theta` at the top it silently takes 1e4, the wrong base for a
    mid-trained model. Its name for a tokenizer that is only a `tokenizer.json` is the older one, which 5 reads as well.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    base = (config.get("rope_parameters") or {}).get("rope_theta")
    if base is not None:
        path.write_text(json.dumps({**config, "rope_theta": base}, indent=2, sort_keys=True) + "\n")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _write_weights(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Write `model.safetensors` or, beyond `FILE_BYTES`, several files with their index."""
    folder.mkdir()
    part: dict[str, Tensor] = {}
    names: list[list[str]] = []
    """Of the weights in each file."""
    total = size = 0

    def write() -> None:
        save_file(part, folder / f"part-{len(names)}", metadata={"format": "pt"})
        names.append(list(part))
        part.clear()

    for name, tensor in weights:
        if part and size + tensor.nbytes > FILE_BYTES:
            write()
            size = 0
        part[name] = tensor.detach().to("cpu").contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    write()
    if len(names) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    final = [f"model-{index + 1:05d}-of-{len(names):05d}.safetensors" for index in range(len(names))]
    for number, file in enumerate(final):
        (folder / f"part-{number}").rename(folder / file)
    files = {name: file for file, inside in zip(final, names, strict=True) for name in inside}
    content = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def parameter_count(model: torch.nn.Module) -> int:
    """Trainable parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
