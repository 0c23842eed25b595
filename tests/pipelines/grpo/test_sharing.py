"""Properties of the division of work among ranks, and how little of it is padding."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.sharing import BAR, computed_tokens, log_normal_lengths, operations
from pipelines.grpo.sharing import balanced, consecutive, micro_batches
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


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(64, 300),
    st.floats(4.0, 6.5),
    st.floats(0.3, 1.5),
    st.sampled_from([4096, 16_384, 65_536]),
)
def test_little_of_the_work_is_padding(seed: int, count: int, mean: float, deviation: float, tokens: int) -> None:
    """Responses of 10 to 4,096 tokens, log-normal, on 8 ranks: padding in attention and dummies are within the bar."""
    lengths = log_normal_lengths(count, mean=mean, deviation=deviation, seed=seed)
    assert sum(lengths) <= computed_tokens(lengths, tokens=tokens) <= BAR * sum(lengths) + 8


def test_no_rank_has_much_more_to_compute_and_a_shared_prompt_runs_once() -> None:
    lengths = log_normal_lengths(2048, mean=5.5, deviation=1.2, seed=0)
    prompts = [[group] * 60 for group in range(128) for _ in range(16)]
    parts = micro_batches([60 + length for length in lengths], operations, ranks=8, tokens=16_384)
    loads = [sum(operations(60 + lengths[i]) for batch in part for i in batch) for part in parts]
    assert max(loads) < 1.01 * sum(loads) / len(loads)
    for batch in filter(None, itertools.chain(*parts)):
        flat = layout([prompts[i] for i in batch], [[0] * lengths[i] for i in batch], spread=SPREAD)
        different = {prompts[i][0] for i in batch}
        assert len(flat.tokens) == sum(lengths[i] - 1 for i in batch) + 60 * len(different)
