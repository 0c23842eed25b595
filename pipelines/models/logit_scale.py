"""A model's distribution at another temperature, written into its weights: all logits times one number.

The final norm's scale carries it, since the logits are linear in it; so an embedding that is tied to the output layer
stays as it is, and a bias of norm or output layer is scaled with it. Where that is not exact, as with a norm that
stores its scale minus one, an output layer of its own is scaled. The result is compared with the logits before.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipelines.errors import StageFailure

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
"""Names of the last norm of a decoder in transformers."""
TOLERANCE = 1e-4
"""Largest difference of a logit from the scaled one, as a share of the largest logit."""
PROBE_TOKENS = 32


@torch.no_grad()
def scale_logits(model: PreTrainedModel, factor: float) -> None:
    """Multiply all logits of a model by `factor`, in place.

    Raises `StageFailure` for a model whose logits no weight scales, such as one that caps them; it is left as it was.
    """
    training = model.training
    model.eval()
    probe = torch.arange(min(PROBE_TOKENS, model.config.vocab_size), device=model.device)[None]
    wanted = factor * _logits(model, probe)
    for weights in _carriers(model):
        before = [weight.clone() for weight in weights]
        for weight in weights:
            weight.mul_(factor)
        if (_logits(model, probe) - wanted).abs().max() <= TOLERANCE * wanted.abs().max():
            model.train(training)
            return
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
    model.train(training)
    raise StageFailure(
        f"{type(model).__name__}: no weight scales its logits, so there is no tempered start; leave out "
        "evaluation.controls.tempered"
    )


def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=tokens).logits.double()
    return logits


def _carriers(model: PreTrainedModel) -> Iterator[list[nn.Parameter]]:
    """Yields sets of weights in which the logits may be linear, the final norm's first."""
    head = model.get_output_embeddings()
    bias = [head.bias] if getattr(head, "bias", None) is not None else []
    for name in FINAL_NORMS:
        norm = getattr(model.get_decoder(), name, None)
        if norm is not None and getattr(norm, "weight", None) is not None:
            own = [norm.weight] + ([norm.bias] if getattr(norm, "bias", None) is not None else [])
            yield [*own, *bias]
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        yield [head.weight, *bias]
