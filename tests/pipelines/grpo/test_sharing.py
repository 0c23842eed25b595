"""Properties of the division of work among ranks, and how little of it is padding."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.grpo.sharing import balanced, consecutive, micro_batches
from pipelines.models.sizes import forward_operations
from pipelines.rollouts.flat_tokens import SPREAD, layout

COSTS = st.lists(st.floats(0, 1e6), max_size=40)


@given(st.integers(0, 300), st.integers(1, 70))
def test_consecutive_shares_are_a_partition(count: int, ranks: int) -> None:
    shares = [consecutive(count, rank, ranks) for rank in range(ranks)]
    assert list(itertools.chain(*shares)) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(COSTS, st.integers(1, 9))
def test_every_row_has_one_rank_and_the_largest_cost_is_bounded(costs: list[float], ranks: int) -> None:
    parts = balanced(costs, ranks)
    assert len(parts) == ranks
    assert sorted(itertools.chain(*parts)) == list(range(len(costs)))
    assert all(part == sorted(part) for part in parts)
    largest = max(sum(costs[i] for i in part) for part in parts)
    assert largest <= sum(costs) / ranks + max(costs, default=0) * (1 - 1 / ranks) + 1e-3


@given(st.lists(st.floats(0, 100), max_size=7), st.integers(1, 3))
def test_the_largest_cost_is_near_the_best_possible(costs: list[float], ranks: int) -> None:
    def largest(choice: tuple[int, ...]) -> float:
        return max(sum(c for c, r in zip(costs, choice, strict=True) if r == rank) for rank in range(ranks))

    best = min(map(largest, itertools.product(range(ranks), repeat=len(costs))))
    parts = balanced(costs, ranks)
    assert max(sum(costs[i] for i in part) for part in parts) <= (4 / 3 - 1 / (3 * ranks)) * best + 1e-6


@given(st.lists(st.integers(2, 500), max_size=40), st.integers(1, 6), st.integers(2, 600))
def test_ranks_have_as_many_micro_batches_of_bounded_size(lengths: list[int], ranks: int, tokens: int) -> None:
    parts = micro_batches(lengths, float, ranks=ranks, tokens=tokens)
    assert len({len(batches) for batches in parts}) == 1
    batches = [batch for part in parts for batch in part]
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= 1 or max(lengths[i] for i in batch) * len(batch) <= tokens


def test_little_of_the_work_is_padding() -> None:
    """2,048 responses of 10 to 4,096 tokens, log-normal, on 8 ranks: padding in attention, dummies, and idle ranks."""
    shape = {"layers": 28, "d_model": 1536, "ffn": 4608, "heads": 24, "kv_heads": 8, "head_dim": 64}

    def cost(length: int) -> float:
        return forward_operations(shape, 151_936, tokens=length, length=length)

    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(5.5, 1.2, 2048)), 10, 4096).astype(int).tolist()
    prompts = [[group] * 60 for group in range(128) for _ in range(16)]
    parts = micro_batches([60 + length for length in lengths], cost, ranks=8, tokens=16_384)
    loads = [sum(cost(60 + lengths[i]) for batch in part for i in batch) for part in parts]
    assert max(loads) < 1.01 * sum(loads) / len(loads)
    real = run = attended = 0
    for batch in itertools.chain(*parts):
        if not batch:
            run += 1
            continue
        flat = layout([prompts[i] for i in batch], [[0] * lengths[i] for i in batch], spread=SPREAD)
        real += sum(59 + lengths[i] for i in batch)
        run += len(flat.tokens)
        attended += sum(group.numel() for group in flat.groups)
    assert run <= real, "a shared prompt runs once"
    assert attended <= 1.1 * real
