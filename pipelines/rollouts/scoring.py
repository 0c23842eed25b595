"""Log-probabilities of given responses, with gradient, running little padding and keeping no [tokens, V] tensor."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from pipelines.rollouts import qwen3

CHUNK = 1 << 20
"""Logits that exist at a time; 4 MiB of float32 stay in a core's cache."""


class Scores(NamedTuple):
    """What the model says about each response token; all [sum of response lengths] float32, response by response."""

    log_probs: Tensor
    """log pi of the token, in nats, under softmax(logits / temperature); carries gradient."""
    entropies: Tensor
    """Entropy in nats of the distribution that the token was drawn from; no gradient."""
    steepness: Tensor
    """|one-hot - pi|, the length of d log pi / d logits (times the temperature); no gradient."""


def score(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float = 1.0,
) -> Scores:
    """Score the tokens of `responses`, each after its prompt; none may be empty.

    Only places that predict a response token reach the vocabulary. Qwen3 models run every prompt once, however many
    responses share it, and no padding outside attention.
    """
    if qwen3.supports(model):
        hidden = qwen3.hidden_states(model, prompts, responses)
    else:
        hidden = _padded_hidden_states(model, prompts, responses)
    targets = torch.tensor([token for response in responses for token in response], device=hidden.device)
    return Scores(*_TokenScores.apply(hidden, model.get_output_embeddings().weight, targets, temperature))


class Likelihoods(NamedTuple):
    """Of each response token, response by response, [sum of response lengths]: log pi in nats, float32, and whether
    the token is the likeliest (bool)."""

    log_probs: Tensor
    likeliest: Tensor


LEAST_PREFIX = 16
"""Tokens from which on it pays to run what all prompts begin with by itself."""


@torch.no_grad()
def likelihoods(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], batch_tokens: int
) -> Iterator[tuple[list[int], Likelihoods]]:
    """Score responses that are given, in batches of like length: (their indices, what is found for those).

    What all prompts begin with, such as worked examples, is run once, and equal prompts once a batch (Qwen3 models).
    A batch holds at most `batch_tokens` tokens besides, and a 16th of the common beginning a row.
    """
    shared = 0
    if qwen3.supports(model) and len(prompts) > 1:
        low, high = min(map(list, prompts)), max(map(list, prompts))  # what these two begin with, all do
        least = min(map(len, prompts)) - 1
        while shared < least and low[shared] == high[shared]:
            shared += 1
    prefix = None
    if qwen3.supports(model) and shared >= LEAST_PREFIX:
        prefix = qwen3.prefix_of(model, prompts[0][:shared])
        prompts = [prompt[shared:] for prompt in prompts]
    else:
        shared = 0
    weight = model.get_output_embeddings().weight
    lengths = [len(p) + len(r) + shared // 16 for p, r in zip(prompts, responses, strict=True)]
    for batch in length_batches(lengths, batch_tokens):
        # equal prompts stand side by side, so that a batch holds all of an item's options
        some = [prompts[i] for i in batch], [responses[i] for i in batch]
        if qwen3.supports(model):
            hidden = qwen3.hidden_states(model, *some, prefix)
        else:
            hidden = _padded_hidden_states(model, *some)
        targets = torch.tensor([token for response in some[1] for token in response], device=hidden.device)
        log_probs = hidden.new_empty(len(hidden), dtype=torch.float32)
        likeliest = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        for rows in _chunks(len(hidden), len(weight)):
            logits = (hidden[rows] @ weight.T).float()
            log_probs[rows] = logits.gather(-1, targets[rows, None])[:, 0] - logits.logsumexp(-1)
            likeliest[rows] = logits.argmax(-1) == targets[rows]
        yield batch, Likelihoods(log_probs, likeliest)


def _padded_hidden_states(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Tensor:
    """Hidden states [sum of response lengths, d] that predict the response tokens, by the model's own forward pass.

    Rows are padded on the right, where a causal model cannot see, so no mask is needed.
    """
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    predicts = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        predicts[i, len(prompt) - 1 : len(row) - 1] = True
    hidden = model.base_model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    return hidden[predicts.to(model.device)]


class _TokenScores(torch.autograd.Function):
    """`Scores` from hidden states [N, d], the output embedding [V, d] and targets [N], a chunk of rows at a time.

    The backward pass makes the logits of a chunk again: d log pi_a / d z = (one-hot_a - pi) / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_probs, entropies, steepness, normalisers = hidden.new_empty(4, len(hidden), dtype=torch.float32)
        for rows in _chunks(len(hidden), len(weight)):
            logits = (hidden[rows] @ weight.T).float().div_(temperature)
            normaliser = logits.logsumexp(-1)
            normalisers[rows] = normaliser
            log_probs[rows] = logits.gather(-1, targets[rows, None])[:, 0] - normaliser
            probabilities = (logits - normaliser[:, None]).exp_()
            own = log_probs[rows].exp()
            steepness[rows] = (1 - 2 * own + torch.linalg.vecdot(probabilities, probabilities)).clamp_(min=0).sqrt_()
            # -sum pi log pi; where pi is 0 the logit may be -inf, whose product is no number
            entropies[rows] = normaliser - torch.linalg.vecdot(probabilities, logits.clamp_(min=-1e30))
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies, steepness)
        return log_probs, entropies, steepness

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, targets, normalisers = ctx.saved_tensors
        for_hidden, for_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for rows in _chunks(len(hidden), len(weight)):
            slope = upstream[rows, None] / ctx.temperature
            gradient = (hidden[rows] @ weight.T).float().div_(ctx.temperature).sub_(normalisers[rows, None]).exp_()
            gradient.mul_(-slope).scatter_add_(-1, targets[rows, None], slope)
            gradient = gradient.to(hidden.dtype)
            torch.mm(gradient, weight, out=for_hidden[rows])
            for_weight.addmm_(gradient.T, hidden[rows])
        return for_hidden, for_weight, None, None


def _chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, CHUNK // vocabulary)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def length_batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices into `lengths`, sorted by length and cut so that each batch, padded, holds at most `tokens` tokens.

    A sequence longer than `tokens` makes a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[index] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
