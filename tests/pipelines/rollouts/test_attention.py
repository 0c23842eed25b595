"""Attention by kernels that hold no row of scores: which arguments they take, and the values of plain attention."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.rollouts import attention
from pipelines.rollouts.attention import ATTENTION, attend, takes_groups, use_attention_by_blocks
from tests.pipelines.rollouts.test_transformers_engine import tiny


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention by its definition, with the scores of every row."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    scores = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value


def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decide as for a GPU, on the CPU."""
    decide = takes_groups
    monkeypatch.setattr(attention, "takes_groups", lambda device, *args, **options: decide("cuda", *args, **options))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("gpu", [False, True])
def test_values_and_gradients_are_those_of_plain_attention(
    masked: bool, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpu:
        like_a_gpu(monkeypatch)
    torch.manual_seed(0)
    shapes = [(2, heads, 33, 8) for heads in (6, 2, 2)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    # Two documents in a row.
    mask = torch.block_diag(torch.ones(20, 20).tril(), torch.ones(13, 13).tril()).bool() if masked else None
    upstream = torch.randn(2, 6, 33, 8, dtype=torch.float64)
    results = []
    for attended in (attend(*tensors, mask=mask), plain(*tensors, mask)):
        results.append([attended, *torch.autograd.grad((attended * upstream).sum(), tensors)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_gpu_gets_grouped_queries_only_where_flash_attention_takes_them(
    dtype: torch.dtype, masked: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's rules for CUDA (sdp_utils.cpp): flash takes half precision and no mask, the other no groups."""
    like_a_gpu(monkeypatch)
    calls: list[tuple[Any, ...]] = []
    original = F.scaled_dot_product_attention

    def recorded(query: Tensor, key: Tensor, *args: Any, **options: Any) -> Tensor:
        calls.append((query.shape[1] == key.shape[1], options.get("enable_gqa", False)))
        return original(query, key, *args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    query, key = torch.randn(1, 4, 16, 8, dtype=dtype), torch.randn(1, 2, 16, 8, dtype=dtype)
    mask = torch.ones(16, 16, dtype=torch.bool).tril() if masked else None
    half = autocast or dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        attend(query, key, key, mask=mask)
    assert calls == [(False, True) if half and not masked else (True, False)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_of_the_cpu_takes_all_of_it(dtype: torch.dtype, masked: bool) -> None:
    """With the plain products forbidden, PyTorch refuses what the other kernels do not take."""
    query, key = torch.randn(1, 4, 64, 8, dtype=dtype), torch.randn(1, 2, 64, 8, dtype=dtype)
    mask = torch.ones(64, 64, dtype=torch.bool).tril() if masked else None
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        attended = attend(query, key, key, mask=mask)
    keys = key.double().repeat_interleave(2, 1)
    scores = query.double() @ keys.mT / 8**0.5
    scores = scores.masked_fill(~torch.ones(64, 64, dtype=torch.bool).tril(), -torch.inf)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(attended.double(), scores.softmax(-1) @ keys, atol=tolerance, rtol=tolerance)


def test_models_are_the_same_with_repeated_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass with and without a mask, against transformers' own choice."""
    model = tiny().double()
    ids = torch.arange(3, 27).view(2, 12)
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[0, :5] = 0
    expected = [model(input_ids=ids, attention_mask=given).logits for given in (None, mask)]
    use_attention_by_blocks(model)
    assert model.config._attn_implementation == ATTENTION
    like_a_gpu(monkeypatch)
    repeats: list[bool] = []
    ungrouped = attention.ungrouped

    def recorded(query: Tensor, key: Tensor, value: Tensor, *, masked: bool) -> tuple[Tensor, Tensor]:
        keys, values = ungrouped(query, key, value, masked=masked)
        repeats.append(keys.shape[1] == query.shape[1])
        return keys, values

    monkeypatch.setattr(attention, "ungrouped", recorded)
    for given, logits in zip((None, mask), expected, strict=True):
        torch.testing.assert_close(model(input_ids=ids, attention_mask=given).logits[1], logits[1])
    assert repeats
    assert all(repeats)


def test_other_attention_stays() -> None:
    model = tiny()
    model.set_attn_implementation("eager")
    use_attention_by_blocks(model)
    assert model.config._attn_implementation == "eager"
