"""The knobs: their ranges and names; and the package's lazy imports."""

import subprocess
import sys

import pytest

import shaping
from shaping import NAMED, Objective


def test_the_five_settings() -> None:
    knobs = {name: (o.beta, o.lam_head, o.lam_tail, o.top_k) for name, o in NAMED.items()}
    assert knobs == {
        "ce": (0, 0, 0, 100),
        "precision": (-0.25, 0, 0, 100),
        "diversity": (0.5, 0, 0, 100),
        "tail_penalty": (0, 0, -0.1, 100),
        "head_reward": (0, 0.1, 0, 100),
    }


@pytest.mark.parametrize("name", NAMED)
def test_names_round_trip(name: str) -> None:
    assert str(Objective.named(name)) == name


def test_other_settings_are_shown_by_their_knobs() -> None:
    assert str(Objective(0.25)) == "beta=0.25"
    assert str(Objective(0, 0.1, -0.1, 50)) == "lam_head=0.1 lam_tail=-0.1 top_k=50"


@pytest.mark.parametrize(
    ("knobs", "is_cross_entropy", "uses_head"),
    [
        ((0, 0, 0), True, False),
        ((-0.25, 0, 0), False, False),
        ((0, 0.1, 0), False, True),
        ((0, 0, -0.1), False, True),
        ((0, 0.1, -0.1), False, True),
        ((0, 0.1, 0.1), False, False),
    ],
)
def test_which_knobs_have_an_effect(knobs: tuple[float, ...], *, is_cross_entropy: bool, uses_head: bool) -> None:
    objective = Objective(*knobs)
    assert (objective.is_cross_entropy, objective.uses_head) == (is_cross_entropy, uses_head)


def test_a_misspelt_name_suggests_the_closest() -> None:
    with pytest.raises(ValueError, match="did you mean 'precision'"):
        Objective.named("precison")


@pytest.mark.parametrize(
    "knobs", [{"beta": float("nan")}, {"lam_head": float("inf")}, {"lam_tail": "x"}, {"top_k": 0}, {"top_k": 1.5}]
)
def test_invalid_knobs_are_named(knobs: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(knobs))):
        Objective(**knobs)


def test_the_package_is_lazy_and_complete() -> None:
    assert all(hasattr(shaping, name) for name in shaping.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        shaping.nonsense  # noqa: B018
    code = "import sys, shaping; shaping.Objective(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
