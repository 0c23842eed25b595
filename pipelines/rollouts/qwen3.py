"""Qwen3's forward pass in two shapes that `transformers` does not offer: decoding, and responses that share prompts.

Most of a small model's time is spent around its matrix products, so both shapes keep that part small. `Decoder` runs
one new token per row with fused projections, norm scales folded into them and one key-value buffer per layer.
`hidden_states` runs whole responses as one flat list of tokens without padding: a prompt that several responses share
is in the list once, and rows exist only inside attention.

Both use the weights of a `Qwen3ForCausalLM` unchanged and agree with its own forward pass up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, Qwen3ForCausalLM

from pipelines.rollouts.attention import attend
from pipelines.rollouts.flat_tokens import layout
from pipelines.rollouts.prefill import run_prompts


def supports(model: PreTrainedModel) -> TypeGuard[Qwen3ForCausalLM]:
    """Whether `model` is a plain Qwen3: full attention, SiLU, no biases, RoPE without rescaling."""
    if not isinstance(model, Qwen3ForCausalLM):
        return False
    config: Any = model.config
    layer: Any = model.model.layers[0]
    projections = [getattr(layer.self_attn, f"{name}_proj") for name in "qkvo"]
    projections += [layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
    return (
        # An adapter is a layer of another class around the projection.
        all(type(projection) is torch.nn.Linear for projection in projections)
        and set(config.layer_types) == {"full_attention"}
        and config.hidden_act == "silu"
        and not config.attention_bias
        and config.rope_parameters["rope_type"] == "default"
    )


def trains(model: PreTrainedModel) -> TypeGuard[Qwen3ForCausalLM]:
    """Whether `hidden_states` may train `model`: nothing happens around its layers that would be skipped.

    Sharding, activation checkpointing, compilation and autocast only act on the model's own forward pass, which also
    keeps sums in float32 for weights in bfloat16.
    """
    if not supports(model):
        return False
    layer: Any = model.model.layers[0]
    return (
        model.dtype == torch.float32
        and not layer._forward_pre_hooks
        and not layer.gradient_checkpointing
        and layer._compiled_call_impl is None
        and not torch.is_autocast_enabled(model.device.type)
    )


def _heads(config: Any) -> tuple[int, int, int]:
    """Numbers of query heads and of key-value heads, and the size of a head."""
    return config.num_attention_heads, config.num_key_value_heads, config.head_dim


def _angles(model: PreTrainedModel, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, head_dim / 2] of RoPE at `positions` [N]."""
    frequencies = model.model.rotary_emb.inv_freq.to(positions.device)
    angles = positions[:, None].float() * frequencies
    return angles.cos(), angles.sin()


@dataclass(frozen=True)
class Prefill:
    """Prompts that a forward pass has run once, padded on the left, and the prompt that each row b continues."""

    ids: Tensor
    """[prompts, width]: the padded prompts."""
    cache: Any
    """Keys and values of the prompts, [prompts, kv heads, width, head_dim] each, by layer; other layers have others."""
    source: Tensor
    """[B] int64: row b continues prompt `source[b]`."""
    lengths: Tensor
    """[prompts]: tokens of each prompt."""
    mask: Tensor | None
    """[prompts, width] bool: True on the prompts' tokens; None without padding."""

    @property
    def width(self) -> int:
        """Columns of the padded prompts."""
        return self.ids.shape[1]


