"""`use_shaped_loss` under wrappers, copies and trainers: the shaped loss or an error, never another loss in silence."""

import copy
import io
import pickle
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    XLNetConfig,
    XLNetLMHeadModel,
)

from shaping import Objective, shaped_cross_entropy, shaped_model
from shaping.adapters import trainer_loss, use_shaped_loss
from tests.shaping.test_adapters import IDS, LABELS, OBJECTIVE, SMALL, arguments, loss_of_logits, qwen, rows
from tests.shaping.test_peft import closed_form

EXPECTED = closed_form(qwen()(input_ids=IDS).logits, LABELS, OBJECTIVE).detach()


def shaped(objective: Objective = OBJECTIVE) -> Qwen3ForCausalLM:
    model = qwen()
    use_shaped_loss(model, objective)
    return model.train()


def assert_shaped(model: Any, expected: Tensor = EXPECTED) -> None:
    """In training and in evaluation."""
    for mode in (True, False):
        loss = model.train(mode)(input_ids=IDS, labels=LABELS).loss
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


class Wrapper(nn.Module):
    """A module with a model in it, like Lightning's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **arguments: Any) -> Any:
        return self.model(**arguments)


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "compiled": partial(torch.compile, backend="eager"),
    "own": Wrapper,
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    "own, compiled": lambda model: Wrapper(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("order", ["before", "after", "after it ran"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_within_a_wrapper(wrapper: str, order: str) -> None:
    if order == "before":
        model = WRAPPERS[wrapper](shaped())
    else:
        model = WRAPPERS[wrapper](qwen().train())
        if order == "after it ran":
            model(input_ids=IDS, labels=LABELS).loss.backward()
        use_shaped_loss(model, OBJECTIVE)
    assert_shaped(model)
    assert model.train()(input_ids=IDS, labels=LABELS).logits is None


@pytest.mark.parametrize("first", [Objective(), Objective(-0.9), OBJECTIVE])
def test_the_last_call_decides(first: Objective) -> None:
    model = shaped(first)
    assert_shaped(model, closed_form(qwen()(input_ids=IDS).logits, LABELS, first).detach())
    kind = type(model)
    use_shaped_loss(model, OBJECTIVE)
    use_shaped_loss(Wrapper(model), OBJECTIVE)
    assert type(model) is kind
    assert_shaped(model)


def through_file(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "oldest pickle": lambda model: pickle.loads(pickle.dumps(model, protocol=0)),
    "torch.save": through_file,
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_have_the_objective_and_their_own(how: str) -> None:
    model = shaped()
    made = COPIES[how](model)
    assert isinstance(made, Qwen3ForCausalLM)
    assert type(made).__name__ == "Qwen3ForCausalLM"
    assert_shaped(made)
    use_shaped_loss(made, Objective(0.5))
    assert_shaped(model)
    again = COPIES[how](made)
    assert_shaped(again, closed_form(qwen()(input_ids=IDS).logits, LABELS, Objective(0.5)).detach())


def test_trainer_loss_can_be_pickled() -> None:
    logits = torch.randn(8, 12, 64)
    loss = trainer_loss(OBJECTIVE)
    for made in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        torch.testing.assert_close(made({"logits": logits}, LABELS), loss({"logits": logits}, LABELS))


def test_replicas_in_threads_do_not_share_a_call() -> None:
    """DataParallel copies the model's attributes to replicas, one per GPU, and calls them in threads."""
    model = shaped()
    replicas = [model._replicate_for_data_parallel() for _ in range(2)]
    for replica in replicas:  # as torch.nn.parallel.replicate: modules and weights of its own
        replica.lm_head = copy.deepcopy(model.lm_head)
    barrier = threading.Barrier(2, timeout=60)
    losses: dict[int, Tensor] = {}

    def run(index: int) -> None:
        replica = replicas[index]
        replica.lm_head.register_forward_pre_hook(lambda *_: [barrier.wait(), None][1])  # both are within their calls
        half = slice(4 * index, 4 * index + 4)
        losses[index] = replica(input_ids=IDS[half], labels=LABELS[half], num_items_in_batch=torch.tensor([40])).loss

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count = (LABELS[:, 1:] != -100).sum()
    torch.testing.assert_close((losses[0] + losses[1])[0].double(), EXPECTED * count / 40, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="DataParallel: in training"):
        replicas[0](input_ids=IDS)


