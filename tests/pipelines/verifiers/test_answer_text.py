"""The text of an answer: one spelling, without what surrounds it; its structure; and the letter of a choice."""

import re

import pytest

from pipelines.verifiers.answer_text import bracketed, choice, divided, is_text, last_boxed, listed, squashed, tidied


@pytest.mark.parametrize(
    ("text", "tidy"),
    [
        ("{5}", "5"),
        ("{ {5} }", "5"),
        ("{1}{2}", "{1}{2}"),
        (r"\{1, 2\}", r"\{1, 2\}"),
        ("$5$", "5"),
        (r"\$5", r"\$5"),
        ("x = 5$", "x = 5$"),
        ("**7**.", "7"),
        ("The final answer is: 12.", "12"),
        ("about  3", "3"),
        ("minus 3", "-3"),
        (r"\text{B}", "B"),
        (r"\text{12 cm}", "12 cm"),
        ("'yes'", "yes"),
        ("x²", "x^{2}"),
        (r"\dfrac12", r"\frac{1}{2}"),
        (r"\boxed{3} and \boxed{4}", "4"),
    ],
)
def test_what_surrounds_an_answer_is_removed(text: str, tidy: str) -> None:
    assert tidied(text) == tidy


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed 5, and so on", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed{}", None),
        ("no box", None),
    ],
)
def test_the_last_closed_box_has_the_answer(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "is_reference", "letter"),
    [
        ("B", True, "B"),
        ("(B)", True, "B"),
        ("(b)", True, None),
        ("(b)", False, "B"),
        ("(B) 12", False, "B"),
        ("B. 12", False, "B"),
        ("B: 12", False, "B"),
        ("(A) 3 (B) 4", False, None),
        ("A or B", False, None),
        ("A + B", False, None),
        ("K", False, None),
        ("B 12", False, None),
    ],
)
def test_a_choice_has_one_letter(text: str, is_reference: bool, letter: str | None) -> None:
    assert choice(text, is_reference=is_reference) == letter


def test_separators_inside_brackets_do_not_divide() -> None:
    comma = re.compile(",")
    assert divided("f(1, 2), [3, 4), 5", comma) == (["f(1, 2)", "[3, 4)", "5"], [",", ","])
    assert divided(r"\{1, 2\}, 3", comma) == ([r"\{1, 2\}", "3"], [","])
    assert listed(r"1, 2 and 3") == ["1", "2", "3"]
    assert listed(r"1; (2, 3) \text{ or } 4") == ["1", "(2, 3)", "4"]
    assert listed("5") == ["5"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(1, 2]", ("(", "]", ["1", "2"])),
        (r"\{1, 2\}", (r"\{", r"\}", ["1", "2"])),
        ("[(1, 2), 3]", ("[", "]", ["(1, 2)", "3"])),
        ("(1)(2)", None),
        (r"\{1)", None),
        ("1", None),
    ],
)
def test_one_pair_of_brackets_around_everything(text: str, found: tuple[str, str, list[str]] | None) -> None:
    assert bracketed(text) == found


def test_words_and_spaces() -> None:
    assert [text for text in ("Monday", r"\text{even}", "two", "x + y", r"\frac{1}{2}", "12") if is_text(text)] == [
        "Monday",
        r"\text{even}",
        "two",
    ]
    assert squashed("x + 1 , y z") == "x+1,y z"
