"""Log-probabilities of given responses, with gradient, with little padding and without a [tokens, V] tensor."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from pipelines.rollouts import flat_tokens, qwen3
from pipelines.rollouts.architectures import short_cuts
from shaping.loss_operators import add_product

CHUNK = 1 << 20
"""Logits of a chunk on a CPU; 4 MiB of float32 fit into a core's cache."""
DEVICE_SHARE = 1 / 64
"""Share of a GPU's memory for the float32 logits of a chunk; a few tensors of this size exist at a time."""
LEAST_ROWS = 64
"""The smallest chunk, as in the fused loss: every chunk reads the whole output layer."""


class Scores(NamedTuple):
    """The model's scores of the response tokens; each [sum of response lengths] float32, response by response."""

    log_probs: Tensor
    """log pi of the token, in nats, under softmax(logits / temperature); has a gradient."""
    entropies: Tensor
    """Entropy, in nats, of the distribution that the token was drawn from; no gradient."""
    steepness: Tensor
    """|one-hot - pi|, the norm of d log pi / d logits times the temperature; no gradient."""


def score(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    experts: Sequence[Tensor] | None = None,
) -> Scores:
    """Score the tokens of `responses`, each after its prompt; no prompt and no response may be empty.

    Logits are computed only where a response token is predicted. Each prompt runs once, even if several responses
    share it, and padding exists only inside attention. `experts` [P + L - 1, layers, active] of each response replace
    those that a mixture would choose (`pipelines.rollouts.expert_replay`).
    """
    cuts = short_cuts(model)
    if not cuts.plain_logits:
        return _scores_of_logits(_own_logits(model, prompts, responses), responses, temperature)
    if qwen3.trains(model):
        hidden = qwen3.hidden_states(model, prompts, responses)
    elif cuts.flat_tokens:
        hidden = flat_tokens.hidden_states(model, prompts, responses, experts=experts)
    else:
        hidden = _padded_hidden_states(model, prompts, responses)
    weight = model.get_output_embeddings().weight
    if torch.is_autocast_enabled(hidden.device.type):
        # As autocast would: the product with the output layer is the model's largest.
        hidden, weight = (tensor.to(torch.get_autocast_dtype(hidden.device.type)) for tensor in (hidden, weight))
    return Scores(*_TokenScores.apply(hidden, weight, _targets(responses, hidden.device), temperature))


