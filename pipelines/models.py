"""Models: built from a configuration, saved and loaded in Hugging Face format."""

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from pipelines.cell import ModelConfig

logging.disable_progress_bar()


def build_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerFast, rope_base: float, seed: int
) -> Qwen3ForCausalLM:
    """A freshly initialised `Qwen3ForCausalLM` in float32; the same seed gives the same weights."""
    end = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=config.d_model,
                intermediate_size=config.ffn,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                head_dim=config.head_dim,
                tie_word_embeddings=config.tied_embeddings,
                rope_parameters={"rope_type": "default", "rope_theta": rope_base},
                bos_token_id=end,
                eos_token_id=end,
                pad_token_id=end,
                use_cache=False,
            )
        )


def load_model(checkpoint: Path, rope_base: float | None = None) -> Qwen3ForCausalLM:
    """The model of a checkpoint folder, in float32, with another RoPE base if one is given."""
    config = Qwen3Config.from_pretrained(checkpoint)
    if rope_base is not None:
        config.rope_parameters = {"rope_type": "default", "rope_theta": rope_base}
    return Qwen3ForCausalLM.from_pretrained(checkpoint, config=config, dtype=torch.float32, local_files_only=True)


def on_device(model: Qwen3ForCausalLM, rank: int = 0) -> Qwen3ForCausalLM:
    """The model, ready to be measured, on the GPU of process `rank` of this machine, or on the CPU if there is none."""
    gpus = torch.cuda.device_count()
    return model.eval().to(f"cuda:{rank % gpus}" if gpus else "cpu")


def save_checkpoint(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Model and tokenizer as `from_pretrained` reads them; the folder appears whole or not at all."""
    beside = folder.with_name(f".{folder.name}")
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    if folder.exists():  # from an attempt before, which saved its trainer state earlier than this
        shutil.rmtree(folder)
    beside.rename(folder)


def parameter_count(model: torch.nn.Module) -> int:
    """Trainable numbers; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
