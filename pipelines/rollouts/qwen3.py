"""Qwen3's forward pass in two shapes that `transformers` does not offer: decoding, and responses that share prompts.

A small model's time goes into everything around its matrix products, so both shapes keep that small. `Decoder` runs
one new token a row with fused projections, norm scales folded into them and one key-value buffer a layer.
`hidden_states` runs whole responses as one flat list of tokens with no padding in it: a prompt that several
responses share stands in the list once, and rows exist in attention alone.

Both take the weights of a `Qwen3ForCausalLM` as they are and agree with its own forward pass to rounding.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, Qwen3ForCausalLM


def supports(model: PreTrainedModel) -> TypeGuard[Qwen3ForCausalLM]:
    """Whether `model` is a Qwen3 of the plain kind: full attention, SiLU, no biases, RoPE without rescaling.

    A model that checkpoints its activations is left to its own forward pass, which knows how.
    """
    if not isinstance(model, Qwen3ForCausalLM):
        return False
    config: Any = model.config
    return (
        set(config.layer_types) == {"full_attention"}
        and config.hidden_act == "silu"
        and not config.attention_bias
        and not model.is_gradient_checkpointing
        and config.rope_parameters["rope_type"] == "default"
    )


def _heads(config: Any) -> tuple[int, int, int]:
    """Query heads, key-value heads and the size of a head."""
    return config.num_attention_heads, config.num_key_value_heads, config.head_dim


def _angles(model: PreTrainedModel, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, head_dim / 2] of RoPE at `positions` [N]."""
    frequencies = model.model.rotary_emb.inv_freq.to(positions.device)
    angles = positions[:, None].float() * frequencies
    return angles.cos(), angles.sin()


class Decoder:
    """Decodes one token a row; the keys and values that are there lie in one buffer a layer.

    `logits` [B, V] are those of each row's next token. The weights are copied at construction (fused, norm scales
    folded in), so a decoder is made anew once the model has changed. No gradient.
    """

    def __init__(
        self, model: Qwen3ForCausalLM, cache: Any, source: Tensor, lengths: Tensor, mask: Tensor | None, capacity: int
    ) -> None:
        """Row b goes on from prompt `source[b]` of `cache`, which a forward pass over left-padded prompts filled.

        `lengths` [prompts] are the prompts' own, `mask` [prompts, width] is True on real tokens, None without padding.
        """
        config = model.config
        self._model, self._eps = model, config.rms_norm_eps
        heads, self._kv_heads, self._head_dim = _heads(config)
        self._groups = heads // self._kv_heads
        self._heads = heads + self._kv_heads
        """Heads that are normalised and rotated: the queries' and the keys'."""
        self._layers = [self._fuse(layer) for layer in model.model.layers]
        self._head = (model.lm_head.weight * model.model.norm.weight).T
        self._filled = cache.layers[0].keys.shape[2]
        self._capacity = capacity
        self._buffers = [[self._buffer(old, source) for old in (layer.keys, layer.values)] for layer in cache.layers]
        self._position = lengths[source]
        self._bias: Tensor | None = None
        if mask is not None:
            self._bias = torch.zeros(len(source), 1, self._filled, device=mask.device, dtype=model.dtype)
            self._bias.masked_fill_(~mask[source][:, None], torch.finfo(model.dtype).min)

    @staticmethod
    def _fuse(layer: Any) -> tuple[Tensor, ...]:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        heads = [p.out_features // attention.head_dim for p in (attention.q_proj, attention.k_proj)]
        norms = (attention.q_norm.weight * attention.head_dim**-0.5, attention.k_norm.weight)
        scale = torch.cat([norm.expand(count, -1) for norm, count in zip(norms, heads, strict=True)])
        return (
            (qkv * layer.input_layernorm.weight).T.contiguous(),
            scale,
            attention.o_proj.weight.T.contiguous(),
            (gate_up * layer.post_attention_layernorm.weight).T.contiguous(),
            mlp.down_proj.weight.T.contiguous(),
        )

    def _buffer(self, old: Tensor, rows: Tensor) -> Tensor:
        """The filled columns of `rows` in a new buffer of the present capacity."""
        new = old.new_empty(len(rows), old.shape[1], self._capacity, old.shape[3])
        new[:, :, : self._filled] = old[rows, :, : self._filled]
        return new

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` [int64] alone."""
        self._buffers = [[self._buffer(old, rows) for old in pair] for pair in self._buffers]
        self._position = self._position[rows]
        self._bias = None if self._bias is None else self._bias[rows]

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` columns."""
        self._capacity = capacity
        self.keep(torch.arange(len(self._position), device=self._position.device))

    def _normalised(self, x: Tensor) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        return x * square.div_(x.shape[-1]).add_(self._eps).rsqrt_()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Append `tokens` [B]; returns the logits [B, V] of what comes after them."""
        rows, dim, half = len(tokens), self._head_dim, self._head_dim // 2
        cosine, sine = (part[:, None] for part in _angles(self._model, self._position))
        column, self._filled = self._filled, self._filled + 1
        if self._bias is not None:
            self._bias = F.pad(self._bias, (0, 1))
        x = self._model.model.embed_tokens(tokens)
        for (qkv, scale, out, gate_up, down), (keys, values) in zip(self._layers, self._buffers, strict=True):
            projected = (self._normalised(x) @ qkv).view(rows, -1, dim)
            heads = self._normalised(projected[:, : self._heads]).mul_(scale)
            first, second = heads[..., :half], heads[..., half:]
            turned = torch.empty_like(heads)
            torch.mul(first, cosine, out=turned[..., :half]).addcmul_(second, sine, value=-1)
            torch.mul(second, cosine, out=turned[..., half:]).addcmul_(first, sine)
            keys[:, :, column] = turned[:, -self._kv_heads :]
            values[:, :, column] = projected[:, self._heads :]
            query = turned[:, : -self._kv_heads].reshape(rows * self._kv_heads, self._groups, dim)
            seen = [part[:, :, : self._filled].flatten(0, 1) for part in (keys, values)]
            scores = torch.bmm(query, seen[0].transpose(1, 2))
            if self._bias is not None:
                scores.view(rows, self._kv_heads, self._groups, -1).add_(self._bias[:, None])
            attended = torch.bmm(scores.softmax(-1), seen[1]).view(rows, -1)
            x = torch.addmm(x, attended, out)
            gate, up = (self._normalised(x) @ gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate).mul_(up), down)
        self._position = self._position + 1
        return self._normalised(x) @ self._head