class Decoder:
    """Decodes one token per row, with the keys and values so far in one buffer per layer. No gradient.

    The weights are copied at construction (fused, norm scales folded in), so a changed model needs a new decoder.
    """

    def __init__(self, model: Qwen3ForCausalLM, prefill: Prefill, capacity: int) -> None:
        """`capacity`: columns of the buffers, of which the prompts fill `prefill.width`."""
        config, source = model.config, prefill.source
        self._model, self._eps = model, config.rms_norm_eps
        query_heads, self._kv_heads, self._head_dim = _heads(config)
        self._queries_per_key = query_heads // self._kv_heads
        self._rotated_heads = query_heads + self._kv_heads
        """The queries' and the keys' heads, which are normalised and rotated; the values' are not."""
        self._layers = [self._fuse(layer) for layer in model.model.layers]
        self._head = (model.lm_head.weight * model.model.norm.weight).T
        self._filled = prefill.width
        self._capacity = capacity
        self._buffers = [
            [self._buffer(old, source) for old in (layer.keys, layer.values)] for layer in prefill.cache.layers
        ]
        self._position = prefill.lengths[source]
        # [B, 1, filled], added to the attention scores to hide the padding; grows by a column per token.
        self._bias: Tensor | None = None
        if prefill.mask is not None:
            self._bias = torch.zeros(len(source), 1, self._filled, device=source.device, dtype=model.dtype)
            self._bias.masked_fill_(~prefill.mask[source][:, None], torch.finfo(model.dtype).min)

    @staticmethod
    def _fuse(layer: Any) -> tuple[Tensor, ...]:
        """A layer's weights as (queries, keys and values; scales of their norms; output; gate and up; down).

        The scale of an RMSNorm is folded into the projection after it, and 1 / sqrt(head_dim) into the queries' norm.
        """
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
        """The filled columns of `rows` in a new buffer [rows, kv heads, capacity, head_dim]."""
        new = old.new_empty(len(rows), old.shape[1], self._capacity, old.shape[3])
        new[:, :, : self._filled] = old[rows, :, : self._filled]
        return new

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but `rows` [int64]."""
        self._buffers = [[self._buffer(old, rows) for old in pair] for pair in self._buffers]
        self._position = self._position[rows]
        self._bias = None if self._bias is None else self._bias[rows]

    def grow(self, capacity: int) -> None:
        """Extend the buffers to `capacity` columns."""
        self._capacity = capacity
        self.keep(torch.arange(len(self._position), device=self._position.device))

    def _normalised(self, x: Tensor) -> Tensor:
        """RMSNorm over the last dimension, without its scale; its sum is in float32 for any type."""
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        return (x * square.div_(x.shape[-1]).add_(self._eps).rsqrt_()).to(x.dtype)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Append `tokens` [B] to the rows; returns the logits [B, V] of the tokens after them."""
        rows, dim, half = len(tokens), self._head_dim, self._head_dim // 2
        cosine, sine = (part[:, None] for part in _angles(self._model, self._position))
        column, self._filled = self._filled, self._filled + 1
        if self._bias is not None:
            self._bias = F.pad(self._bias, (0, 1))
        x = self._model.model.embed_tokens(tokens)
        for (qkv, scale, out, gate_up, down), (keys, values) in zip(self._layers, self._buffers, strict=True):
            # [B, query + key + value heads, head_dim]; queries and keys are normalised, then rotated.
            projected = (self._normalised(x) @ qkv).view(rows, -1, dim)
            heads = self._normalised(projected[:, : self._rotated_heads]).mul_(scale)
            first, second = heads[..., :half], heads[..., half:]
            rotated = torch.empty_like(heads)
            torch.mul(first, cosine, out=rotated[..., :half]).addcmul_(second, sine, value=-1)
            torch.mul(second, cosine, out=rotated[..., half:]).addcmul_(first, sine)
            keys[:, :, column] = rotated[:, -self._kv_heads :]
            values[:, :, column] = projected[:, self._rotated_heads :]
            # Attention as one batched product per key-value head: [B * kv heads, queries per key, columns].
            query = rotated[:, : -self._kv_heads].reshape(rows * self._kv_heads, self._queries_per_key, dim)
            key, value = (buffer[:, :, : self._filled].flatten(0, 1) for buffer in (keys, values))
            scores = torch.bmm(query, key.transpose(1, 2))
            if self._bias is not None:
                scores.view(rows, self._kv_heads, self._queries_per_key, -1).add_(self._bias[:, None])
            attended = torch.bmm(scores.softmax(-1), value).view(rows, -1)
            x = torch.addmm(x, attended, out)
            gate, up = (self._normalised(x) @ gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate).mul_(up), down)
        self._position = self._position + 1
        return self._normalised(x) @ self._head


