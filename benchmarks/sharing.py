"""How much of an RL update's work is padding, over 8 simulated ranks.

    python -m benchmarks.sharing [--json FILE]

Lengths of responses are log-normal, cut to 10 to 4,096 tokens. They are shared out and packed by the functions of the
update. Ours are the tokens that the ranks compute: the places in rows of attention, padding included (everything else
works on single tokens and has none), and the token of each empty micro-batch. The peer is the tokens that there are.
"""

import sys
from collections.abc import Sequence
from functools import cache

import numpy as np

from benchmarks.comparison import Row, report
from pipelines.grpo.sharing import micro_batches
from pipelines.models.sizes import forward_operations
from pipelines.rollouts.flat_tokens import SPREAD, layout

RANKS = 8
BAR = 1.1
SHAPE = {"layers": 28, "d_model": 1536, "ffn": 4608, "heads": 24, "kv_heads": 8, "head_dim": 64}
VOCABULARY = 151_936


@cache
def operations(length: int) -> float:
    """Of a sequence in a forward pass of a model of `SHAPE`."""
    return forward_operations(SHAPE, VOCABULARY, tokens=length, length=length)


def log_normal_lengths(count: int, *, mean: float, deviation: float, seed: int) -> list[int]:
    """Lengths of 10 to 4,096 whose logarithms have this mean and this deviation before they are cut."""
    drawn = np.exp(np.random.default_rng(seed).normal(mean, deviation, count))
    return np.clip(drawn, 10, 4096).astype(int).tolist()


def computed_tokens(lengths: Sequence[int], *, tokens: int, ranks: int = RANKS) -> int:
    """Tokens that the ranks compute for sequences of these lengths, with micro-batches of at most `tokens`."""
    total = 0
    for batches in micro_batches(lengths, operations, ranks=ranks, tokens=tokens):
        for batch in batches:
            # A sequence of n tokens computes n - 1; one more stands for the prompt's only token.
            rows = [[0] * lengths[index] for index in batch]
            groups = layout([[0]] * len(rows), rows, spread=SPREAD).groups if rows else ()
            total += sum(group.numel() for group in groups) if rows else 1
    return total


def main() -> int:
    rows = []
    for mean, deviation in ((5.5, 1.2), (4.0, 1.0), (6.5, 0.8)):
        for tokens in (4_096, 16_384, 65_536):
            lengths = log_normal_lengths(2048, mean=mean, deviation=deviation, seed=0)
            name = f"median {np.median(lengths):,.0f}, micro-batches of {tokens:,}"
            rows.append(Row(name, computed_tokens(lengths, tokens=tokens), sum(lengths), "tokens", BAR))
    return report(rows, "Padding and dummy work of 2,048 responses on 8 ranks")


if __name__ == "__main__":
    sys.exit(main())