class _Norm(torch.autograd.Function):
    """RMSNorm x / rms(x) * scale over the last dimension; `scale` has the shape of the last dimensions of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, inverse)
        return (x * inverse).mul_(scale)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale, inverse = ctx.saved_tensors
        normalised = x * inverse
        product = upstream * normalised
        for_scale = product.sum(0)
        drift = product.mul_(scale).sum(-1, keepdim=True).div_(x.shape[-1])
        for_x = (upstream * scale).sub_(normalised.mul_(drift)).mul_(inverse)
        return for_x, for_scale, None


class _Rotary(torch.autograd.Function):
    """RoPE of x [N, heads, head_dim] by cosines and sines [N, 1, head_dim / 2]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turn(x, cosine, sine, 1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turn(upstream, cosine, sine, -1), None, None


def _turn(x: Tensor, cosine: Tensor, sine: Tensor, sign: int) -> Tensor:
    first, second = x.chunk(2, -1)
    turned = torch.empty_like(x, memory_format=torch.contiguous_format)
    half = first.shape[-1]
    torch.mul(first, cosine, out=turned[..., :half]).addcmul_(second, sine, value=-sign)
    torch.mul(second, cosine, out=turned[..., half:]).addcmul_(first, sine, value=sign)
    return turned


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        for_up = upstream * silu
        # d silu = sigmoid + silu (1 - sigmoid)
        for_gate = silu.mul_(1 - sigmoid).add_(sigmoid).mul_(up).mul_(upstream)
        return for_gate, for_up


Prefix = Sequence[tuple[Tensor, Tensor]]
"""Keys and values [1, kv heads, P, head_dim] of each layer of P tokens that precede every prompt."""


def prefix_of(model: Qwen3ForCausalLM, tokens: Sequence[int]) -> Prefix:
    """Run tokens that several prompts begin with, once."""
    output = model(input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=True, logits_to_keep=1)
    return [(layer.keys, layer.values) for layer in output.past_key_values.layers]


def hidden_states(
    model: Qwen3ForCausalLM,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    prefix: Prefix | None = None,
) -> Tensor:
    """Final hidden states [sum of response lengths, d] where each response token is predicted, response by response.

    Prompts that are equal are computed once; with a `prefix`, they are what follows it. Carries gradient to the model's
    weights, but for the prefix.
    """
    flat, positions, rows, predicts = _layout(prompts, responses)
    device, config = model.device, model.config
    mask: Tensor | None = None
    if prefix:
        before, width = prefix[0][0].shape[2], rows.shape[1]
        positions = positions + before
        mask = torch.ones(width, before + width, dtype=torch.bool, device=device).tril_(before)
    place = rows.flatten().to(device)
    # Where the rows hold each flat token; of a prompt that several rows hold, one of them.
    origin = torch.empty(len(flat), dtype=torch.int64)
    filled = rows >= 0
    origin[rows[filled]] = filled.flatten().nonzero()[:, 0]
    place, origin = place.clamp(min=0), origin.to(device)
    cosine, sine = (part[:, None] for part in _angles(model, positions.to(device)))
    heads, kv_heads, dim = _heads(config)
    eps = config.rms_norm_eps
    x = model.model.embed_tokens(flat.to(device))
    for number, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        y = _Norm.apply(x, layer.input_layernorm.weight, eps)
        scale = torch.cat([attention.q_norm.weight.expand(heads, -1), attention.k_norm.weight.expand(kv_heads, -1)])
        qkv = torch.cat([p(y) for p in (attention.q_proj, attention.k_proj, attention.v_proj)], -1)
        qkv = qkv.view(len(flat), -1, dim)
        turned = _Rotary.apply(_Norm.apply(qkv[:, : heads + kv_heads], scale, eps), cosine, sine)
        qkv = torch.cat([turned, qkv[:, heads + kv_heads :]], 1).view(len(flat), -1)
        in_rows = F.embedding(place, qkv).view(*rows.shape, -1, dim).transpose(1, 2)
        query, key, value = in_rows.split([heads, kv_heads, kv_heads], 1)
        if prefix:
            key, value = (
                torch.cat([old.expand(len(new), -1, -1, -1), new], 2)
                for old, new in zip(prefix[number], (key, value), strict=True)
            )
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=heads != kv_heads
        )
        attended = F.embedding(origin, attended.transpose(1, 2).reshape(-1, heads * dim))
        x = x + attention.o_proj(attended)
        y = _Norm.apply(x, layer.post_attention_layernorm.weight, eps)
        x = x + mlp.down_proj(_SwiGLU.apply(mlp.gate_proj(y), mlp.up_proj(y)))
    return F.embedding(predicts.to(device), _Norm.apply(x, model.model.norm.weight, eps))


def _layout(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where everything lies when equal prompts are stored once.

    Returns the flat tokens [N], their positions [N], the rows of attention [R, width] as indices into the flat tokens
    (-1 is padding, on the right), and the flat tokens that predict each response token [sum of response lengths].
    The last token of a response predicts nothing and is left out.
    """
    flat: list[int] = []
    positions: list[int] = []
    rows: list[list[int]] = []
    predicts: list[int] = []
    stored: dict[tuple[int, ...], int] = {}
    for prompt, response in zip(prompts, responses, strict=True):
        key = tuple(prompt)
        if key not in stored:
            stored[key] = len(flat)
            flat += prompt
            positions += range(len(prompt))
        begin, start, size = stored[key], len(flat), len(prompt)
        flat += response[:-1]
        positions += range(size, size + len(response) - 1)
        rows.append([*range(begin, begin + size), *range(start, len(flat))])
        predicts += [begin + size - 1, *range(start, len(flat))]
    width = max(map(len, rows))
    padded = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
    return torch.tensor(flat), torch.tensor(positions), padded, torch.tensor(predicts)