class _Norm(torch.autograd.Function):
    """RMSNorm x / rms(x) * scale over the last dimension of x; `scale` has the shape of x without its first."""

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
        return _rotate(x, cosine, sine, sign=1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotate(upstream, cosine, sine, sign=-1), None, None


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor, *, sign: int) -> Tensor:
    """RoPE with `sign` 1, its inverse with -1."""
    first, second = x.chunk(2, -1)
    rotated = torch.empty_like(x, memory_format=torch.contiguous_format)
    half = first.shape[-1]
    torch.mul(first, cosine, out=rotated[..., :half]).addcmul_(second, sine, value=-sign)
    torch.mul(second, cosine, out=rotated[..., half:]).addcmul_(first, sine, value=sign)
    return rotated


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
"""By layer, the keys and values, [1, kv heads, P, head_dim] each, of P tokens that every prompt begins with."""


def prefix_of(model: Qwen3ForCausalLM, tokens: Sequence[int]) -> Prefix:
    """Run `tokens`, with which several prompts begin, once."""
    output = run_prompts(model, torch.tensor([list(tokens)], device=model.device), mask=None)
    return [(layer.keys, layer.values) for layer in output.past_key_values.layers]


def hidden_states(
    model: Qwen3ForCausalLM,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    prefix: Prefix | None = None,
) -> Tensor:
    """Final hidden states [sum of response lengths, d] from which each response token is predicted, in order.

    Equal prompts are computed once. With a `prefix`, `prompts` are what follows it. The gradient reaches the model's
    weights, but not through the prefix.
    """
    flat, device = layout(prompts, responses), model.device
    (rows,) = flat.groups
    positions, mask = flat.positions, None
    if prefix:
        # Every row sees the whole prefix and, causally, its own tokens: [width, prefix + width].
        prefix_length, width = prefix[0][0].shape[2], rows.shape[1]
        positions = positions + prefix_length
        mask = torch.ones(width, prefix_length + width, dtype=torch.bool, device=device).tril_(prefix_length)
    to_rows, from_rows = rows.flatten().to(device).clamp(min=0), flat.origins.to(device)
    cosine, sine = (part[:, None] for part in _angles(model, positions.to(device)))
    heads, kv_heads, dim = _heads(model.config)
    eps = model.config.rms_norm_eps
    x = model.model.embed_tokens(flat.tokens.to(device))
    for index, layer in enumerate(model.model.layers):
        # Flat tokens [N, heads, head_dim]: normalise and rotate queries and keys.
        attention, mlp = layer.self_attn, layer.mlp
        y = _Norm.apply(x, layer.input_layernorm.weight, eps)
        scale = torch.cat([attention.q_norm.weight.expand(heads, -1), attention.k_norm.weight.expand(kv_heads, -1)])
        qkv = torch.cat([p(y) for p in (attention.q_proj, attention.k_proj, attention.v_proj)], -1)
        qkv = qkv.view(len(x), -1, dim)
        rotated = _Rotary.apply(_Norm.apply(qkv[:, : heads + kv_heads], scale, eps), cosine, sine)
        qkv = torch.cat([rotated, qkv[:, heads + kv_heads :]], 1).view(len(x), -1)
        # Copy them to the rows of attention [R, heads, width, head_dim], attend, and go back to flat tokens.
        in_rows = F.embedding(to_rows, qkv).view(*rows.shape, -1, dim).transpose(1, 2)
        query, key, value = in_rows.split([heads, kv_heads, kv_heads], 1)
        if prefix:
            key, value = (
                torch.cat([shared.expand(len(part), -1, -1, -1), part], 2)
                for shared, part in zip(prefix[index], (key, value), strict=True)
            )
        attended = attend(query, key, value, mask=mask)
        attended = F.embedding(from_rows, attended.transpose(1, 2).reshape(-1, heads * dim))
        x = x + attention.o_proj(attended)
        y = _Norm.apply(x, layer.post_attention_layernorm.weight, eps)
        x = x + mlp.down_proj(_SwiGLU.apply(mlp.gate_proj(y), mlp.up_proj(y)))
    return F.embedding(flat.predicts.to(device), _Norm.apply(x, model.model.norm.weight, eps))
