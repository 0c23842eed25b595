"""Prompts that run in columns: the tokens, log-probabilities and scores of one pass, in bounded memory."""

from collections.abc import Callable

import pytest
import torch
from transformers import MiniMaxM2Config, MiniMaxM2ForCausalLM, PreTrainedModel

from pipelines.rollouts import Sampling, generate, likelihoods, prefill
from pipelines.rollouts.prefill import columns_at_a_time
from tests.pipelines.rollouts.test_transformers_engine import END, RAGGED, tiny


def mixture() -> PreTrainedModel:
    config = MiniMaxM2Config(
        vocab_size=40, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
        eos_token_id=END, pad_token_id=END, bos_token_id=None,
    )  # fmt: skip
    return MiniMaxM2ForCausalLM(config).eval()


@pytest.mark.parametrize("make", [tiny, mixture])
@pytest.mark.parametrize("prompts", [RAGGED, [list(range(3, 12)), list(range(12, 21))]], ids=["ragged", "equal"])
def test_columns_change_nothing(
    make: Callable[[], PreTrainedModel], prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, sampling = make(), Sampling(0.9, 0.95, 20)
    whole = generate(model, prompts, sampling, n=3, seed=(5,))
    passes: list[int] = []

    def counted(module: object, arguments: object, options: dict[str, torch.Tensor]) -> None:
        passes.append(options["input_ids"].shape[1])

    model.register_forward_pre_hook(counted, with_kwargs=True)
    monkeypatch.setattr(prefill, "LEAST_COLUMNS", 2)
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", 2 * len(prompts))
    parts = generate(model, prompts, sampling, n=3, seed=(5,))
    width = max(map(len, prompts))
    assert passes[: -(-width // 2)] == [2] * (width // 2) + [1] * (width % 2)
    assert torch.equal(parts.tokens, whole.tokens)
    torch.testing.assert_close(parts.log_probs, whole.log_probs, rtol=0, atol=2e-5)


def test_a_common_beginning_in_columns_gives_the_same_likelihoods(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    shared = [3 + i % 30 for i in range(50)]
    prompts, responses = [[*shared, *prompt] for prompt in RAGGED], [[4, 5, 6]] * len(RAGGED)

    def scored() -> torch.Tensor:
        batches = likelihoods(model, prompts, responses, batch_tokens=4096)
        return torch.cat([part.log_probs for _, part in batches])

    whole = scored()
    monkeypatch.setattr(prefill, "LEAST_COLUMNS", 7)
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", 7)
    torch.testing.assert_close(scored(), whole, rtol=0, atol=2e-5)


def test_tokens_and_masks_are_bounded() -> None:
    for count, width in ((1, 16_384), (8, 16_384), (64, 4096), (16, 131_072)):
        columns = columns_at_a_time(count, width)
        assert columns * count <= prefill.PREFILL_TOKENS
        assert columns * count * width <= max(prefill.MASK_ENTRIES, prefill.LEAST_COLUMNS * count * width)
    assert columns_at_a_time(2048, 128) >= 128, "the prompts of a small model are one pass"
