"""The engine in process: samples from a `transformers` model where it lies, with no copy of it kept anywhere.

A prompt is run once and its keys and values are copied to its samples; keys and values lie in one growing buffer a
layer, since appending by concatenation (what `DynamicCache` does) costs more than the model at this size; rows that
have ended are compacted away. Qwen3 models decode by `pipelines.rollouts.qwen3`, others, MoE among them, by their own
forward pass.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from pipelines.rollouts import qwen3
from pipelines.rollouts.engine import Rollouts, Sampling

COMPACT_BELOW = 0.75
"""Share of rows still running below which the buffers are copied without the ended ones."""

FIRST_COLUMNS = 64
"""Columns that a buffer has for new tokens at first; it doubles when they are full."""

CPU_BYTES = 2 << 30
DEVICE_SHARE = 0.3
"""Memory that keys and values may take: bytes on a CPU, a share of a device's memory elsewhere."""

MOST_ROWS = 2048

STOP_EVERY = 16
"""Tokens between two looks at whether a response need not go on."""


class TransformersEngine:
    """Samples from the model that it is given, whose weights are always the newest."""

    exact = True

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: Sequence[int]) -> Rollouts:
        """See `Engine.generate`."""
        return generate(self._model, prompts, n, sampling, seed)

    def sync(self, model: PreTrainedModel) -> None:
        """Nothing moves: the learner's model is the sampler's."""
        self._model = model


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    n: int,
    sampling: Sampling,
    seed: Sequence[int],
    rows: int | None = None,
    first: int = 0,
    ended: Callable[[list[list[int]]], list[bool]] | None = None,
) -> Rollouts:
    """Sample `n` responses to each of `prompts` (token ids, none empty).

    `seed` is a path of non-negative integers, such as (run seed, step, round). Sample j of prompt i draws from its
    own row of uniform numbers, so a result depends neither on `rows`, the most sequences that run together (None: as
    memory allows), nor on what else is in the batch; `first` is the number of the first prompt, where they are some of
    a longer list. `ended` tells of responses so far which need not go on, such as those that hold a stop string; it is
    asked every 16 tokens, and what comes after is of no account. The end token is the model's `config.eos_token_id`.

    Raises `ValueError` for models with other than full attention, whose caches are not a plain buffer.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"rollouts keep one buffer a layer and need full attention, not {sorted(kinds)}")
    count = len(prompts) * n
    rows = rows or _rows_in_memory(model, max(map(len, prompts)) + sampling.max_new_tokens)
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
            uniforms = _uniforms(seed, (batch + first * n).tolist(), sampling.max_new_tokens).to(model.device)
            some = [prompts[i] for i in chosen]
            tokens, log_probs = _run(model, some, source.to(model.device), uniforms, sampling, ended)
            _file(tokens.cpu(), log_probs.cpu(), batch, end, result)
    model.train(training)
    return result


def _rows_in_memory(model: PreTrainedModel, width: int) -> int:
    """Sequences of `width` tokens whose keys and values fit into the memory set aside for them."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * width
    bytes_ = CPU_BYTES
    if model.device.type == "cuda":
        bytes_ = int(DEVICE_SHARE * torch.cuda.get_device_properties(model.device).total_memory)
    return min(MOST_ROWS, max(1, bytes_ // (numbers * model.dtype.itemsize)))


def _uniforms(seed: Sequence[int], rows: list[int], columns: int) -> Tensor:
    """Numbers in [0, 1), [len(rows), columns] float32: row r is the same whichever rows are asked for."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(seed))))
    width = -(-columns // 8) * 8  # a Philox step makes four 64-bit numbers, that is eight of 32 bits
    numbers = np.empty((len(rows), columns), dtype=np.float32)
    position = 0
    for place in np.argsort(rows):
        generator.bit_generator.advance((rows[place] - position) * (width // 8))  # type: ignore[attr-defined]
        numbers[place] = generator.random(width, dtype=np.float32)[:columns]
        position = rows[place] + 1
    return torch.from_numpy(numbers)


def _file(tokens: Tensor, log_probs: Tensor, batch: Tensor, end: int, result: Rollouts) -> None:
    """Put what was sampled, [B, steps] each, into the rows `batch` of `result`, cut after the first end token."""
    steps = tokens.shape[1]
    ends = tokens == end
    stopped = ends.any(1)
    lengths = torch.where(stopped, ends.int().argmax(1) + 1, steps)
    real = torch.arange(steps) < lengths[:, None]
    result.tokens[batch, :steps] = tokens.where(real, end)
    result.log_probs[batch, :steps] = log_probs.where(real, 0.0)
    result.lengths[batch] = lengths
    result.stopped[batch] = stopped


class _Decoder(Protocol):
    def __call__(self, tokens: Tensor) -> Tensor: ...
    def keep(self, rows: Tensor) -> None: ...
    def grow(self, capacity: int) -> None: ...


def _run(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    source: Tensor,
    uniforms: Tensor,
    sampling: Sampling,
    stop: Callable[[list[list[int]]], list[bool]] | None,
) -> tuple[Tensor, Tensor]:
    """Sample one response a row, [B, steps] tokens and log-probabilities; what stands after an end token is no sample.

    Row b answers `prompts[source[b]]` with the numbers `uniforms[b]`.
    """
    device, end, limit = model.device, model.config.eos_token_id, sampling.max_new_tokens
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    ids = torch.tensor([[end] * (width - len(p)) + list(p) for p in prompts], device=device)  # padded on the left
    positions = (torch.arange(width, device=device) - (width - lengths)[:, None]).clamp(min=0)
    real = torch.arange(width, device=device) >= (width - lengths)[:, None] if int(lengths.min()) < width else None
    output = model(
        input_ids=ids,
        attention_mask=None if real is None else _causal_mask(real, model.dtype),
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
    )
    capacity = width + min(limit, FIRST_COLUMNS)
    logits = output.logits[source, -1]
    place = (output.past_key_values, source, lengths, real, capacity)
    decode: _Decoder = qwen3.Decoder(model, *place) if qwen3.supports(model) else _ForwardPass(model, *place)

    tokens = torch.full((len(source), limit), end, device=device)
    log_probs = torch.zeros(len(source), limit, device=device)
    rows = torch.arange(len(source), device=device)  # what each row of the shrinking batch was at the start
    ended = torch.zeros(len(source), dtype=torch.bool, device=device)
    for step in range(limit):
        drawn, log_prob = draw(logits, sampling, uniforms[rows, step])
        tokens[rows, step] = drawn
        log_probs[rows, step] = log_prob
        ended |= drawn == end
        if stop and (step + 1) % STOP_EVERY == 0:
            ended |= torch.tensor(stop(tokens[rows, : step + 1].tolist()), device=device)
        left = len(rows) - int(ended.sum())
        if left == 0 or step + 1 == limit:
            return tokens[:, : step + 1], log_probs[:, : step + 1]
        if left < COMPACT_BELOW * len(rows):
            kept = (~ended).nonzero()[:, 0]
            decode.keep(kept)
            rows, drawn, ended = rows[kept], drawn[kept], ended[kept]
        if width + step == capacity:
            capacity = width + min(limit, 2 * (capacity - width))
            decode.grow(capacity)
        logits = decode(drawn)
    raise AssertionError("the loop returns at its last step")


def _causal_mask(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, width, width] for rows padded on the left; `real` [B, width] is True on their tokens."""
    width = real.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=real.device).tril()
    mask = torch.zeros(len(real), 1, width, width, dtype=dtype, device=real.device)
    # The lowest finite number: a padded query sees nothing, and must not become NaN.
    return mask.masked_fill_(~(causal & real[:, None, None, :]), torch.finfo(dtype).min)


class _ForwardPass:
    """Decodes by the model's own forward pass over buffers that hold the keys and values."""

    def __init__(
        self, model: PreTrainedModel, cache: Cache, source: Tensor, lengths: Tensor, real: Tensor | None, capacity: int
    ) -> None:
        self._model = model
        self._layers = [_Buffer(layer.keys, layer.values, source, capacity) for layer in cache.layers]  # type: ignore[union-attr, arg-type]
        self._cache = Cache(layers=list(self._layers))
        self._position = lengths[source][:, None]
        self._mask = None if real is None else _causal_mask(real, model.dtype)[source, :, -1:]

    def keep(self, rows: Tensor) -> None:
        for layer in self._layers:
            layer.reserve(layer.keys, layer.values, rows, layer.keys.shape[2])
        self._position = self._position[rows]
        self._mask = None if self._mask is None else self._mask[rows]

    def grow(self, capacity: int) -> None:
        rows = torch.arange(len(self._position), device=self._position.device)
        for layer in self._layers:
            layer.reserve(layer.keys, layer.values, rows, capacity)

    def __call__(self, tokens: Tensor) -> Tensor:
        if self._mask is not None:
            self._mask = F.pad(self._mask, (0, 1))
        output = self._model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=self._position,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._position = self._position + 1
        return output.logits[:, -1]


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


def draw(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B] by inverse transform of `uniforms` [B] in [0, 1), and their tempered log-probabilities [B].

    `logits` [B, V] in any float type; everything is computed in float32.
    """
    scaled = logits.float() / (sampling.temperature or 1.0)
    if sampling.temperature == 0:
        tokens = scaled.argmax(-1)
        return tokens, scaled.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    probabilities = scaled.softmax(-1)
    if sampling.top_p == 1:
        tokens = _invert(probabilities.cumsum(-1), uniforms)
    else:
        # The nucleus is nearly always among the few likeliest tokens: sort those, and more only where it is not.
        size, held = min(64, scaled.shape[-1]), False
        while not held:
            likeliest, ids = probabilities.topk(size)
            mass = likeliest.cumsum(-1)
            held = size == scaled.shape[-1] or bool((mass[:, -1] >= sampling.top_p).all())
            size = min(4 * size, scaled.shape[-1])
        last = (mass < sampling.top_p).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)
        kept = mass.minimum(mass.gather(-1, last))
        tokens = ids.gather(-1, _invert(kept, uniforms)[:, None])[:, 0]
    return tokens, probabilities.gather(-1, tokens[:, None])[:, 0].log()


def _invert(mass: Tensor, uniforms: Tensor) -> Tensor:
    """First places [B] where the cumulative `mass` [B, V] exceeds its total times `uniforms` [B].

    The product is kept below the total, which rounding could reach: the place found then always has a mass of its own.
    """
    total = mass[:, -1]
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(mass, target[:, None], right=True)[:, 0]