def test_a_compiled_model_is_compiled_once() -> None:
    """Whatever the number of tokens of a step, which is not known before."""
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    model = torch.compile(shaped(), backend=backend)
    for count in range(20, 26):
        model(input_ids=IDS, labels=LABELS, num_items_in_batch=count).loss.backward()
        model(input_ids=IDS, labels=LABELS, num_items_in_batch=torch.tensor(count)).loss.backward()
    assert sum(size > 20 for size in graphs) == 1, graphs


def bert() -> Any:
    return BertForMaskedLM(
        BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )


def t5() -> Any:
    size = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=64, **size, decoder_start_token_id=0))


@pytest.mark.parametrize(
    ("model", "objective", "message"),
    [
        (qwen, "precision", r"objective='precision': it must be an Objective, such as Objective.named\('precision'\)"),
        (qwen, "sharp", "objective='sharp': it must be an Objective"),
        (qwen, None, "objective=None: it must be an Objective"),
        (qwen, {"beta": 0.5}, "it must be an Objective"),
        (qwen, Objective, "it must be an Objective"),
        (lambda: "Qwen/Qwen3-0.6B", OBJECTIVE, "model: 'Qwen/Qwen3-0.6B' is not a causal LM"),
        (lambda: None, OBJECTIVE, "model: None is not a causal LM"),
        (lambda: nn.Linear(4, 4), OBJECTIVE, "model: Linear is not a causal LM"),
        (lambda: nn.DataParallel(nn.Linear(4, 4)), OBJECTIVE, "model: DataParallel is not a causal LM"),
        (lambda: Wrapper(nn.Linear(4, 4)), OBJECTIVE, "model: Wrapper is not a causal LM"),
        (lambda: qwen, OBJECTIVE, "is not a causal LM"),
        (lambda: qwen().model, OBJECTIVE, "Qwen3Model has no output layer"),
        (lambda: Qwen3ForSequenceClassification(qwen().config), OBJECTIVE, "has no output layer"),
        (bert, OBJECTIVE, "BertForMaskedLM computes its loss with ForMaskedLMLoss"),
    ],
)
def test_wrong_arguments_are_named(model: Callable[[], Any], objective: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        use_shaped_loss(model(), objective)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("objective", ["precision", None, 0.5, ("beta", 0.5)])
def test_other_functions_name_a_wrong_objective(objective: Any) -> None:
    with pytest.raises(ValueError, match="must be an Objective"):
        trainer_loss(objective)
    with pytest.raises(ValueError, match="must be an Objective"):
        shaped_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 1]), objective)


def bart() -> Any:
    size = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    return BartForCausalLM(BartConfig(vocab_size=64, **size, max_position_embeddings=32))


def xlnet() -> Any:
    return XLNetLMHeadModel(XLNetConfig(vocab_size=64, d_model=16, n_layer=1, n_head=2, d_inner=32))


