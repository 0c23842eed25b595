"""Numbers and amounts in answers: their exact values, and their units."""

from fractions import Fraction

import pytest

from pipelines.verifiers.quantities import measured, plain_number, words

F = Fraction


@pytest.mark.parametrize(
    ("text", "value", "decimal"),
    [
        ("12", F(12), False),
        ("-12", F(-12), False),
        ("+3.50", F(7, 2), True),
        (".5", F(1, 2), True),
        ("1,234,567.5", F(2469135, 2), True),
        ("1 234", F(1234), False),
        (r"\frac{3}{4}", F(3, 4), False),
        (r"-\frac{1.5}{2}", F(-3, 4), True),
        ("7/2", F(7, 2), False),
        (r"2\frac{1}{3}", F(7, 3), False),
        ("-2 1/3", F(-7, 3), False),
        (r"3 \times 10^{-2}", F(3, 100), False),
        ("10^4", F(10000), False),
        (r"0.\overline{3}", F(1, 3), False),
        (r".\overline{3}", F(1, 3), False),
        (r"1.2\overline{45}", F(1233, 990), False),
        (r"-.1\overline{6}", F(-1, 6), False),
        ("eighteen", F(18), False),
        ("minus twenty-one", F(-21), False),
    ],
)
def test_a_number_has_its_exact_value(text: str, value: Fraction, *, decimal: bool) -> None:
    assert plain_number(text) == (value, decimal)


def test_words_for_numbers() -> None:
    small = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
    ]
    assert [plain_number(word) for word in small] == [(F(number), False) for number in range(21)]
    tens = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    assert [plain_number(f"{word} one") for word in tens] == [(F(number), False) for number in range(21, 100, 10)]
    factors = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 1e6, "billion": 1e9, "trillion": 1e12}
    assert {word: measured(f"3 {word}").factor for word in factors} == factors


@pytest.mark.parametrize("text", ["", "x", "1,23", "1/0", "2 5/3", "one two", "1.2.3", "--2"])
def test_what_is_no_number_has_none(text: str) -> None:
    assert plain_number(text) is None


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        (r"\$18", "18", ("dollar",)),
        ("18 dollars per day", "18", ("dollar",)),
        (r"50\%", "50", ("%",)),
        ("50 percent of the cake", "50", ("%",)),
        (r"90^\circ", "90", ("degree",)),
        (r"20^\circ C", "20", ("degree", "C")),
        (r"5 \text{ cm}", "5", ("centimeter",)),
        ("5 m^2", "5", ("square", "meter")),
    ],
)
def test_an_amount_is_split_from_its_unit(text: str, amount: str, unit: tuple[str, ...]) -> None:
    found = measured(text)
    assert found.amount.strip() == amount
    assert found.unit == unit or found.unit == tuple(words(" ".join(unit)))


def test_words_that_make_another_number_are_no_unit() -> None:
    found = measured("5 six")
    assert (found.amount, found.unit, found.known) == ("5 six", (), False)
    assert words("the Five apples") == ["5", "apples"]
