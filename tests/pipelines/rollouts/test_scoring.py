"""Scoring at the edges: vocabularies of the study's size, half precision, and improbable tokens."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from pipelines.configuration.compute import ComputeConfig
from pipelines.rollouts import Sampling, generate, qwen3, score
from pipelines.rollouts.scoring import _TokenScores, chunk_rows
from pipelines.training.parallel import prepare
from tests.pipelines.rollouts.test_transformers_engine import tiny

VOCABULARY = 151_936


@pytest.mark.parametrize(("gibibytes", "most_chunks"), [(16, 45), (80, 8), (140, 5)])
def test_a_gpu_reads_the_output_layer_a_few_times(
    gibibytes: int, most_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16,384 tokens at the study's vocabulary; the float32 logits of a chunk take little of the memory."""
    memory = gibibytes << 30
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory))
    rows = chunk_rows(VOCABULARY, torch.device("cuda", 0))
    assert -(-16_384 // rows) <= most_chunks
    assert 4 * rows * VOCABULARY <= memory / 50


def test_a_cpu_keeps_small_vocabularies_in_its_cache() -> None:
    assert [chunk_rows(size, torch.device("cpu")) for size in (640, 16_384, VOCABULARY)] == [1638, 64, 64]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_over_chunks_in_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the output layer against float64, with many chunks that all add up."""
    monkeypatch.setattr("pipelines.rollouts.scoring.CHUNK", 64 * 50)  # 64 rows
    generator = torch.Generator().manual_seed(0)
    rows, targets = 16_384, torch.randint(0, 50, (16_384,), generator=generator)
    hidden = (1 + 0.1 * torch.randn(rows, 16, generator=generator)).to(dtype)
    weight = (0.1 * torch.randn(50, 16, generator=generator)).to(dtype).requires_grad_()
    log_probs, _, _ = _TokenScores.apply(hidden, weight, targets, 1.0)
    log_probs.mean().backward()
    exact = weight.detach().double().requires_grad_()
    (hidden.double() @ exact.T).log_softmax(-1)[range(rows), targets].mean().backward()
    assert (weight.grad.double() - exact.grad).abs().max() < 0.004 * exact.grad.abs().max()
    log_probs, _, _ = _TokenScores.apply(hidden, weight, targets, 1.0)
    weight.grad = None
    (log_probs.sum() * (1 if dtype == torch.bfloat16 else 1e-3)).backward()
    assert weight.grad.isfinite().all()


def test_a_chunk_beyond_the_range_of_float16_is_summed_in_float32() -> None:
    hidden, targets = torch.full((2000, 4), 100.0).half(), torch.zeros(2000, dtype=torch.int64)
    weight = torch.zeros(50, 4).half().requires_grad_()
    log_probs, _, _ = _TokenScores.apply(hidden, weight, targets, 1.0)
    # Each half of the rows adds 98,000 to the gradient of the target's row, and they cancel but for a tenth.
    signs = torch.where(torch.arange(2000) < 1100, 1.0, -1.0)
    (log_probs * signs).sum().backward()
    torch.testing.assert_close(weight.grad[0].float(), torch.full((4,), 200 * 100 * 49 / 50), rtol=2e-3, atol=0)


def test_improbable_tokens_have_finite_scores() -> None:
    """A token whose probability is 0 in float32."""
    hidden, targets = torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1])
    weight = torch.tensor([[0.0], [800.0], [790.0]], requires_grad=True)
    log_probs, entropies, steepness = _TokenScores.apply(hidden, weight, targets, 1.0)
    expected = weight.detach()[:, 0].double().log_softmax(-1)[:2]
    torch.testing.assert_close(log_probs.detach().double(), expected, rtol=1e-6, atol=1e-4)
    assert entropies.isfinite().all()
    assert steepness.isfinite().all()
    log_probs.sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("target", [-1, 40, 10**6])
def test_targets_outside_the_vocabulary_raise(target: int) -> None:
    weight = tiny().lm_head.weight
    hidden = torch.zeros(1, weight.shape[1])
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        _TokenScores.apply(hidden, weight, torch.tensor([target]), 1.0)


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_the_models_own_pass_scores_as_the_one_by_hand(checkpointing: str) -> None:
    """Flat tokens with shared prompts and rows of many lengths; the backward pass computes layers again."""
    prompts = [[1, 2, 3]] * 3 + [[4, 5]] * 2 + [[6]]
    responses = [[7, 8], [9] * 30, [5, 5, 5, 5], [1, 2, 3], [2], [3] * 12]
    plain, other = tiny(scale=3.0).train(), tiny(scale=3.0).train()
    prepare(other, ComputeConfig(activation_checkpointing=checkpointing), precision="float32", documents=False)
    assert qwen3.trains(plain)
    assert not qwen3.trains(other)
    weights = torch.randn(52, generator=torch.Generator().manual_seed(0))
    scores = [score(model, prompts, responses, temperature=0.7) for model in (plain, other)]
    for one, another in zip(*scores, strict=True):
        torch.testing.assert_close(one, another, atol=1e-4, rtol=1e-4)
    for result in scores:
        (result.log_probs * weights).sum().backward()
    for one, another in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, another.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.ci_only
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_score_and_sample_alike() -> None:
    """Scores and gradients by compiled layers, for two shapes, and samples, which run uncompiled."""
    plain, compiled = tiny(scale=3.0).train(), tiny(scale=3.0).train()
    for layer in compiled.model.layers:
        layer.compile()
    for prompts, responses in (([[1, 2], [3]], [[4, 5, 6], [7]]), ([[1]] * 3, [[2, 3], [4] * 9, [5]])):
        scores = [score(model, prompts, responses).log_probs for model in (plain, compiled)]
        torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-4)
        for values in scores:
            values.sum().backward()
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3)
    sampled = [
        generate(model, [[1, 2]], Sampling(1.0, 1.0, 8), n=4, seed=(1,)).responses() for model in (plain, compiled)
    ]
    assert sampled[0] == sampled[1]
