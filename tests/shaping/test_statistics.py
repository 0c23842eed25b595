"""Statistics of logits against SciPy, sorting and plain sums."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from shaping import entropy, head_tail_mass, target_rank
from shaping.statistics import head_mask


def test_entropy_equals_scipy() -> None:
    logits = 4 * torch.randn(3, 5, 20, dtype=torch.float64)
    expected = scipy_entropy(logits.softmax(-1).numpy(), axis=-1)
    torch.testing.assert_close(entropy(logits), torch.from_numpy(expected))


def test_entropy_ignores_impossible_tokens_and_is_differentiable() -> None:
    assert entropy(torch.tensor([0.0, 0.0, -torch.inf])).item() == pytest.approx(0.6931, abs=1e-4)
    logits = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(entropy, (logits,))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(-2, 2), min_size=8, max_size=8), min_size=1, max_size=4), top_k=st.integers(1, 8)
)
def test_the_head_has_k_members_and_ties_go_to_the_lower_id(rows: list[list[int]], top_k: int) -> None:
    logits = torch.tensor(rows, dtype=torch.float32)
    mask = head_mask(logits, top_k)
    for row, members in zip(rows, mask, strict=True):
        order = sorted(range(8), key=lambda j: (-row[j], j))
        assert members.nonzero()[:, 0].tolist() == sorted(order[:top_k])
    for j in range(8):
        ranks = target_rank(logits, torch.full((len(rows),), j))
        for row, rank in zip(rows, ranks.tolist(), strict=True):
            assert sorted(range(8), key=lambda i: (-row[i], i)).index(j) + 1 == rank


def test_masses_sum_to_one_and_an_invalid_k_raises() -> None:
    logits = torch.randn(5, 30)
    head, tail = head_tail_mass(logits, 4)
    torch.testing.assert_close(head, logits.softmax(-1).topk(4).values.sum(-1))
    torch.testing.assert_close(head + tail, torch.ones(5))
    with pytest.raises(ValueError, match="top_k=31"):
        head_tail_mass(logits, 31)


@pytest.mark.parametrize("vocabulary", [64, 65, 66, 71, 72, 73, 127, 129])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_every_token_can_be_in_the_head(vocabulary: int, top_k: int) -> None:
    """Long rows are searched in blocks of 8 tokens; the last tokens are in no block unless 8 divides the vocabulary."""
    logits = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    logits.fill_diagonal_(99.0)  # row i has token i as its likeliest
    mask = head_mask(logits, top_k)
    assert mask.diagonal().all()
    for row, members in zip(logits.tolist(), mask, strict=True):
        order = sorted(range(vocabulary), key=lambda j: (-row[j], j))
        assert members.nonzero()[:, 0].tolist() == sorted(order[:top_k])
