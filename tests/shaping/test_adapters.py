"""Each adapter in its library: its loss equals the loss on the model's logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
)

from shaping import Objective, shaped_cross_entropy
from shaping.adapters import ShapedLossMixin, trainer_loss, use_shaped_loss

OBJECTIVE = Objective(-0.25, 0.1, -0.1, 5)
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
IDS = torch.randint(0, 64, (8, 12), generator=torch.Generator().manual_seed(0))
LABELS = IDS.clone()
for row in range(8):
    LABELS[row, : 1 + row] = -100  # rows of different numbers of predicted tokens


def qwen(tied: bool = False) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=tied))


def loss_of_logits(model: torch.nn.Module, **options: Any) -> Tensor:
    logits = model(input_ids=IDS).logits
    return shaped_cross_entropy(logits[:, :-1], LABELS[:, 1:], OBJECTIVE, **options)


@pytest.mark.parametrize("tied", [True, False])
def test_a_patched_model_returns_the_fused_loss(tied: bool) -> None:
    plain, patched = qwen(tied), qwen(tied)
    use_shaped_loss(patched, OBJECTIVE)
    expected = loss_of_logits(plain)
    expected.backward()
    output = patched.train()(input_ids=IDS, labels=LABELS)
    assert output.logits is None
    assert "logits" not in output
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    for ours, theirs in zip(patched.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    (loss,) = patched(input_ids=IDS, labels=LABELS, use_cache=False, return_dict=False)
    torch.testing.assert_close(loss, expected)
    shifted = F.pad(LABELS, (0, 1), value=-100)[:, 1:]
    torch.testing.assert_close(patched(input_ids=IDS, labels=LABELS, shift_labels=shifted).loss, expected)
    torch.testing.assert_close(
        patched(input_ids=IDS, labels=LABELS, num_items_in_batch=20).loss, loss_of_logits(plain, reduction="sum") / 20
    )


def test_evaluation_and_generation_return_logits() -> None:
    plain, patched = qwen().eval(), qwen().eval()
    use_shaped_loss(patched, OBJECTIVE)
    output = patched(input_ids=IDS, labels=LABELS)
    torch.testing.assert_close(output.loss, loss_of_logits(plain))
    torch.testing.assert_close(output.logits, plain(input_ids=IDS).logits)
    ours, theirs = (model.generate(IDS[:1], max_new_tokens=3, do_sample=False) for model in (patched, plain))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("in_place", [True, False], ids=["model.compile()", "torch.compile(model)"])
def test_a_patched_model_compiles(in_place: bool) -> None:
    model = qwen()
    expected = loss_of_logits(model)
    use_shaped_loss(model, OBJECTIVE)
    compiled = model.train() if in_place else torch.compile(model.train(), backend="aot_eager")
    if in_place:
        model.compile(backend="aot_eager")
    loss = compiled(input_ids=IDS, labels=LABELS).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert model.lm_head.weight.grad is not None


def test_a_patched_model_is_saved_as_its_original_class(tmp_path: Path) -> None:
    model = qwen()
    use_shaped_loss(model, OBJECTIVE)
    model.save_pretrained(tmp_path)
    loaded = Qwen3ForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is Qwen3ForCausalLM
    assert loaded.config.architectures == ["Qwen3ForCausalLM"]
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight)


def test_other_architectures() -> None:
    size = {"vocab_size": 64, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    no_dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    gpt2 = GPT2LMHeadModel(GPT2Config(**size, **no_dropout, bos_token_id=None, eos_token_id=None))
    expected = loss_of_logits(gpt2)
    use_shaped_loss(gpt2, OBJECTIVE)
    torch.testing.assert_close(gpt2.train()(input_ids=IDS, labels=LABELS).loss, expected)

    mixture = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4, output_router_logits=True))
    expected = loss_of_logits(mixture)
    use_shaped_loss(mixture, OBJECTIVE)
    output = mixture.train()(input_ids=IDS, labels=LABELS)
    torch.testing.assert_close(output.loss, expected + mixture.config.router_aux_loss_coef * output.aux_loss)


def test_a_model_that_caps_its_logits_raises() -> None:
    model = Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8))
    use_shaped_loss(model, OBJECTIVE)
    with pytest.raises(ValueError, match="changes its logits after the output layer"):
        model.train()(input_ids=IDS, labels=LABELS)
    model.eval()(input_ids=IDS, labels=LABELS)  # the model still works after the error
    with pytest.raises(ValueError, match="has no output layer"):
        use_shaped_loss(qwen().model, OBJECTIVE)


def arguments(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    } | options


def rows() -> list[dict[str, Tensor]]:
    return [{"input_ids": ids, "labels": labels} for ids, labels in zip(IDS, LABELS, strict=True)]


@pytest.mark.parametrize("patched", [False, True], ids=["compute_loss_func", "use_shaped_loss"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_trainer_accumulates_to_the_step_of_one_large_batch(tmp_path: Path, accumulation: int, patched: bool) -> None:
    """Rows predict different numbers of tokens, so the mean of the micro-batches' means is a different step."""
    reference, model = qwen(), qwen()
    loss_of_logits(reference).backward()
    with torch.no_grad():
        for p in reference.parameters():
            p -= 0.1 * p.grad  # type: ignore[operator]
    if patched:
        use_shaped_loss(model, OBJECTIVE)
    trainer = Trainer(
        model,
        TrainingArguments(
            **arguments(
                tmp_path, per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation
            )
        ),
        train_dataset=rows(),
        compute_loss_func=None if patched else trainer_loss(OBJECTIVE),
    )
    trainer.train()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("patched_before", [True, False], ids=["patched before", "patched after"])
def test_sft_trainer_of_trl(tmp_path: Path, patched_before: bool) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    reference, model = qwen(), qwen()
    logits = reference(input_ids=IDS).logits
    expected = shaped_cross_entropy(logits[:, :-1], IDS[:, 1:], OBJECTIVE)
    expected.backward()
    words = {f"w{i}": i for i in range(62)} | {"<pad>": 62, "</s>": 63}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="</s>"
    )
    if patched_before:
        use_shaped_loss(model, OBJECTIVE)
    trainer = trl.SFTTrainer(
        model,
        trl.SFTConfig(
            **arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=0.1),
            bf16=False,
        ),
        train_dataset=Dataset.from_dict({"input_ids": IDS.tolist()}),
        processing_class=tokenizer,
    )
    if not patched_before:
        use_shaped_loss(model, OBJECTIVE)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), abs=1e-3)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.1 * theirs.grad)  # type: ignore[operator]


def test_lightning_trains_and_logs() -> None:
    import lightning

    class Module(ShapedLossMixin, lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = qwen()

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            return self.shaped_loss(self.model(input_ids=batch).logits[:, :-1], batch[:, 1:], OBJECTIVE)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    module, reference = Module(), qwen()
    logits = reference(input_ids=IDS).logits[:, :-1]
    loss, statistics = shaped_cross_entropy(logits, IDS[:, 1:], OBJECTIVE, return_stats=True)
    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(IDS, batch_size=8))  # type: ignore[arg-type]
    logged = trainer.callback_metrics
    torch.testing.assert_close(logged["train/loss"], loss)
    torch.testing.assert_close(logged["train/entropy"], statistics.entropy.mean())
    torch.testing.assert_close(
        logged["train/cross_entropy"], F.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
    )
    assert not torch.equal(module.model.lm_head.weight, reference.lm_head.weight)