def own_forward() -> Any:
    """As Liger's kernels: `forward` is replaced by one that computes cross-entropy from the weight."""
    model = qwen()

    def forward(input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> Any:
        logits = model.model(input_ids=input_ids).last_hidden_state @ model.lm_head.weight.t()
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(loss=loss, logits=logits)

    model.forward = forward
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model", [bart, xlnet, t5, own_forward])
def test_a_model_that_computes_its_own_loss_is_refused(model: Callable[[], Any], training: bool) -> None:
    made = model()
    use_shaped_loss(made, OBJECTIVE)
    with pytest.raises(ValueError, match="train it with trainer_loss") as error:
        made.train(training)(input_ids=IDS, labels=LABELS)
    assert "\n" not in str(error.value)


def test_the_loss_function_cannot_be_replaced() -> None:
    model = shaped()
    with pytest.raises(ValueError, match="loss_function: use_shaped_loss has set it"):
        model.loss_function = F.cross_entropy
    logits = qwen()(input_ids=IDS).logits
    torch.testing.assert_close(model.loss_function(logits, LABELS, vocab_size=64).double(), EXPECTED)
    summed = model.loss_function(logits, LABELS, vocab_size=64, num_items_in_batch=7)
    torch.testing.assert_close(summed, loss_of_logits(qwen(), reduction="sum") / 7)


OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {},
    "a number": {"num_items_in_batch": 33},
    "a tensor": {"num_items_in_batch": torch.tensor(33)},
    "one for each GPU": {"num_items_in_batch": torch.tensor([33])},
    "shifted": {"shift_labels": LABELS.roll(2, 0)},
    "another token is ignored": {"ignore_index": 5},
    "nothing is predicted": {"labels": torch.full_like(LABELS, -100)},
    "nothing in the whole batch": {"labels": torch.full_like(LABELS, -100), "num_items_in_batch": torch.tensor(0)},
    "nothing, and a number": {"labels": torch.full_like(LABELS, -100), "num_items_in_batch": 33},
    "one row predicts nothing": {"labels": LABELS.index_fill(0, torch.tensor([3]), -100)},
    "labels in another type": {"labels": LABELS.int()},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_cross_entropy_is_that_of_transformers(name: str, training: bool) -> None:
    """All options of its loss: values and gradients."""
    options = {"labels": LABELS.where(LABELS != -100, 5) if "ignore_index" in OPTIONS[name] else LABELS} | OPTIONS[name]
    plain, model = qwen().train(training), shaped(Objective()).train(training)
    theirs = plain(input_ids=IDS, **options | {"labels": options["labels"].long()}).loss
    ours = model(input_ids=IDS, **options).loss
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    ours.sum().backward()
    theirs.sum().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, equal_nan=True)


def test_labels_by_position() -> None:
    model = shaped()
    output = model(IDS, None, None, None, None, LABELS)
    torch.testing.assert_close(output.loss.double(), EXPECTED, rtol=1e-5, atol=1e-6)


def test_trainer_loss_reads_the_logits_of_models_that_return_tuples() -> None:
    logits, cache = torch.randn(8, 12, 64), torch.randn(8, 12, 64)
    loss = trainer_loss(OBJECTIVE)
    torch.testing.assert_close(loss((logits, cache), LABELS), loss({"logits": logits, "other": cache}, LABELS))


class Sharded(Tensor):
    """A parameter that is gathered before the layer runs, as a DTensor is."""

    def full_tensor(self) -> Tensor:
        return self.as_subclass(Tensor)


class Quantised(Tensor):
    """A parameter of a kind that nothing is known about."""


@pytest.mark.parametrize(("kind", "is_matrix"), [(Tensor, True), (Sharded, True), (Quantised, False)])
def test_a_sharded_weight_is_a_matrix_and_an_unknown_one_is_not(kind: type[Tensor], is_matrix: bool) -> None:
    layer = nn.Linear(16, 64, bias=False)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(kind))
    assert shaped_model._is_one_matrix(layer) == is_matrix


class Doubled(nn.Linear):
    """A layer whose weight is not what it multiplies with, as of quantised layers."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(2 * hidden_states)


def test_output_layers_that_are_not_one_matrix() -> None:
    for change in ("subclass", "replaced forward", "parametrised", "another module"):
        models = []
        for _ in range(2):
            model = qwen().train()
            head: Any = model.lm_head
            if change == "subclass":
                head.__class__ = Doubled
            elif change == "replaced forward":
                head.forward = lambda hidden_states, weight=head.weight: hidden_states.exp() @ weight.t()
            elif change == "parametrised":
                nn.utils.parametrizations.weight_norm(head)
                with torch.no_grad():
                    head.parametrizations.weight.original0.mul_(3)
            else:
                torch.manual_seed(4)
                model.set_output_embeddings(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 64)))
            models.append(model)
        plain, model = models
        use_shaped_loss(model, OBJECTIVE)
        assert_shaped(model, closed_form(plain(input_ids=IDS).logits, LABELS, OBJECTIVE).detach())


TRAINERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "label smoothing": (
        {"label_smoothing_factor": 0.1},
        {},
        "label_smoothing_factor=0.1: the shaped loss has no label",
    ),
    "another loss": (
        {},
        {"compute_loss_func": lambda outputs, *_, **__: outputs["logits"].mean()},
        "compute_loss_func",
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", TRAINERS)
def test_a_trainer_with_a_loss_of_its_own_is_refused(case: str, training: bool, tmp_path: Path) -> None:
    options, more, message = TRAINERS[case]
    trainer = Trainer(
        shaped(Objective(-0.9)),
        TrainingArguments(**arguments(tmp_path, **options)),
        train_dataset=rows(),
        eval_dataset=rows(),
        **more,
    )
    with pytest.raises(ValueError, match=message):
        trainer.train() if training else trainer.evaluate()


def test_trainer_loss_refuses_label_smoothing_and_other_models(tmp_path: Path) -> None:
    options = {"train_dataset": rows(), "compute_loss_func": trainer_loss(OBJECTIVE)}
    smoothing = TrainingArguments(**arguments(tmp_path, label_smoothing_factor=0.1))
    with pytest.raises(ValueError, match=re.escape("label_smoothing_factor=0.1")):
        Trainer(qwen(), smoothing, **options).train()
    for model, inputs, kind in ((t5(), {"decoder_input_ids": IDS}, "Seq2SeqLMOutput"), (bert(), {}, "MaskedLMOutput")):
        with pytest.raises(ValueError, match=f"outputs: {kind} is not of a causal LM"):
            trainer_loss(OBJECTIVE)(model(input_ids=IDS, **inputs), LABELS)
    with pytest.raises(ValueError, match="labels=None"):
        trainer_loss(OBJECTIVE)(qwen()(input_ids=IDS), None)


class SFTTrainer:
    """The part of TRL's trainer that calls the model."""

    label_smoother = compute_loss_func = None

    def __init__(self, loss_type: str = "nll") -> None:
        self.args = SimpleNamespace(loss_type=loss_type)

    def compute_loss(self, model: Any, **arguments: Any) -> Any:
        return model(input_ids=IDS, fused_lm_head=True, **arguments)


