"""The independent streams of random numbers in a stage run.

Every sampler and every shuffle is seeded by `stream_seed`, so no two streams share numbers, nor do two seeds, steps or
rounds of one stream. Two generators do not come from here: generated tasks and the corpus use Python's `random`, and
initial weights torch's generator, seeded with the run's seed; nothing else draws from them.

A list of numbers is no safe seed: numpy fills one of fewer than four up with zeros, so `[6]`, `[6, 0]` and `[6, 0, 0]`
are one seed.
"""

import hashlib
import json
from enum import StrEnum

import numpy as np


class Stream(StrEnum):
    """What the random numbers are used for, with the path after the stream in `stream_seed`.

    Never change a value: it changes results, and so needs a new version of the stages that use it.
    """

    PRETRAIN_ROWS = "rows of pretrain"
    """Order of the rows of pre-training: run seed."""
    MIDTRAIN_ROWS = "rows of midtrain"
    """Order of the rows of mid-training: run seed."""
    QUESTION_ORDER = "question order"
    """Order in which RL draws the questions of a data set: run seed, data set, pass."""
    ROLLOUTS = "rollouts"
    """Responses that RL learns from: run seed, step, round."""
    DIVERGENCE = "divergence"
    """Choice of the responses that measure the divergence from the start model: run seed, step."""
    HELD_OUT = "held out"
    """Responses to held-out questions during RL: no path, so that all runs and steps are compared on equal numbers."""
    PASS_RATE = "pass rate"
    """Responses that measure the start model's pass rate before RL: run seed, data set."""
    BENCHMARK = "benchmark"
    """Sampled answers of an evaluation: name of the benchmark, so that all models are compared on equal numbers."""
    ADAPTERS = "adapters"
    """Initial values of low-rank adapters: run seed."""
    GENERATION = "generation"
    """Texts that lm-eval asks for: its settings and contexts."""


def stream_seed(stream: Stream, *path: int | str) -> list[int]:
    """Returns the seed of one stream at a path, such as (run seed, step): four 32-bit numbers, for numpy's generators.

    It is a hash, so different streams or paths have different seeds whatever the numbers. More numbers may be appended:
    numpy fills up no seed of four or more.
    """
    digest = hashlib.sha256(json.dumps([stream, *path]).encode()).digest()
    return np.frombuffer(digest[:16], "<u4").tolist()
