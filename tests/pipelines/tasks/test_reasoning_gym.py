"""Tasks of reasoning-gym: which items a seed gives, and what is said where there are none."""

import pytest

from pipelines.errors import UserError
from pipelines.tasks import reasoning_gym


def test_items_are_those_of_the_library_at_a_seed_far_from_the_next() -> None:
    library = pytest.importorskip("reasoning_gym", reason="pip install 'shaping[gym]'")
    for seed, base in ((0, 17), (1, 1_000_020), (3000, 852_525_369)):
        expected = library.create_dataset("spell_backward", size=4, seed=base)
        pairs = reasoning_gym.items("gym_spell_backward", 4, seed)
        assert [answer for _, answer in pairs] == [item["answer"] for item in expected]


def test_an_unknown_family_is_named() -> None:
    pytest.importorskip("reasoning_gym", reason="pip install 'shaping[gym]'")
    with pytest.raises(UserError, match=r"^data\.tasks=gym_spell_sideways: reasoning-gym refuses it"):
        reasoning_gym.items("gym_spell_sideways", 1, 0)


def test_without_the_library_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasoning_gym, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        reasoning_gym.check("gym_spell_backward")
    assert str(error.value) == (
        "data.tasks=gym_spell_backward: it needs reasoning-gym: pip install 'shaping[gym]' (a C compiler is needed)"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("number_sequence", "its generator can hang"),
        ("game_of_life_halting", "it has two answers, and one of them is right most of the time"),
        ("gsm_symbolic", "its answers lose their minus sign, and its questions overlap GSM8K's test set"),
    ],
)
def test_a_refused_family_is_refused_with_its_reason(name: str, reason: str) -> None:
    with pytest.raises(UserError) as error:
        reasoning_gym.check(f"gym_{name}")
    assert str(error.value) == f"data.tasks=gym_{name}: it is refused: {reason}"


def test_numbers_to_sort_are_three_to_five_digits_in_a_short_question() -> None:
    pytest.importorskip("reasoning_gym", reason="pip install 'shaping[gym]'")
    lengths = set()
    for question, answer in reasoning_gym.items("gym_number_sorting", 60, 0):
        verb, direction, *given = question.split()
        assert verb == "sort"
        digits = sorted(map(int, given), reverse=direction == "down")
        assert direction in ("up", "down")
        assert all(0 <= digit <= 9 for digit in digits)
        assert answer == " ".join(map(str, digits))
        lengths.add(len(digits))
    assert lengths == {3, 4, 5}