@pytest.mark.parametrize("head", ["fused", "own"])
@pytest.mark.parametrize("training", [True, False])
def test_each_token_of_a_mixture_for_sft_trainer(training: bool, head: str) -> None:
    """The auxiliary loss of experts is in the loss, and not in that of any token."""
    torch.manual_seed(0)
    config = MixtralConfig(**SMALL, num_local_experts=4, output_router_logits=True)
    model = MixtralForCausalLM(config).train(training)
    if head == "own":
        model.lm_head.__class__ = Doubled
    plain = copy.deepcopy(model)
    use_shaped_loss(model, OBJECTIVE)
    output = SFTTrainer().compute_loss(model, labels=LABELS)
    logits = plain(input_ids=IDS).logits[:, :-1]
    losses, statistics = shaped_cross_entropy(logits, LABELS[:, 1:], OBJECTIVE, reduction="none", return_stats=True)
    kept = LABELS[:, 1:] != -100
    torch.testing.assert_close(-output.log_probs[:, :-1], losses)
    assert torch.equal(output.label_mask[:, :-1], kept)
    assert torch.equal(output.is_top1[:, :-1], statistics.target_rank == 1)
    torch.testing.assert_close(output.entropy[:, :-1], statistics.entropy * kept)
    assert not output.log_probs[:, -1].any()
    auxiliary = config.router_aux_loss_coef * output.aux_loss
    torch.testing.assert_close(output.loss, losses.sum() / kept.sum() + auxiliary)
    shifted = F.pad(LABELS, (0, 1), value=-100)[:, 1:]
    again = SFTTrainer().compute_loss(model, shift_labels=shifted)  # without labels
    torch.testing.assert_close(again.log_probs, output.log_probs)


def test_sft_trainer_with_another_weight_of_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="loss_type='dft'"):
        SFTTrainer("dft").compute_loss(shaped(), labels=LABELS)


def test_trainers_with_another_loss_get_log_probabilities() -> None:
    """DPO, GRPO and KTO call the model with `fused_lm_head` for these, and compute their own loss."""
    utils = pytest.importorskip("trl.trainer.utils")
    model = shaped()
    utils.add_fused_lm_head(model)
    output = model(input_ids=IDS, labels=LABELS, fused_lm_head=True)
    log_probs = qwen()(input_ids=IDS).logits[:, :-1].log_softmax(-1)
    targets = LABELS[:, 1:].clamp(min=0)
    expected = log_probs.gather(-1, targets[..., None])[..., 0].masked_fill(LABELS[:, 1:] == -100, 0.0)
    torch.testing.assert_close(output.log_probs, expected)
    assert output.loss is None  # it would be cross-entropy
    assert_shaped(model)
