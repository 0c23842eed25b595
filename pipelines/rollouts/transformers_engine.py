"""The in-process engine: samples directly from the `transformers` model that is being trained, without a copy of it.

Each prompt runs once, and its keys and values are copied to its samples. Keys and values are kept in one growing buffer
per layer, since appending by concatenation (as `DynamicCache` does) costs more than the model at this size. Rows that
have ended are removed from the batch. Qwen3 models decode by `pipelines.rollouts.qwen3`, others, including MoE models,
by their own forward pass; those without full attention in every layer with their own caches too, and those without a
cache that can be used run whole rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.data.tokenizer import end_tokens
from pipelines.errors import Interrupted
from pipelines.rollouts.architectures import decoder_layers, positions, short_cuts
from pipelines.rollouts.decoders import decoder_of, prefilled
from pipelines.rollouts.engine import IN_RL, EngineSetting, Finished, Rollouts, Sampling, never
from pipelines.rollouts.expert_replay import Routing, routing_of
from pipelines.rollouts.qwen3 import Prefill
from pipelines.rollouts.stop_strings import Ended, ended_by

COMPACT_BELOW = 0.75
"""When a smaller share of the rows than this is still running, the ended rows are removed from the buffers."""

FIRST_COLUMNS = 64
"""Columns for new tokens in a new buffer; they double when they are full."""

CPU_BYTES = 2 << 30
"""Memory for keys and values on a CPU."""
DEVICE_SHARE = 0.3
"""Share of a GPU's memory for keys and values."""

MOST_ROWS = 2048

STOP_EVERY = 16
"""Tokens between two calls of `ended`."""


