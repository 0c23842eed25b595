"""Responses of a causal language model: sampling them, and scoring given ones.

`generate` samples `n` responses to each prompt with any `transformers` model in process. A prompt is run once and
its keys and values are copied to its samples; keys and values lie in one growing buffer a layer, since appending
by concatenation (what `DynamicCache` does) costs more than the model at this size; and rows that have ended are
compacted away. `score` gives the log-probabilities of given responses, with gradient, running little padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

COMPACT_BELOW = 0.75
"""Share of rows still running below which the buffers are copied without the ended ones."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: temperature (0 is greedy), nucleus mass and the longest response in tokens."""

    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Rollouts:
    """Sampled responses; row `i * n + j` is sample j of prompt i.

    tokens [N, T] int64 with the end token, then padding; log_probs [N, T] float32 under the tempered distribution
    before the nucleus is cut (that of temperature 1 when greedy), 0 on padding; lengths [N] int64, the end token
    counted; stopped [N] bool, False where the limit cut the response.
    """

    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor
    stopped: Tensor

    def responses(self) -> list[list[int]]:
        """The responses as lists of token ids, the end token included."""
        return [row[:length] for row, length in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]


class _Buffer(DynamicLayer):
    """Keys and values of one layer, [rows, heads, capacity, head_dim] each, of which `length` columns are filled."""

    keys: Tensor  # the base class has None before the first update
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, capacity: int) -> None:
        super().__init__()
        self.length = keys.shape[2]
        self.is_initialized = True
        self.reserve(keys, values, rows, capacity)

    def reserve(self, keys: Tensor, values: Tensor, rows: Tensor, capacity: int) -> None:
        """Copy the filled columns of `rows` [int64] into new buffers of `capacity` columns."""
        copies = []
        for old in (keys, values):
            new = old.new_empty(len(rows), old.shape[1], capacity, old.shape[3])
            new[:, :, : self.length] = old[rows, :, : self.length]
            copies.append(new)
        self.keys, self.values = copies

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple:
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    n: int,
    sampling: Sampling,
    seed: Sequence[int],
    rows: int = 1024,
) -> Rollouts:
    """Sample `n` responses to each of `prompts` (token ids, none empty).

    `seed` is a path of non-negative integers, such as (run seed, step, round). Sample j of prompt i draws from its
    own row of uniform numbers, so a result depends neither on `rows`, the most sequences that run together, nor on
    what else is in the batch. The end token is the model's `config.eos_token_id`.

    Raises `ValueError` for models with other than full attention, whose caches are not a plain buffer.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"rollouts keep one buffer a layer and need full attention, not {sorted(kinds)}")
    count, device = len(prompts) * n, model.device
    uniforms = np.random.default_rng(seed).random((count, sampling.max_new_tokens), dtype=np.float32)
    end = model.config.eos_token_id
    result = Rollouts(
        tokens=torch.full((count, sampling.max_new_tokens), end, dtype=torch.int64),
        log_probs=torch.zeros(count, sampling.max_new_tokens),
        lengths=torch.zeros(count, dtype=torch.int64),
        stopped=torch.zeros(count, dtype=torch.bool),
    )
    # Prompts of like length run together: less padding, and often none, which saves the mask.
    order = np.argsort([len(prompts[i // n]) for i in range(count)], kind="stable")
    training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, count, rows):
            batch = torch.from_numpy(order[start : start + rows])
            chosen, source = torch.unique(batch // n, return_inverse=True)
            _run(
                model,
                [prompts[i] for i in chosen],
                source.to(device),
                batch,
                torch.from_numpy(uniforms[batch.numpy()]).to(device),
                sampling,
                result,
            )
    model.train(training)
    return result


def _run(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    source: Tensor,
    batch: Tensor,
    uniforms: Tensor,
    sampling: Sampling,
    result: Rollouts,
) -> None:
    """Sample rows `batch` [B] of `result`; row b answers `prompts[source[b]]` with the numbers `uniforms[b]`."""
    device, end = model.device, model.config.eos_token_id
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    ids = torch.tensor([[end] * (width - len(p)) + list(p) for p in prompts], device=device)  # padded on the left
    positions = (torch.arange(width, device=device) - (width - lengths)[:, None]).clamp(min=0)
    mask = None
    if int(lengths.min()) < width:
        real = torch.arange(width, device=device) >= (width - lengths)[:, None]
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        lowest = torch.finfo(model.dtype).min  # finite: a padded query sees nothing, and must not become NaN
        mask = torch.zeros(len(prompts), 1, width, width, dtype=model.dtype, device=device)
        mask.masked_fill_(~(causal & real[:, None, None, :]), lowest)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)

    capacity = width + min(sampling.max_new_tokens, 64)
    layers = [_Buffer(layer.keys, layer.values, source, capacity) for layer in output.past_key_values.layers]
    cache = Cache(layers=list(layers))
    logits = output.logits[source, -1]
    position = lengths[source]
    if mask is not None:
        mask = mask[source, :, -1:]  # [B, 1, 1, width]: columns of later tokens are added as they come
    running = torch.ones(len(source), dtype=torch.bool, device=device)
    for step in range(sampling.max_new_tokens):
        tokens, log_probs = _draw(logits, sampling, uniforms[:, step])
        live = batch[running.cpu()]
        result.tokens[live, step] = tokens[running].cpu()
        result.log_probs[live, step] = log_probs[running].cpu()
        result.lengths[live] = step + 1
        result.stopped[live] = (tokens[running] == end).cpu()
        running &= tokens != end
        left = int(running.sum())
        if left == 0 or step + 1 == sampling.max_new_tokens:
            return
        kept = torch.arange(len(running), device=device)
        if left < COMPACT_BELOW * len(running):
            kept = kept[running]
            batch, uniforms, tokens, position, running = (
                batch[kept.cpu()],
                uniforms[kept],
                tokens[kept],
                position[kept],
                running[kept],
            )
            mask = None if mask is None else mask[kept]
        if width + step == capacity or len(kept) < layers[0].keys.shape[0]:
            if width + step == capacity:
                capacity = min(width + sampling.max_new_tokens, capacity + step)
            for layer in layers:
                layer.reserve(layer.keys, layer.values, kept, capacity)
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (0, 1))
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=position[:, None] + step,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


def _draw(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B] by inverse transform of `uniforms` [B] in [0, 1), and their tempered log-probabilities [B]."""
    scaled = logits.float() / (sampling.temperature or 1.0)
    normaliser = scaled.logsumexp(-1)
    if sampling.temperature == 0:
        tokens = scaled.argmax(-1)
    elif sampling.top_p == 1:
        mass = (scaled - normaliser[:, None]).exp_().cumsum(-1)
        tokens = (mass > (uniforms * mass[:, -1])[:, None]).int().argmax(-1)
    else:
        # The nucleus is nearly always among the few likeliest tokens: sort those, and more only where it is not.
        size, held = min(64, scaled.shape[-1]), False
        while not held:
            likeliest, ids = scaled.topk(size)
            mass = (likeliest - normaliser[:, None]).exp_().cumsum(-1)
            held = size == scaled.shape[-1] or bool((mass[:, -1] >= sampling.top_p).all())
            size = min(4 * size, scaled.shape[-1])
        last = (mass < sampling.top_p).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)
        target = uniforms[:, None] * mass.gather(-1, last)
        tokens = ids.gather(-1, (mass > target).int().argmax(-1, keepdim=True))[:, 0]
    return tokens, scaled.gather(-1, tokens[:, None])[:, 0] - normaliser


def score(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens of `responses` after their prompts, and the entropies where they were drawn.

    Both are [sum of response lengths] float32, response after response, in nats, under softmax(logits /
    temperature); the log-probabilities carry gradient, the entropies do not. Rows are padded on the right, where a
    causal model cannot see, so no mask is needed; only places that predict a response token reach the vocabulary.
    """
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    predicts = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        predicts[i, len(prompt) - 1 : len(row) - 1] = True
    targets = torch.tensor([token for response in responses for token in response], device=model.device)
    hidden = model.base_model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[predicts.to(model.device)]).float() / temperature
    log_probs = logits.log_softmax(-1)
    with torch.no_grad():
        entropies = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, targets[:, None])[:, 0], entropies


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
