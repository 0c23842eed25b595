"""The independent streams of random numbers in a stage run.

A generator is seeded with a list such as `[seed, Stream.QUESTION_ORDER, ...]`, so that the streams of one seed share no
numbers. Never change a value: it changes results, and so needs a new version of the stages that use it.
"""

from enum import IntEnum


class Stream(IntEnum):
    """What the random numbers are used for."""

    QUESTION_ORDER = 4
    """Order in which RL draws the questions of a data set."""
    DIVERGENCE = 5
    """Choice of the responses that measure the divergence from the start model."""
    HELD_OUT = 6
    """Responses to held-out questions during RL."""
    PASS_RATE = 7
    """Responses that measure the start model's pass rate before RL."""
    TRAINING_ROWS = 8
    """Order of the training rows, the same in pre-training and mid-training."""