class TransformersEngine:
    """Samples from the model itself, so its weights are always the newest."""

    exact = True
    checkpoint_names = False

    def __init__(
        self,
        model: PreTrainedModel,
        longest: Callable[[], int] | None = None,
        setting: EngineSetting = IN_RL,
    ) -> None:
        """`longest` is not needed, since the buffers grow."""
        self._model, self._tokenizer = model, setting.tokenizer
        self._routing = routing_of(model) if setting.routed_experts else None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        n: int,
        seed: Sequence[int],
        first: int = 0,
        stop: Sequence[str] = (),
        share: range | None = None,
        interrupted: Callable[[], bool] = never,
        finished: Finished | None = None,
    ) -> Rollouts:
        """See `Engine.generate`; batches are as large as the memory for keys and values."""
        ended = ended_by(stop, self._tokenizer)
        return generate(
            self._model,
            prompts,
            sampling,
            n=n,
            seed=seed,
            first=first,
            ended=ended,
            share=share,
            interrupted=interrupted,
            finished=finished,
            routing=self._routing,
        )

    def take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Nothing is copied, and nothing gathered: the learner's model is the sampler's."""

    def sleep(self) -> None:
        """The learner needs the model."""

    def wake(self) -> None:
        """It was not asleep."""

    def close(self) -> None:
        """There is nothing to release."""


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    n: int,
    seed: Sequence[int],
    rows: int | None = None,
    first: int = 0,
    ended: Ended | None = None,
    share: range | None = None,
    interrupted: Callable[[], bool] = never,
    finished: Finished | None = None,
    routing: Routing | None = None,
) -> Rollouts:
    """Sample `n` responses to each of `prompts` (token ids, none empty), which end with one of `end_tokens(model)`.

    `seed` is a path of non-negative integers, such as (run seed, step, round). Each sample draws from its own stream of
    random numbers, so it depends neither on `rows`, the most sequences that run together (None: as many as fit in
    memory), nor on the rest of the batch. `first` is the number of the first prompt if the prompts are part of a longer
    list. `share` are consecutive numbers of samples, where sample j of prompt i has the number i n + j; only these are
    sampled and returned, by default all. `ended` is called every `STOP_EVERY` tokens and at the end; a response is cut
    to the length that it returns and has stopped there, whatever was sampled after it. A response ends as if at the
    limit where prompt and response fill the model's `max_position_embeddings`. `finished` receives every response, the
    sooner the shorter it is. With the model's `routing` the result has the experts of each token.

    Raises `Interrupted` between two batches once `interrupted()` is true, and `ValueError` for a prompt that leaves no
    position for a response.
    """
    room = positions(model)
    if (longest := max(map(len, prompts))) >= room:
        raise ValueError(f"a prompt of {longest} tokens leaves no room for an answer: the model has {room} positions")
    share = range(len(prompts) * n) if share is None else share
    rows = rows or _rows_in_memory(model, max(map(len, prompts)) + sampling.max_new_tokens)
    ends = end_tokens(model)
    result = _empty(len(share), sampling.max_new_tokens, padding=ends[0])
    # Prompts of similar length run together: less padding, and often none, which avoids the attention mask.
    lengths = [len(prompts[sample // n]) for sample in share]
    order = np.argsort(lengths, kind="stable")
    left = room - torch.tensor(lengths, dtype=torch.int64)
    with _sampling(model), _recording(routing) as experts:
        for start in range(0, len(share), rows):
            if interrupted():
                raise Interrupted("asked to stop between two batches of rollouts")
            batch = torch.from_numpy(order[start : start + rows])
            samples = batch + share.start
            uniforms = _uniforms(seed, (samples + first * n).tolist(), sampling.max_new_tokens).to(model.device)
            # `used` are the prompts of this batch, and row b continues prompt used[source[b]].
            used, source = torch.unique(samples // n, return_inverse=True)
            prefill, logits = prefilled(model, [prompts[i] for i in used], source.to(model.device))
            record = _Record(routing, prefill, sampling.max_new_tokens) if routing else None
            parts = _decode(model, prefill, logits, sampling=sampling, uniforms=uniforms, ended=ended, record=record)
            for rows_of_batch, tokens, log_probs in parts:
                part = batch[rows_of_batch.cpu()]
                _store(result, part, tokens.cpu(), log_probs=log_probs.cpu(), ends=ends, ended=ended, room=left[part])
                if record:
                    experts |= zip(part.tolist(), record.of(rows_of_batch, result.lengths[part]), strict=True)
                if finished:
                    finished(*_responses(result, part))
    return replace(result, experts=tuple(experts[row] for row in range(len(share)))) if routing else result


@contextmanager
def _recording(routing: Routing | None) -> Iterator[dict[int, Tensor]]:
    """The model's own choices of experts are recorded inside this context, if there is a routing; they go to a dict."""
    if routing:
        routing.replay(None)
        routing.record()
    try:
        yield {}
    finally:
        if routing:
            routing.stop_recording()


class _Record:
    """The experts of one batch: of its prompts, which have run, and of the tokens that are drawn after them."""

    def __init__(self, routing: Routing, prefill: Prefill, limit: int) -> None:
        """`limit`: most tokens of a response."""
        self._routing = routing
        self._prompts = routing.recorded(len(prefill.lengths))  # [prompts, width, layers, active], padded on the left
        self._source, self._lengths = prefill.source.tolist(), prefill.lengths.tolist()
        self._drawn = self._prompts.new_empty(len(self._source), limit, *self._prompts.shape[2:])

    def add(self, rows: Tensor, step: int) -> None:
        """The pass over the tokens that were drawn at `step` for `rows` of the batch is over."""
        self._drawn[rows.cpu(), step] = self._routing.recorded(len(rows))[:, 0]

    def of(self, rows: Tensor, lengths: Tensor) -> Iterator[Tensor]:
        """The experts [P + L - 1, layers, active] of some rows, whose responses have `lengths` tokens."""
        for row, size in zip(rows.tolist(), lengths.tolist(), strict=True):
            prompt = self._prompts[self._source[row]]
            yield torch.cat([prompt[len(prompt) - self._lengths[self._source[row]] :], self._drawn[row, : size - 1]])


def _empty(count: int, limit: int, *, padding: int) -> Rollouts:
    """`count` responses of up to `limit` tokens, of which nothing is sampled yet."""
    return Rollouts(
        tokens=torch.full((count, limit), padding, dtype=torch.int64),
        log_probs=torch.zeros(count, limit),
        lengths=torch.zeros(count, dtype=torch.int64),
        stopped=torch.zeros(count, dtype=torch.bool),
    )


