"""Hugging Face's Trainer: one line makes `model(..., labels=...)` compute the fused shaped loss.

For models that cap or scale their logits use `Trainer(..., compute_loss_func=trainer_loss(objective))`.

python examples/hugging_face_trainer.py
"""

import argparse
import tempfile
from pathlib import Path

from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

from shaping import Objective
from shaping.adapters import use_shaped_loss

text = list(Path(argparse.__file__).read_bytes()[: 64 * 512])  # the tokens are bytes
rows = [{"input_ids": text[i : i + 64], "labels": text[i : i + 64]} for i in range(0, len(text), 64)]
config = Qwen3Config(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    tie_word_embeddings=True,
)
model = Qwen3ForCausalLM(config)
use_shaped_loss(model, Objective.named("tail_penalty"))

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        max_steps=20,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
    )
    Trainer(model, arguments, train_dataset=rows).train()