def _targets(responses: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """The tokens of all responses, one after another."""
    return torch.tensor([token for response in responses for token in response], device=device)


def _scores_of_logits(logits: Tensor, responses: Sequence[Sequence[int]], temperature: float) -> Scores:
    """`Scores` from logits [sum of response lengths, V], for models whose logits are more than a product."""
    log_pi = (logits.float() / temperature).log_softmax(-1)
    log_probs = log_pi.gather(-1, _targets(responses, logits.device)[:, None])[:, 0]
    with torch.no_grad():
        pi = log_pi.exp()
        entropies = -torch.linalg.vecdot(pi, log_pi.clamp(min=-1e30))
        steepness = (1 - 2 * log_probs.exp() + torch.linalg.vecdot(pi, pi)).clamp_(min=0).sqrt_()
    return Scores(log_probs, entropies, steepness)


class Likelihoods(NamedTuple):
    """Of each response token, response by response, [sum of response lengths]."""

    log_probs: Tensor
    """log pi in nats, float32."""
    likeliest: Tensor
    """Whether the token is the likeliest, bool."""


LEAST_PREFIX = 16
"""Shortest common beginning of all prompts, in tokens, that is worth running once."""


@torch.no_grad()
def likelihoods(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    batch_tokens: int,
) -> Iterator[tuple[list[int], Likelihoods]]:
    """Score given responses in batches of similar length; yields (indices of the responses, their likelihoods).

    For Qwen3 models, the common beginning of all prompts (such as worked examples) runs once, and equal prompts once
    per batch. A batch has at most `batch_tokens` tokens, where the common beginning counts a 16th of its length per
    row.
    """
    cuts = short_cuts(model)
    # Run the common beginning once, if it is long enough to save time.
    prefix, shared = None, 0
    if qwen3.supports(model) and len(prompts) > 1:
        shared = _common_beginning(prompts)
        if shared >= LEAST_PREFIX:
            prefix = qwen3.prefix_of(model, prompts[0][:shared])
            prompts = [prompt[shared:] for prompt in prompts]
        else:
            shared = 0
    weight = model.get_output_embeddings().weight
    lengths = [len(p) + len(r) + shared // 16 for p, r in zip(prompts, responses, strict=True)]
    for batch in length_batches(lengths, batch_tokens):
        # The last hidden states [tokens, d] before every token of the batch's responses.
        chosen = [prompts[i] for i in batch], [responses[i] for i in batch]
        targets = _targets(chosen[1], model.device)
        if not cuts.plain_logits:
            logits = _own_logits(model, *chosen)
            log_probs = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
            yield batch, Likelihoods(log_probs, logits.argmax(-1) == targets)
            continue
        if qwen3.supports(model):
            hidden = qwen3.hidden_states(model, *chosen, prefix=prefix)
        else:
            hidden = _padded_hidden_states(model, *chosen)
        log_probs = hidden.new_empty(len(hidden), dtype=torch.float32)
        likeliest = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        # In chunks of rows, so that there is never a [tokens, V] tensor.
        for rows in _chunks(hidden, weight):
            logits = (hidden[rows] @ weight.T).float()
            log_probs[rows] = logits.gather(-1, targets[rows, None])[:, 0] - logits.logsumexp(-1)
            likeliest[rows] = logits.argmax(-1) == targets[rows]
        yield batch, Likelihoods(log_probs, likeliest)


def _common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; at least one token of each prompt is left."""
    low, high = min(map(list, prompts)), max(map(list, prompts))  # what these two share, all prompts share
    longest = min(map(len, prompts)) - 1
    shared = 0
    while shared < longest and low[shared] == high[shared]:
        shared += 1
    return shared


def _padded_hidden_states(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Tensor:
    """Hidden states [sum of response lengths, d] that predict the response tokens, by the model's own forward pass."""
    ids, predicts = _padded(prompts, responses)
    hidden = model.base_model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    return hidden[predicts.to(model.device)]


def _own_logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Tensor:
    """Logits [sum of response lengths, V] in float32 that predict the response tokens, as the model computes them."""
    ids, predicts = _padded(prompts, responses)
    own: Any = model
    return own(input_ids=ids.to(model.device), use_cache=False).logits[predicts.to(model.device)].float()


def _padded(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Prompts with their responses [rows, width] int64, and where a response token is predicted, bool.

    Rows are padded on the right, which a causal model does not see, so no mask is needed.
    """
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    predicts = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        predicts[i, len(prompt) - 1 : len(row) - 1] = True
    return ids, predicts


class _TokenScores(torch.autograd.Function):
    """`Scores` from hidden states [N, d], the output embedding [V, d] and targets [N], one chunk of rows at a time.

    The backward pass recomputes the logits of a chunk: d log pi_a / d z = (one-hot_a - pi) / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_probs, entropies, steepness, normalisers = hidden.new_empty(4, len(hidden), dtype=torch.float32)
        for rows in _chunks(hidden, weight):
            logits = (hidden[rows] @ weight.T).float().div_(temperature)
            normaliser = logits.logsumexp(-1)
            normalisers[rows] = normaliser
            log_probs[rows] = logits.gather(-1, targets[rows, None])[:, 0] - normaliser
            probabilities = (logits - normaliser[:, None]).exp_()
            # |one-hot - pi|^2 = 1 - 2 pi_a + |pi|^2
            chosen = log_probs[rows].exp()
            steepness[rows] = (1 - 2 * chosen + torch.linalg.vecdot(probabilities, probabilities)).clamp_(min=0).sqrt_()
            # -sum pi log pi; a logit of -inf, where pi is 0, would give NaN
            entropies[rows] = normaliser - torch.linalg.vecdot(probabilities, logits.clamp_(min=-1e30))
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies, steepness)
        return log_probs, entropies, steepness

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, targets, normalisers = ctx.saved_tensors
        # The sum over chunks is in float32: in bfloat16 the last chunks would be lost in its rounding.
        for_hidden = torch.empty_like(hidden)
        for_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        for rows in _chunks(hidden, weight):
            slope = upstream[rows, None] / ctx.temperature
            gradient = (hidden[rows] @ weight.T).float().div_(ctx.temperature).sub_(normalisers[rows, None]).exp_()
            gradient.mul_(-slope).scatter_add_(-1, targets[rows, None], slope)
            gradient = gradient.to(hidden.dtype)
            torch.mm(gradient, weight, out=for_hidden[rows])
            add_product(for_weight, gradient.T, hidden[rows])
        return for_hidden, for_weight.to(weight.dtype), None, None


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Slices of the rows of `hidden` [N, d], whose logits under `weight` [V, d] are computed at a time."""
    size = chunk_rows(len(weight), hidden.device)
    return (slice(start, min(start + size, len(hidden))) for start in range(0, len(hidden), size))


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows whose logits are computed at a time on this device."""
    logits = CHUNK
    if device.type == "cuda":
        logits = int(DEVICE_SHARE * torch.cuda.get_device_properties(device).total_memory) // 4
    return max(LEAST_ROWS, logits // vocabulary)


def length_batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Batches of indices into `lengths`, sorted by length; each, padded, has at most `tokens` tokens.

    A sequence longer than `tokens` gets its own batch.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[index] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
