"""Whether two final answers are equal: their structure, numbers, units and words here, formulas by math-verify.

The structure of an answer is compared here: math-verify reads as much of a text as it understands, so that a part can
pass for the whole, adds numbers that stand next to each other, and drops primes, indices and single letters at the end.
It receives only formulas without structure, which its parser has to read to the end. What it accepts is checked with 60
digits, since it takes 1/2004! for 1/2006!.

math-verify limits its own time by SIGALRM, which works only in a main thread and which an expression can outlast. Here
that limit is off, and the judge kills the process instead.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify

from pipelines.verifiers.answer_text import (
    Bracketed,
    bracketed,
    choice,
    divided,
    is_text,
    listed,
    split,
    squashed,
    tidied,
)
from pipelines.verifiers.quantities import Measured, measured, plain_number, words

ROUNDED = Fraction(2, 1_000_000)
"""Largest relative difference between a rounded decimal and the exact value, 0.333333 and 1/3."""


def equivalent(answer: str, reference: str) -> float:
    """1.0 if the final answer `answer` equals `reference`, else 0.0. Both may be LaTeX, plain text or Markdown.

    Raises `ValueError` if `reference` is empty.
    """
    expected = _tidied_reference(reference)
    if not expected:
        raise ValueError(f"the reference {reference!r} is empty")
    return float(_equal(tidied(answer), expected))


@lru_cache(1024)  # all samples of a question share a reference
def _tidied_reference(reference: str) -> str:
    return tidied(reference)


def _equal(answer: str, reference: str) -> bool:
    """Whether two tidied answers are equal; the structure of the reference decides how they are compared."""
    if squashed(answer) == squashed(reference):
        return bool(squashed(answer))
    letter = choice(reference, is_reference=True)
    if letter and choice(answer, is_reference=False):
        return choice(answer, is_reference=False) == letter
    if "\\ldots" in answer + reference:
        return False  # where the rest of a sequence leads is not known
    if "\\pm" in answer + reference or "\\mp" in answer + reference:
        return _same_elements(_signs(answer), _signs(reference))
    if _is_words(reference) or (is_text(answer) and reference.isalpha()):
        return bool(words(reference)) and words(answer) == words(reference)

    if (rows := _matrix(answer)) and (expected_rows := _matrix(reference)):
        return _same_rows(rows, expected_rows)
    # A bare list, unless it is one number with separators in it.
    if not all(plain_number(measured(text).amount) for text in (answer, reference)):
        elements = listed(answer), listed(reference)
        if len(elements[1]) > 1 or len(elements[0]) > 1:
            return _equal_lists(answer, reference, elements=elements)
    if len(split(answer, _RELATION) + split(reference, _RELATION)) > 2 or _MEMBER.search(answer + reference):
        return _equal_relations(answer, reference)
    brackets = bracketed(answer), bracketed(reference)
    if any(pair and (len(pair.elements) > 1 or pair.opening == "\\{") for pair in brackets):
        return _equal_brackets(answer, reference, brackets=brackets)
    if any(map(_UNION.search, (answer, reference))):
        return _same_elements(split(answer, _UNION), split(reference, _UNION))
    if ":" in reference:
        return _equal_ratios(answer, reference)
    return _equal_amounts(measured(answer), measured(reference))


def _is_words(reference: str) -> bool:
    """Whether the reference is words; an amount with a unit is none, nor a list of amounts."""
    return is_text(reference) and not all(_is_amount(element) for element in listed(reference))


def _is_amount(text: str) -> bool:
    """Whether a tidied text is a number or formula, perhaps with a unit."""
    text = re.sub(r"^.*(?<![<>\\])=", "", text)
    return bool(re.search(r"\d|\\(?!text)", measured(text).amount)) and not is_text(measured(text).amount)


# Several values


def _signs(text: str) -> list[str]:
    """The elements of a text with both values of each plus-minus sign in it."""
    elements = []
    for element in pair.elements if (pair := bracketed(text)) else listed(text):
        for plus, minus in (("+", "-"), ("-", "+")) if re.search(r"\\(?:pm|mp)", element) else (("", ""),):
            signed = element.replace("\\pm", plus).replace("\\mp", minus)
            elements.append(re.sub(r"^\s*\+|(?<==)\s*\+", "", signed).strip())
    return elements


def _same_elements(answers: Sequence[str], references: Sequence[str]) -> bool:
    """Whether each element has an equal partner, in any order."""
    missing = list(references)
    for answer in answers:
        partner = next((reference for reference in missing if _equal(answer, reference)), None)
        if partner is None:
            return False
        missing.remove(partner)
    return not missing


def _same_sequence(answers: Sequence[str], references: Sequence[str]) -> bool:
    return len(answers) == len(references) and all(map(_equal, answers, references))


def _equal_lists(answer: str, reference: str, *, elements: tuple[list[str], list[str]]) -> bool:
    """Compare when one of both is a bare list: `1, 2`, `x = 1 or x = 2`."""
    answers, references = elements
    pair, expected = bracketed(answer), bracketed(reference)
    if expected and len(references) == 1:  # a bare list for a set in any order, for a point in its order
        if expected.opening == "\\{":
            return _same_elements(answers, expected.elements)
        return expected[:2] == ("(", ")") and _same_sequence([_right_side(a) for a in answers], expected.elements)
    if pair and len(answers) == 1:
        if pair[:2] == ("(", ")") and all(re.match(r"[A-Za-z]\s*=", element) for element in references):
            return _same_sequence(pair.elements, [_right_side(element) for element in references])  # x = 1, y = 2
        return pair.opening == "\\{" and _same_elements(pair.elements, references)
    if len(references) == 1:  # several spellings of one answer, such as 3/4 or 0.75
        return all(_equal(element, reference) for element in answers)
    # x = 2, 3 is the list of both
    sides = [
        re.sub(r"^[A-Za-z]\s*=\s*", "", part) if "=" not in "".join(rest) else part
        for part, *rest in (answers, references)
    ]
    return _same_elements([sides[0], *answers[1:]], [sides[1], *references[1:]])


def _equal_brackets(answer: str, reference: str, *, brackets: tuple[Bracketed | None, Bracketed | None]) -> bool:
    """Compare points, intervals and sets. Without brackets, an answer can be the only element of a set."""
    given, expected = brackets
    if given is None or expected is None:
        single, other = (answer, expected) if given is None else (reference, given)
        return (
            other is not None
            and other.opening == "\\{"
            and len(other.elements) == 1
            and _equal(single, other.elements[0])
        )
    if given[:2] != expected[:2]:
        return False
    compare = _same_elements if expected.opening == "\\{" else _same_sequence
    return compare(given.elements, expected.elements)


_UNION = re.compile(r"\s*\\cup(?![A-Za-z])\s*")
_MATRIX = re.compile(r"\\begin\s*\{([pbB]?matrix)\}(.*)\\end\s*\{\1\}")


def _matrix(text: str) -> list[list[str]] | None:
    """The cells of a matrix by row, or None."""
    match = _MATRIX.fullmatch(re.sub(r"^[A-Za-z]\s*=\s*", "", text))
    return match and [[cell.strip() for cell in row.split("&")] for row in re.split(r"\\\\", match[2]) if row.strip()]


def _same_rows(answer: list[list[str]], reference: list[list[str]]) -> bool:
    return len(answer) == len(reference) and all(map(_same_sequence, answer, reference))


def _equal_ratios(answer: str, reference: str) -> bool:
    """Times (12:30) are equal part by part, ratios (3:2) if they are in proportion; 3/2 is the ratio 3:2."""
    given, expected = (re.split(r"\s*:\s*|\s+to\s+|\s*\\text\s*\{\s*to\s*\}\s*", text) for text in (answer, reference))
    if re.search(r"\d:\d\d(?!\d)", reference):
        return words(answer.replace(":", " ")) == words(reference.replace(":", " "))
    if len(given) == 1 and len(expected) == 2:
        return _equal(answer, rf"\frac{{{expected[0]}}}{{{expected[1]}}}")
    values = [[number and number.value for number in map(plain_number, parts)] for parts in (given, expected)]
    if len(given) != len(expected) or not all(values[0] + values[1]):
        return _same_sequence(given, expected)
    return all(a * values[1][0] == b * values[0][0] for a, b in zip(*values, strict=True))


# Relations


_RELATION = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|\\approx|[<>=]")
_MEMBER = re.compile(r"\\in(?![A-Za-z])")
_NAME = re.compile(r"[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?|\\[a-z]+|(?:\\text\s*\{[^{}]*\}|[A-Za-z' ]{3,})")


_ANOTHER = re.compile(
    r"^(?=.*\d).*?(?:[\d})%]\s+|\\(?:lor|vee|land|wedge)(?![A-Za-z])\s*|\\\\\s*|[|&?]\s*|(?<![\\A-Za-z])[A-Za-z]{2,}\s*\}?\s+)"
    r"[A-Za-z](?:_\{?\w+\}?)?$"
)
"""The middle of `a = 5 b = 6` or `x = 5 \\lor x = 6`: several values without a comma, of which none is the answer."""
_FOLLOWS = re.compile(
    r"\\(?:implies|[rR]ightarrow|Longrightarrow|to|therefore)|\b(?:so|thus|hence|therefore|implies)\b"
)


def _right_side(text: str) -> str:
    """What a name is equal to, and the value of a calculation: 18 in `x = 18` and in `3 * 6 = 18`."""
    sides = split(text, re.compile(r"\s*(?<![<>\\])=\s*|\s*\\approx\s*|\s*\\in(?![A-Za-z])\s*"))
    return sides[-1]


def _equal_relations(answer: str, reference: str) -> bool:
    """Compare equations and inequalities. A value equals `name = value`, an interval its inequality."""
    chains = [divided(text, _RELATION) for text in (answer, reference)]
    inequality = [any(sign not in ("=", "\\approx") for sign in signs) for _, signs in chains]
    if any(inequality):
        intervals = [_interval(*chain) or text for chain, text in zip(chains, (answer, reference), strict=True)]
        names = {name for sides, signs in chains if signs for name in sides if re.fullmatch(r"[A-Za-z]", name)}
        if all(bracketed(_right_side(interval)) or _UNION.search(interval) for interval in intervals):
            return len(names) <= 1 and _equal(*map(_right_side, intervals))
        return inequality[0] == inequality[1] and _verified_relation(answer, reference)
    (given, signs), (expected, _) = chains
    if _MEMBER.search(answer + reference):
        given, expected = (
            [_right_side(text)] if _MEMBER.search(text) else sides
            for text, sides in ((answer, given), (reference, expected))
        )
    named = [len(sides) > 1 and _NAME.fullmatch(sides[0]) is not None for sides in (given, expected)]
    if len(expected) == 1:  # a value: that of the answer
        if any(_ANOTHER.search(side) and not _FOLLOWS.search(side) for side in given[1:-1]):
            return False
        exact = [side for side, _ in zip(given, [*signs, ""], strict=True) if not _NAME.fullmatch(side)]
        # 18 of 3 * 6 = 18 and of 18 = x, the square root of 2 of \sqrt{2} \approx 1.41
        value = (exact[0] if "\\approx" in signs else exact[-1]) if exact else given[-1]
        return _equal(value, expected[0])
    if named[1] and len(given) == 1:
        return _equal(given[0], expected[-1])
    if named[0] and named[1]:
        if squashed(given[0]) == squashed(expected[0]):
            return _equal(given[-1], expected[-1])
        return re.search(r"[a-zA-Z]", expected[-1]) is not None and _verified_relation(answer, reference)
    return len(given) > 1 and _verified_relation(answer, reference)


_FLIPPED = {">": "<", "\\ge": "\\le", "<": "<", "\\le": "\\le"}


def _interval(sides: list[str], signs: list[str]) -> str | None:
    """The interval of `1 < x \\le 2` or `x > 3`, or None if the text is another relation."""
    if not signs or any(sign not in _FLIPPED for sign in signs) or len({sign in (">", "\\ge") for sign in signs}) > 1:
        return None
    if signs[0] in (">", "\\ge"):
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in signs[::-1]]
    if len(sides) == 2:
        if re.fullmatch(r"[A-Za-z]", sides[0]):
            sides, signs = ["-\\infty", *sides], ["<", *signs]
        else:
            sides, signs = [*sides, "\\infty"], [*signs, "<"]
    if len(sides) != 3 or not re.fullmatch(r"[A-Za-z]", sides[1]):
        return None
    return ("(" if signs[0] == "<" else "[") + f"{sides[0]},{sides[2]}" + (")" if signs[1] == "<" else "]")


# Single values


def _equal_amounts(answer: Measured, reference: Measured) -> bool:
    """Compare two amounts. A unit may be left out; two units of measurement must be the same."""
    units = set(answer.unit), set(reference.unit)
    celsius = {"degree"} in units and units[0] & units[1] == {"degree"}  # 5 degrees may be degrees Celsius
    if all(units) and answer.known and reference.known and units[0] != units[1] and not celsius:
        return False
    # 50 % is 0.5, and also 50 where the reference is in percent.
    if ("%" in answer.unit) != ("%" in reference.unit):
        share, other = (answer, reference) if "%" in answer.unit else (reference, answer)
        return _equal_values(share, other) or _equal_values(share._replace(factor=Fraction(1, 100)), other)
    return _equal_values(answer, reference)


def _equal_values(answer: Measured, reference: Measured) -> bool:
    """Compare two amounts without their units, as written numbers if they are that, else as formulas."""
    given, expected = plain_number(answer.amount), plain_number(reference.amount)
    if given is None or expected is None:
        return answer.factor == reference.factor and _verified(answer.amount, reference.amount)
    values = given.value * answer.factor, expected.value * reference.factor
    difference = abs(values[0] - values[1])
    if given.decimal or expected.decimal:
        return difference <= min(Fraction(1, 2_000_000), ROUNDED * max(map(abs, values)))
    return difference == 0


_READABLE = re.compile(
    r"\\(?:frac|sqrt|pi|cdot|times|div|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|binom|infty|"
    r"lfloor|rfloor|lceil|rceil|sum|prod|int|lim|to|emptyset|mathbb|"
    r"alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|varphi|omega|Delta|Omega)(?![A-Za-z])"
)


def _formula(text: str) -> Any:
    """The sympy expression of a text, which is read to its end. Raises an error of any type if that is not possible."""
    # Numbers next to each other would be added, primes and indices of numbers dropped.
    text = re.sub(r"\)\s*(?=[(\d])|(?<=\d)\s*(?=\()", lambda match: match.group() + r" \cdot ", text)
    text = re.sub(r"(?<![\d.}])(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", _mixed, text)
    text = text.replace("*", r" \cdot ")
    if re.search(r"\d\s+[\d.]|\d\s*_|'|\\\\|,|\^\s*$|\\text", text):
        raise ValueError(f"{text!r} has no value that is certain")
    plain = _READABLE.sub(" ", text)
    if not text.isascii():
        raise ValueError(f"{text!r} has characters that the parser drops")
    if "\\" in plain.replace("\\{", "") or re.search(r"[A-Za-z]{4}", plain):
        raise ValueError(f"{text!r} is no formula")
    config = ConversionConfig(lowercase_symbols=False)
    expression = latex2sympy(text, is_real=True, normalization_config=None, conversion_config=config)
    imaginary = [symbol for symbol in expression.free_symbols if symbol.name == "i"]
    return expression if "\\sum" in text else expression.subs(dict.fromkeys(imaginary, sympy.I))


_KINDS = {"=": sympy.Eq, "<": sympy.Lt, ">": sympy.Gt, "\\le": sympy.Le, "\\ge": sympy.Ge, "\\ne": sympy.Ne}


def _relation(text: str) -> Any:
    """The sympy relation of a text with one sign. Raises an error of any type if it cannot be read."""
    sides, (sign,) = divided(text, _RELATION)
    left, right = map(_formula, sides)
    return _KINDS[sign](left, right, evaluate=False)


def _mixed(match: re.Match[str]) -> str:
    """A mixed number as a sum; an improper one is a product."""
    whole, over, under = match.groups()
    sign = "+" if int(over) < int(under) else r"\cdot "
    return rf"({whole}{sign}\frac{{{over}}}{{{under}}})"


_reference_formula, _reference_relation = lru_cache(256)(_formula), lru_cache(256)(_relation)


def _verified(answer: str, reference: str) -> bool:
    """Whether math-verify accepts a formula, and numbers do not contradict it."""
    try:
        expected, given = _reference_formula(reference), _formula(answer)
    except Exception:  # the parser raises errors of many types
        return False
    return verify(expected, given, timeout_seconds=None) and _numerically_equal(given, expected)


def _verified_relation(answer: str, reference: str) -> bool:
    """Whether math-verify accepts an equation or inequality. It takes any two equations without solutions for equal."""
    try:
        expected, given = _reference_relation(reference), _relation(answer)
    except Exception:
        return False
    if isinstance(expected, sympy.Eq) and isinstance(given, sympy.Eq):
        if _in_proportion(given.lhs - given.rhs, expected.lhs - expected.rhs):
            return True
        return verify(expected, given, timeout_seconds=None) and bool(sympy.solve(expected))
    same_kind = type(given) is type(expected) or {type(given), type(expected)} in _MIRRORED
    return same_kind and verify(expected, given, timeout_seconds=None)


_MIRRORED = ({sympy.StrictLessThan, sympy.StrictGreaterThan}, {sympy.LessThan, sympy.GreaterThan})
_DIGITS = 60


def _values(expressions: Sequence[Any], shift: int) -> list[Any]:
    """The values of expressions with `_DIGITS` digits at a point of positive variables, which `shift` moves."""
    symbols = sorted(set().union(*(expression.free_symbols for expression in expressions)), key=str)
    point = {symbol: sympy.Rational(7 + 4 * i + 3 * shift, 5 + 2 * i) for i, symbol in enumerate(symbols)}
    return [expression.subs(point).evalf(_DIGITS, maxn=10 * _DIGITS) for expression in expressions]


def _in_proportion(first: Any, second: Any) -> bool:
    """Whether two expressions have the same ratio at several points: setting them to 0 gives one equation."""
    try:
        ratios = [one / other for one, other in (_values((first, second), shift) for shift in range(4))]
        return all(ratio != 0 and abs(ratio / ratios[0] - 1) < sympy.Float(10) ** (10 - _DIGITS) for ratio in ratios)
    except Exception:
        return False


def _numerically_equal(first: Any, second: Any) -> bool:
    """Whether two expressions agree where all variables have some positive value, to rounding for decimals.

    Where they have no value (sets, undefined functions), math-verify's word is taken.
    """
    try:
        first, second = first.doit(), second.doit()
        if first.is_Rational and second.is_Rational:
            return bool(first == second)
        one, other = _values((first, second), 0)
        size = max(abs(one), abs(other))
        exact = not first.has(sympy.Float) and not second.has(sympy.Float)
        tolerance = sympy.Float(10, _DIGITS) ** (10 - _DIGITS) if exact else float(ROUNDED)
        return bool(size < sympy.Float(10) ** -400 or abs(one - other) <= tolerance * size)
    except Exception:
        return True


# Parsers and sympy's simplifications load on first use, which takes longer than the limit for one answer: use each kind
# of expression once, before the worker forks. A library that does not work is noticed here, not as wrong answers.
for _answer, _reference in (
    ("1", "1"),
    (r"\frac{1}{2}", "0.5"),
    ("$x^2 + 2x + 1$", "(x+1)^2"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    ("$(1, 2]$", "1 < x \\le 2"),
    (r"$2y = 2x + 2$", "x - y + 1 = 0"),
    (r"$\sin(\pi/6) + x$", r"\frac{1}{2} + x"),
):
    if not equivalent(_answer, _reference):
        raise ImportError(f"math-verify does not find {_answer} equal to {_reference}")
