"""`use_shaped_loss` on PEFT's models, wrapped before and after: losses and gradients against float64.

The truth of an adapter that can be merged is the loss of the merged model's logits; of others, that of the logits that
the adapted model returns without labels. Both are computed by `closed_form` from a softmax in float64.
"""

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from shaping import Objective
from shaping.adapters import use_shaped_loss
from tests.shaping.test_adapters import IDS, LABELS, OBJECTIVE, SMALL, qwen

peft = pytest.importorskip("peft")

LORA: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 2, "init_lora_weights": False}
ADAPTERS: dict[str, Callable[[], Any]] = {
    "attention": lambda: peft.LoraConfig(**LORA, target_modules=["q_proj", "v_proj"]),
    "output layer": lambda: peft.LoraConfig(**LORA, target_modules=["q_proj", "lm_head"], lora_alpha=7),
    "output layer, rank-stabilised": lambda: peft.LoraConfig(**LORA, target_modules=["lm_head"], use_rslora=True),
    "output layer, decomposed": lambda: peft.LoraConfig(**LORA, target_modules=["lm_head"], use_dora=True),
    "output layer in full": lambda: peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "all layers": lambda: peft.LoraConfig(**LORA, target_modules="all-linear"),
    "scaled output layer": lambda: peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["lm_head"], feedforward_modules=[], init_ia3_weights=False
    ),
}
PROMPTS: dict[str, Callable[[], Any]] = {
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def closed_form(logits: Tensor, labels: Tensor, objective: Objective) -> Tensor:
    """The mean loss in float64, from sorted probabilities; its gradient is the objective's."""
    logits, targets = logits[:, :-1].double(), labels[:, 1:]
    logits, targets = logits[targets != -100], targets[targets != -100]
    probs = logits.softmax(-1)
    order = torch.sort(logits.detach(), dim=-1, descending=True, stable=True).indices
    rewards = torch.full_like(probs, objective.lam_tail).scatter(-1, order[:, : objective.top_k], objective.lam_head)
    rewards = rewards.scatter(-1, targets[:, None], 0.0)
    p = probs.gather(-1, targets[:, None])[:, 0]
    return -((1 - p).detach() ** objective.beta * p.log() + (rewards * probs).sum(-1)).mean()


def adapted(model: nn.Module, config: Any, *, order: str, objective: Objective = OBJECTIVE) -> Any:
    """The model with the adapter, its class changed before or after that, or not at all."""
    if order == "before":
        use_shaped_loss(model, objective)
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, config)
    if order == "after":
        use_shaped_loss(wrapped, objective)
    return wrapped


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapted_model_has_the_loss_and_gradients_of_its_merged_weights(adapter: str, order: str) -> None:
    plain = adapted(qwen(), ADAPTERS[adapter](), order="never").train()
    merged = copy.deepcopy(plain).merge_and_unload()
    expected = closed_form(merged(input_ids=IDS).logits, LABELS, OBJECTIVE)
    model = adapted(qwen(), ADAPTERS[adapter](), order=order)
    loss = model.train()(input_ids=IDS, labels=LABELS).loss
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)

    ours = gradients(model, loss)
    theirs = gradients(plain, closed_form(plain(input_ids=IDS).logits, LABELS, OBJECTIVE))
    assert ours.keys() == theirs.keys()
    assert sum(gradient is not None and bool(gradient.any()) for gradient in ours.values()) > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)

    count = 20
    scaled = model(input_ids=IDS, labels=LABELS, num_items_in_batch=count).loss.double()
    torch.testing.assert_close(scaled, expected * (LABELS[:, 1:] != -100).sum() / count, rtol=1e-5, atol=1e-6)
    evaluated = model.eval()(input_ids=IDS, labels=LABELS)
    torch.testing.assert_close(evaluated.loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(evaluated.logits, plain.eval()(input_ids=IDS).logits)


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_logits_of_an_unchanged_output_layer_do_not_exist(order: str) -> None:
    """And those of a changed one do, as it computes them itself."""
    fused = adapted(qwen(), ADAPTERS["attention"](), order=order).train()(input_ids=IDS, labels=LABELS)
    assert fused.logits is None
    whole = adapted(qwen(), ADAPTERS["output layer"](), order=order).train()(input_ids=IDS, labels=LABELS)
    assert whole.logits.shape == (8, 12, 64)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("adapter", PROMPTS)
def test_virtual_tokens_are_not_predicted(adapter: str, order: str) -> None:
    """PEFT puts them before the text, and before its labels."""
    model = adapted(qwen(), PROMPTS[adapter](), order=order).train()
    torch.manual_seed(2)
    loss = model(input_ids=IDS, labels=LABELS).loss
    torch.manual_seed(2)
    logits = model(input_ids=IDS).logits[:, -IDS.shape[1] :]
    torch.testing.assert_close(loss.double(), closed_form(logits, LABELS, OBJECTIVE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ["before", "after"])
def test_dropout_and_several_adapters_of_the_output_layer(order: str) -> None:
    config = peft.LoraConfig(**LORA, target_modules=["lm_head"], lora_dropout=0.5)
    plain, model = adapted(qwen(), config, order="never").train(), adapted(qwen(), config, order=order).train()
    for wrapped in (plain, model):
        torch.manual_seed(5)
        wrapped.add_adapter("second", peft.LoraConfig(**LORA, target_modules=["lm_head"], lora_alpha=3))
    for active in ("default", "second"):
        losses = []
        for wrapped in (plain, model):
            wrapped.set_adapter(active)
            torch.manual_seed(3)  # the same tokens are dropped
            output = wrapped(input_ids=IDS, labels=None if wrapped is plain else LABELS)
            losses.append(closed_form(output.logits, LABELS, OBJECTIVE) if wrapped is plain else output.loss.double())
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    with model.disable_adapter():
        loss = model(input_ids=IDS, labels=LABELS).loss
    torch.testing.assert_close(loss.double(), closed_form(qwen()(input_ids=IDS).logits, LABELS, OBJECTIVE))


def test_tied_embeddings_with_an_adapter_of_the_output_layer() -> None:
    plain = adapted(qwen(tied=True), ADAPTERS["output layer"](), order="never")
    for order in ("before", "after"):
        model = adapted(qwen(tied=True), ADAPTERS["output layer"](), order=order).train()
        loss = model(input_ids=IDS, labels=LABELS).loss.double()
        torch.testing.assert_close(loss, closed_form(plain(input_ids=IDS).logits, LABELS, OBJECTIVE))


def test_adapters_within_the_model() -> None:
    """Without a wrapper, as `transformers` adds them; and GPT-2, whose other layers have transposed weights."""
    model = qwen()
    use_shaped_loss(model, OBJECTIVE)
    torch.manual_seed(1)
    model = peft.inject_adapter_in_model(ADAPTERS["output layer"](), model)
    logits = model.train()(input_ids=IDS).logits
    loss = model(input_ids=IDS, labels=LABELS).loss.double()
    torch.testing.assert_close(loss, closed_form(logits, LABELS, OBJECTIVE))

    size = {"vocab_size": 64, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    gpt2 = GPT2LMHeadModel(GPT2Config(**size, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    config = peft.LoraConfig(**LORA, target_modules=["c_attn", "lm_head"], fan_in_fan_out=True)
    wrapped = adapted(gpt2, config, order="after").train()
    loss = wrapped(input_ids=IDS, labels=LABELS).loss.double()
    torch.testing.assert_close(loss, closed_form(wrapped(input_ids=IDS).logits, LABELS, OBJECTIVE))


@pytest.mark.parametrize("replaced", [False, True], ids=["forward", "a forward that TRL has replaced"])
def test_a_wrapper_that_calls_forward_itself(replaced: bool) -> None:
    """PEFT before 0.21 does, so the model's `__call__` does not run."""

    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, **arguments: Any) -> Any:
            return self.model.forward(**arguments)

    model = Wrapper(qwen())
    if replaced:
        original = model.model.forward
        model.model.forward = MethodType(lambda _, **arguments: original(**arguments), model.model)
    use_shaped_loss(model, OBJECTIVE)
    if replaced:  # a second time, as accelerate does after TRL
        inner = model.model.forward
        model.model.forward = lambda **arguments: inner(**arguments)
    expected = closed_form(qwen()(input_ids=IDS).logits, LABELS, OBJECTIVE)
    output = model.train()(input_ids=IDS, labels=LABELS)
    assert output.logits is None
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.eval()(input_ids=IDS, labels=LABELS).loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_saved_adapter_is_loaded_into_a_plain_model(tmp_path: Any) -> None:
    model = adapted(qwen(), ADAPTERS["output layer"](), order="before")
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(qwen(), tmp_path)
    assert type(loaded.get_base_model()) is Qwen3ForCausalLM
    torch.testing.assert_close(loaded(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)
    merged = model.merge_and_unload()
    torch.testing.assert_close(
        merged.train()(input_ids=IDS, labels=LABELS).loss.double(),
        closed_form(loaded(input_ids=IDS).logits, LABELS, OBJECTIVE),
    )


def test_an_output_layer_with_a_bias_and_an_adapter() -> None:
    def model() -> Qwen3ForCausalLM:
        torch.manual_seed(0)
        made = Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8))
        made.lm_head = nn.Linear(16, 64, bias=True)
        return made

    for config in (ADAPTERS["attention"](), ADAPTERS["output layer"]()):
        wrapped = adapted(model(), config, order="after").train()
        loss = wrapped(input_ids=IDS, labels=LABELS).loss.double()
        torch.testing.assert_close(loss, closed_form(wrapped(input_ids=IDS).logits, LABELS, OBJECTIVE))
