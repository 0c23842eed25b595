"""Measures of a learning curve against numpy's and against curves whose answers are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.learning import area, area_weights, price, steps_to

CURVES = st.lists(st.tuples(st.floats(0.5, 10), st.floats(0, 1)), min_size=2, max_size=12)


@given(CURVES)
def test_the_area_is_numpys_trapezoid_over_the_length(points: list[tuple[float, float]]) -> None:
    steps = np.cumsum([gap for gap, _ in points])
    rewards = np.array([reward for _, reward in points])
    expected = np.trapezoid(rewards, steps) / (steps[-1] - steps[0])
    assert area(steps.tolist(), rewards.tolist()) == pytest.approx(expected)
    assert area_weights(steps.tolist()).sum() == pytest.approx(1)
    assert rewards.min() - 1e-9 <= area(steps.tolist(), rewards.tolist()) <= rewards.max() + 1e-9


@pytest.mark.parametrize("steps", [[3.0], [], [0, 5, 5], [0, 10, 5]])
def test_an_area_needs_increasing_steps(steps: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more, in increasing order"):
        area_weights(steps)


def test_steps_to_a_reward_are_interpolated_at_the_first_crossing() -> None:
    steps, rewards = [0, 10, 20, 30], [0.2, 0.6, 0.5, 0.9]
    assert steps_to(steps, rewards, 0.4) == pytest.approx(5)
    assert steps_to(steps, rewards, 0.6) == pytest.approx(10)
    assert steps_to(steps, rewards, 0.7) == pytest.approx(25)
    assert steps_to(steps, rewards, 0.1) == 0
    assert steps_to(steps, rewards, 0.95) is None


def test_a_price_needs_a_gain() -> None:
    assert price(0.3, 0.5) == pytest.approx(0.6)
    assert price(-0.3, 0.5) == pytest.approx(-0.6)  # entropy may rise
    assert price(0.3, 0.005) is None
    assert price(0.3, -0.5) is None