def _responses(result: Rollouts, rows: Tensor) -> tuple[list[int], list[list[int]], list[bool]]:
    """The arguments of `Finished` for some rows."""
    lengths = result.lengths[rows].tolist()
    tokens = result.tokens[rows, : max(lengths)].tolist()
    responses = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
    return rows.tolist(), responses, result.stopped[rows].tolist()


@contextmanager
def _sampling(model: PreTrainedModel) -> Iterator[None]:
    """Inference in evaluation mode; a compiled model runs uncompiled, since every token has another shape."""
    training = model.training
    layers: Any = decoder_layers(model)
    model.eval()
    try:
        with torch.inference_mode():
            if layers[0]._compiled_call_impl is None:
                yield
            else:
                with torch.compiler.set_stance("force_eager"):
                    yield
    finally:
        model.train(training)


def _rows_in_memory(model: PreTrainedModel, width: int) -> int:
    """How many sequences of `width` tokens have keys and values that fit into the memory for them.

    Recurrent layers keep less than attention, and are counted as if they kept as much.
    """
    config, cuts = model.config, short_cuts(model)
    heads = getattr(config, "num_attention_heads", None) or 1
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    numbers = 2 * config.num_hidden_layers * kv_heads * head_dim * width
    if not cuts.cached:  # the activations of one layer and, where they are no product, all logits
        numbers = width * (8 * config.hidden_size + (0 if cuts.plain_logits else config.vocab_size))
    memory = CPU_BYTES
    if model.device.type == "cuda":
        memory = int(DEVICE_SHARE * torch.cuda.get_device_properties(model.device).total_memory)
    return min(MOST_ROWS, max(1, memory // (numbers * model.dtype.itemsize)))


def _uniforms(seed: Sequence[int], rows: list[int], columns: int) -> Tensor:
    """Random numbers in [0, 1) of the samples `rows`, [len(rows), columns] float32.

    The numbers of a sample depend on `seed` and its number only. One Philox stream holds all samples, each at a fixed
    offset, and the generator jumps from one to the next in ascending order.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(seed))))
    width = -(-columns // 8) * 8  # a step of Philox makes four 64-bit numbers, that is eight of 32 bits
    numbers = np.empty((len(rows), columns), dtype=np.float32)
    position = 0
    for index in np.argsort(rows):
        generator.bit_generator.advance((rows[index] - position) * (width // 8))  # type: ignore[attr-defined]
        numbers[index] = generator.random(width, dtype=np.float32)[:columns]
        position = rows[index] + 1
    return torch.from_numpy(numbers)


def _store(
    result: Rollouts,
    batch: Tensor,
    tokens: Tensor,
    *,
    log_probs: Tensor,
    ends: Sequence[int],
    ended: Ended | None,
    room: Tensor,
) -> None:
    """Write the sampled `tokens` and `log_probs`, [B, steps] each, to the rows `batch` of `result`.

    What was sampled after the first end token, or after the length that `ended` returns, becomes padding. Each response
    is then cut to `room` [B] tokens; those that are kept do not depend on the cut.
    """
    steps = tokens.shape[1]
    is_end = _is_any(tokens, ends)
    stopped = is_end.any(1)
    lengths = torch.where(stopped, is_end.int().argmax(1) + 1, steps)
    if ended:
        # Only what precedes the end token can contain an end of another kind.
        responses = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        stops = [steps + 1 if length is None else length for length in ended(responses)]
        lengths = lengths.minimum(torch.tensor(stops))
        stopped |= torch.tensor(stops) <= steps
    stopped &= lengths <= room
    lengths = lengths.minimum(room)
    real = torch.arange(steps) < lengths[:, None]
    result.tokens[batch, :steps] = tokens.where(real, ends[0])
    result.log_probs[batch, :steps] = log_probs.where(real, 0.0)
    result.lengths[batch] = lengths
    result.stopped[batch] = stopped


def _is_any(tokens: Tensor, ends: Sequence[int]) -> Tensor:
    """Whether each of `tokens` is one of `ends`, bool of the same shape."""
    is_end = tokens == ends[0]
    for end in ends[1:]:
        is_end |= tokens == end
    return is_end


def _decode(
    model: PreTrainedModel,
    prefill: Prefill,
    logits: Tensor,
    *,
    sampling: Sampling,
    uniforms: Tensor,
    ended: Ended | None,
    record: _Record | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Sample one response per row, and yield parts of the batch as they end: rows [k], tokens and log-probabilities.

    The latter, [k, steps] each, are arbitrary after an end token. `logits` [B, V] are those of the first tokens; row b
    draws with the random numbers `uniforms[b]`.
    """
    device, ends, limit = logits.device, end_tokens(model), sampling.max_new_tokens
    capacity = prefill.width + min(limit, FIRST_COLUMNS)
    decoder = decoder_of(model, prefill, capacity)
    tokens = torch.full((len(logits), limit), ends[0], device=device)
    log_probs = torch.zeros(len(logits), limit, device=device)
    rows = torch.arange(len(logits), device=device)  # the original row of each row that is still in the batch
    done = torch.zeros(len(logits), dtype=torch.bool, device=device)
    for step in range(limit):
        drawn, log_prob = draw(logits, sampling, uniforms[rows, step])
        tokens[rows, step] = drawn
        log_probs[rows, step] = log_prob
        done |= _is_any(drawn, ends)
        if ended and (step + 1) % STOP_EVERY == 0:
            lengths = ended(tokens[rows, : step + 1].tolist())
            done |= torch.tensor([length is not None for length in lengths], device=device)
        running = len(rows) - int(done.sum())
        if running == 0 or step + 1 == limit:
            yield rows, tokens[rows, : step + 1], log_probs[rows, : step + 1]
            return
        # Remove the ended rows once there are enough of them to pay for copying the buffers.
        if running < COMPACT_BELOW * len(rows):
            kept, gone = (~done).nonzero()[:, 0], rows[done]
            decoder.keep(kept)
            yield gone, tokens[gone, : step + 1], log_probs[gone, : step + 1]
            rows, drawn, done = rows[kept], drawn[kept], done[kept]
        if prefill.width + step == capacity:
            capacity = prefill.width + min(limit, 2 * (capacity - prefill.width))
            decoder.grow(capacity)
        logits = decoder(drawn)
        if record:
            record.add(rows, step)


def draw(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B] by inverse transform sampling, and their tempered log-probabilities [B].

    `logits` [B, V] may have any float type; everything is computed in float32. `uniforms` [B] are in [0, 1).
    """
    scaled = logits.float() / (sampling.temperature or 1.0)
    if sampling.temperature == 0:
        tokens = scaled.argmax(-1)
        return tokens, scaled.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    probabilities = scaled.softmax(-1)
    if sampling.top_p == 1:
        tokens = _invert(probabilities.cumsum(-1), uniforms)
    else:
        # The nucleus is nearly always among the few likeliest tokens: sort those, and more only if it is not.
        size, complete = min(64, scaled.shape[-1]), False
        while not complete:
            likeliest, ids = probabilities.topk(size)
            mass = likeliest.cumsum(-1)
            complete = size == scaled.shape[-1] or bool((mass[:, -1] >= sampling.top_p).all())
            size = min(4 * size, scaled.shape[-1])
        # `last` [B, 1] is the token that completes the nucleus; after it the cumulative mass grows no more.
        last = (mass < sampling.top_p).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)
        kept = mass.minimum(mass.gather(-1, last))
        tokens = ids.gather(-1, _invert(kept, uniforms)[:, None])[:, 0]
    return tokens, probabilities.gather(-1, tokens[:, None])[:, 0].log()


def _invert(mass: Tensor, uniforms: Tensor) -> Tensor:
    """The first indices [B] where the cumulative `mass` [B, V] exceeds its total times `uniforms` [B].

    Rounding could lift that product to the total, so it is kept below: the token found always has a probability.
    """
    total = mass[:, -1]
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(mass, target[:, None], right=True)[:, 0]
