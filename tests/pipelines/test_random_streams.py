"""Streams of random numbers: fixed values, and no numbers in common, whatever the seeds, steps and rounds."""

import ast
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from pipelines.configuration.budgets import MidtrainConfig, PretrainConfig
from pipelines.configuration.data import DataConfig
from pipelines.data.corpus import prepare
from pipelines.random_streams import Stream, stream_seed
from pipelines.training.training_rows import TrainingRows

PIPELINES = Path(__file__).parents[2] / "pipelines"


def test_values_never_change() -> None:
    """Results of stored stage runs depend on them: do not edit a value here without a new version of its stage."""
    assert {stream.name: stream_seed(stream, 7)[0] for stream in Stream} == {
        "PRETRAIN_ROWS": 720854222,
        "MIDTRAIN_ROWS": 280408147,
        "QUESTION_ORDER": 216631250,
        "ROLLOUTS": 4113217020,
        "DIVERGENCE": 3653528788,
        "HELD_OUT": 500381080,
        "PASS_RATE": 1297534107,
        "BENCHMARK": 303130093,
        "ADAPTERS": 1766018808,
        "GENERATION": 280153543,
    }


def paths() -> Iterator[tuple[int | str, ...]]:
    """Every path of up to three numbers that runs could use, with those that numpy's own seeds would confuse."""
    numbers = [*range(9), 2**32, 2**32 + 1, 2**40]
    for length in range(4):
        yield from product(numbers, repeat=length)
    yield from product(["GSM8K", "MATH-500", "0", "1", ""], repeat=1)


@pytest.mark.parametrize("generator", [np.random.PCG64, np.random.Philox])
def test_no_two_streams_or_paths_share_their_first_numbers(generator: type[np.random.BitGenerator]) -> None:
    first = {
        tuple(generator(np.random.SeedSequence(stream_seed(stream, *path))).random_raw(2).tolist()): (stream, path)
        for stream in Stream
        for path in paths()
    }
    assert len(first) == len(Stream) * len(list(paths()))


def test_numbers_appended_to_a_seed_are_told_apart() -> None:
    """Unlike after a short seed, where a missing number equals 0."""
    seed = stream_seed(Stream.ROLLOUTS, 1)
    longer = [seed, [*seed, 0], [*seed, 0, 0], [*seed, 1], [*seed, 1, 0], [*seed, 0, 1]]
    assert len({np.random.default_rng(numbers).integers(2**63) for numbers in longer}) == len(longer)
    assert np.random.default_rng([6]).random() == np.random.default_rng([6, 0]).random()


def test_streams_of_one_seed_share_no_numbers() -> None:
    numbers = [np.random.default_rng(stream_seed(stream, 1)).integers(0, 2**63, 1000).tolist() for stream in Stream]
    assert len({number for stream in numbers for number in stream}) == 1000 * len(Stream)


def test_stages_and_seeds_draw_their_rows_in_independent_orders(tmp_path: Path) -> None:
    """With one budget and corpus, two orders agree as often as two random ones."""
    corpus = prepare(DataConfig("t", [], ["chain3", "boolean"], 300, 0.5, 0.5, 300, 8), tmp_path)
    budget = {
        "tokens": 16 * 3000,
        "batch_tokens": 16,
        "sequence_length": 16,
        "learning_rate": 1e-2,
        "rope_base": 1e4,
        "mixture": {"chain3": 1.0, "boolean": 1.0},
        "milestones": 1,
    }
    configs = [PretrainConfig(**budget, warmup_steps=0), MidtrainConfig(**budget, final_learning_rate=1e-3)]
    orders = [TrainingRows(corpus, config, seed)._order for config in configs for seed in (0, 1, 4, 8)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            # Half of the sources agree by chance; rows within a source, one in hundreds.
            same_source = np.mean([a[0] == b[0] for a, b in zip(first, second, strict=True)])
            assert 0.45 < same_source < 0.55
            assert np.mean([a == b for a, b in zip(first, second, strict=True)]) < 0.05


def test_every_generator_of_a_stage_is_seeded_by_a_stream() -> None:
    """numpy's generators are made where their seed is a `stream_seed` that was passed on, or fixed for all runs."""
    # The same draw for every model: items of multiple choice, and bootstrap samples.
    fixed = ("evaluation/multiple_choice.py", "evaluation/metrics.py")
    calls = set()
    for path in PIPELINES.rglob("*.py"):
        name = path.relative_to(PIPELINES).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("default_rng", "SeedSequence")):
                calls |= set() if name in fixed else {(name, ast.unparse(node.args[0]))}
    assert calls == {
        ("data/training_order.py", "seed"),
        ("data/training_order.py", "[*self._seed, block]"),
        ("grpo/diagnostics.py", "seed"),
        ("rollouts/transformers_engine.py", "list(seed)"),
        ("rollouts/vllm_engine.py", "list(seed)"),
        ("grpo/collection.py", "stream_seed(Stream.QUESTION_ORDER, self._seed, *key)"),
    }
