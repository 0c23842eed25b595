"""The independent streams of random numbers that a run draws from.

A generator is seeded with a list such as `[seed, Stream.QUESTION_ORDER, ...]`, so that streams of one run never share
numbers. A stream keeps its value for ever: another value gives other results, and needs a new version of its stage.
"""

from enum import IntEnum


class Stream(IntEnum):
    """What the numbers are for."""

    QUESTION_ORDER = 4
    """The order in which RL asks the questions of a data set."""
    DIVERGENCE = 5
    """Which responses measure the divergence from the start model."""
    HELD_OUT = 6
    """Responses to held-out questions during RL."""
    PASS_RATE = 7
    """Responses that measure the start model's pass rate before RL."""
    TRAINING_ROWS = 8
    """The order of rows in pre-training and in mid-training."""
