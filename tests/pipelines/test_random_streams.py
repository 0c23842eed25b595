"""Streams of random numbers: fixed values, and no numbers in common."""

import numpy as np

from pipelines.random_streams import Stream


def test_values_never_change() -> None:
    """Results of stored stage runs depend on them: do not edit a value here without a new version of its stage."""
    assert {stream.name: stream.value for stream in Stream} == {
        "QUESTION_ORDER": 4,
        "DIVERGENCE": 5,
        "HELD_OUT": 6,
        "PASS_RATE": 7,
        "TRAINING_ROWS": 8,
    }


def test_a_stream_seeds_like_its_number() -> None:
    """numpy takes the enumeration's members in a seed, and they make the same generator as the plain number."""
    assert np.random.default_rng([3, Stream.HELD_OUT]).random() == np.random.default_rng([3, 6]).random()


def test_streams_of_one_seed_share_no_numbers() -> None:
    numbers = [np.random.default_rng([1, stream]).integers(0, 2**63, 1000).tolist() for stream in Stream]
    assert len({number for stream in numbers for number in stream}) == 1000 * len(Stream)
