"""Answers that math-verify gets wrong, found in its issues and by trying it: what is refused and accepted."""

import pytest
import sympy

from pipelines.verifiers.mathematics import _numerically_equal, equivalent
from tests.pipelines.verifiers.test_judge import MATH

REFUSED = [
    # a part of the answer for the whole
    (r"\frac{1}{3}", "2 1/3"), ("2", "2 1/3"), ("2", r"2\frac{1}{3}"), ("4", r"4\sqrt(2)"), ("3", "3c"), ("2", "2h"),
    ("3", r"3 \text{ hours } 20 \text{ minutes}"), ("1728", "1331 and 1728"), ("1331", r"1331 \text{ and } 1728"),
    ("3", "x = 3 or x = 4"), ("1", "(1, 2)"), ("[1,2]", r"[1,2] \cup [3,4]"), ("7", "7 remainder 2"), ("x", "x'"),
    ("1010", "10"), ("1010_3", "1010_2"), (r"1 + \frac{1}{\mathrm{e}}", r"1 - \frac{1}{\mathrm{e}}"),
    ("0", "3x + 4y + 14 = 0"), ("1, 2", "1, 2, 3"), (r"1, 3, 5, \ldots, 2n-1", r"1, 2, \ldots, n"),
    # the answer with others next to it
    ("5 6", "11"), ("5 6", "56"), ("(3)(4)", "7"), ("1 000 0", "0"), ("5 or 6", "5"), (r"5 \text{ or } 6", "6"),
    (r"\{5, 6\}", "5"), ("A or B", "A"), ("(A) or (B)", "A"), ("3/4 or 0.8", "3/4"), ("5, 5, 6", "5"),
    # plus-minus, signs, brackets, order
    ("2", r"\pm 2"), (r"\pm 2", "2"), (r"1 \pm \sqrt{2}", r"1 + \sqrt{2}"), (r"1+\sqrt{2}", r"1 \pm \sqrt{2}"),
    ("-5", "10-5"), ("(1, 2)", r"\{1, 2\}"), (r"\{1, 2\}", "(1, 2)"), ("(2, 1)", "(1, 2)"), ("(0, 1)", "[0, 1)"),
    ("(-1, 1)", "-1, 1"), (r"(-\infty, 3)", r"(-\infty, 3]"), (r"x \ge 3", "x > 3"), ("y = 3", "x = 3"),
    # small and large numbers that floating-point numbers do not tell apart
    (r"\frac{1}{2006!}", r"\frac{1}{2004!}"), (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"), ("0.0000002", "0.0000001"),
    ("100!", "100!+1"), ("100!+1", "100!"), ("10^{100}", "10^{100}+1"), ("x/10^{30}", "x/10^{31}"),
    (r"\frac{1}{3 \cdot 2^{2006}}", r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}"), (r"\sqrt{2}+10^{-40}", r"\sqrt{2}"),
    (r"\{\frac{1}{2006!}\}", r"\{\frac{1}{2004!}\}"), ("6!", "5!"), ("n!", "(n+1)!"),
    # a part of a calculation, or what only approximates it
    ("3 * 6 = 18", "3"), ("3 * 6 = 18", "6"), (r"\sqrt{2} \approx 1.41", "1.41"), ("3/4 or 0.75", "0.8"),
    # equations without a solution
    ("x^2 + 2 = 0", "x^2 + 1 = 0"), ("e^x = -1", "e^x = -2"), ("0 = 0", "x + y = 1"), ("x = 2", "x^2 = 4"),
    # letters, words, times, ratios, units
    ("on", r"\text{no}"), ("Tuesday", "Monday"), (r"\pi R^2", r"\pi r^2"), ("1:00", "12:00"), ("2:3", "3:2"),
    (r"5 \text{ m}", r"5 \text{ cm}"), (r"5 \text{ cm}^3", r"5 \text{ cm}^2"), ("60 mph", r"60 \text{ km/h}"),
    (r"\frac{1}{2x}", r"\frac{1}{2}x"), ("12", "1 2"), ("1,234", "1"), ("0.5%", r"50\%"), ("b", "a"),
]  # fmt: skip
"""(answer, reference): wrong."""

ACCEPTED = [
    ("0.5", r"\frac{1}{2}"), ("2.5", r"2\frac{1}{2}"), ("5/4", "1 1/4"), ("0.333333", "1/3"), ("120", "5!"),
    ("4,3", "3 and 4"), (r"\pm 2", "2, -2"), ("12", "(3)(4)"), (r"y = -\frac{1}{2}x + \frac{3}{4}", "2x + 4y - 3 = 0"),
    ("(x-1)(x+1)", "x^2-1"), (r"e^{i\pi}", "-1"), (r"\sqrt{-4}", "2i"), ("101!/101", "100!"), ("yx", "xy"),
    (r"[3,4] \cup [1,2]", r"[1,2] \cup [3,4]"), ("1 < x < 2", "(1,2)"), (r"13", r"\text{13}"), ("6:4", "3:2"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"), (r"\frac12", "1/2"), (r"so it is \boxed{7}", "7"),
    ("7", r"Add them. \boxed{7}"), (r"\tan^2(y) + 1", r"\sec^2(y)"),
    (r"\sum_{k=1}^{3} k", "6"), (r"y + x \le 3", r"3 \ge x + y"),
    ("4x^2 + 9y^2 = 36", r"\frac{x^2}{9} + \frac{y^2}{4} = 1"),
    ("xy = 1", r"y = \frac{1}{x}"), ("x^2 + 1 = 0", "1 + x^2 = 0"),
    # the value that a calculation, an equation or an approximation ends with
    ("3 * 6 = 18", "18"), ("18 = x", "18"), ("x = y = 5", "5"), (r"\sqrt{2} \approx 1.41", r"\sqrt{2}"),
    ("3/4 or 0.75", "3/4"),
]  # fmt: skip
"""(answer, reference): right."""


@pytest.mark.parametrize(("answer", "reference"), REFUSED)
def test_known_failures_of_math_verify_are_refused(answer: str, reference: str) -> None:
    assert equivalent(answer, reference) == 0.0


@pytest.mark.parametrize(("answer", "reference"), ACCEPTED)
def test_equal_answers_in_other_forms_are_accepted(answer: str, reference: str) -> None:
    assert equivalent(answer, reference) == 1.0


@pytest.mark.parametrize(("answer", "reference", "reward"), MATH)
def test_the_worker_adds_nothing_to_the_comparison(answer: str, reference: str, reward: float) -> None:
    """Those that `test_judge` has judged by workers."""
    assert equivalent(answer, reference) == reward


@pytest.mark.parametrize(("digits", "equal"), [(49, False), (51, True)])
def test_exact_expressions_agree_to_fifty_digits(digits: int, equal: bool) -> None:
    root = sympy.sqrt(2)
    assert _numerically_equal(root, root + sympy.Rational(1, 10**digits)) == equal


def test_an_empty_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="the reference ' ' is empty"):
        equivalent("1", " ")
