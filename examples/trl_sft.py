"""TRL's SFTTrainer: the same one line as for Trainer, before or after the trainer is created.

python examples/trl_sft.py
"""

import tempfile

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from shaping import Objective
from shaping.adapters import use_shaped_loss

words = {word: i for i, word in enumerate(["<pad>", "</s>", *"0123456789+="])}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
sums = [{"prompt": f"{a}+{b}=", "completion": f"{a + b}"} for a in range(10) for b in range(10)]
config = Qwen3Config(
    vocab_size=len(words),
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
)
model = Qwen3ForCausalLM(config)
use_shaped_loss(model, Objective.named("precision"))

with tempfile.TemporaryDirectory() as folder:
    SFTTrainer(
        model,
        SFTConfig(
            folder,
            max_steps=20,
            per_device_train_batch_size=16,
            learning_rate=5e-3,
            logging_steps=5,
            save_strategy="no",
            report_to=[],
            bf16=False,
        ),
        train_dataset=Dataset.from_list(sums),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"),
    ).train()
