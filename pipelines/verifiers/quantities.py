"""Numbers, units and words of answers. What they receive is tidied by `pipelines.verifiers.answer_text`."""

import re
from fractions import Fraction
from typing import NamedTuple

_ARTICLES = {"the", "a", "an", "of", "in", "is", "are"}
_UNITS = {
    name: unit
    for unit, names in {
        "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
        "inch": "in inches", "foot": "ft feet", "yard": "yd", "mile": "mi", "second": "s sec", "minute": "min",
        "hour": "h hr", "day": "", "week": "", "month": "", "year": "yr", "mg": "milligram", "g": "gram gm",
        "kg": "kilogram", "pound": "lb", "ounce": "oz", "ml": "milliliter millilitre mL", "l": "liter litre L",
        "gallon": "gal", "dollar": "usd buck", "cent": "", "euro": "eur", "degree": "deg", "radian": "rad",
        "newton": "N", "joule": "J", "watt": "W", "volt": "V", "ohm": "", "hz": "hertz Hz",
        "ampere": "A amp", "kelvin": "K", "pascal": "Pa",
        "square": "sq", "cubic": "cu", "per": "", "unit": "",
    }.items()
    for name in (unit, *names.split())
}  # fmt: skip
"""Spelling -> unit. A plural s may follow each."""
_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_CURRENCIES = ("dollar", "cent", "euro")
_CHANGES_VALUE = {
    *("half", "halves", "third", "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths", "tenth"),
    *("tenths", "hundredths", "and", "or", "to", "through", "between", "plus", "minus", "times", "over", "divided"),
    *("squared", "cubed", "pi", "factorial", "remainder", "mod", "modulo", "point", "not", "but"),
    *("sixth", "sixths", "seventh", "sevenths", "eighth", "eighths", "ninth", "ninths", "hundredth", "thousandth"),
    *("thousandths", "millionth", "millionths", "below"),
}
"""Words after a number that make it another number, or several."""
_MAGNITUDES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def words(text: str) -> list[str]:
    """The words of a tidied text for comparison: no case, articles or punctuation, one spelling for each unit."""
    text = re.sub(r"\\text|\\(?=[a-z])|[{}]", " ", text)
    tokens = re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+|[^\w\s.,;:!?'\"()]", re.sub(r"(?<=\b[apAP])\.(?=[mM]\b)", "", text))
    return [_unit_name(token) for token in tokens if token.lower() not in _ARTICLES]


def _unit_name(word: str) -> str:
    if (number := _number_word(word)) is not None:
        return str(number)
    for spelling in (word, word.lower(), word.lower().removesuffix("s")):
        if spelling in _UNITS:
            return _UNITS[spelling]
    return word.lower()


def _number_word(text: str) -> int | None:
    """The number that a word such as "eighteen" or "twenty-one" spells."""
    text = text.lower()
    if text in _SMALL:
        return _SMALL.index(text)
    tens, _, ones = text.replace(" ", "-").partition("-")
    if tens not in _TENS or (ones and ones not in _SMALL[1:10]):
        return None
    return _TENS[tens] + (_SMALL.index(ones) if ones else 0)


def _unit_words(text: str) -> list[str]:
    """The words of a unit: `m^2` is "square m", `km/h` is "km per hour"."""
    text = re.sub(r"(?<=[A-Za-z])\s*/\s*(?=\\text|[A-Za-z])", " per ", text.replace("mph", "mile per hour"))
    for power, name in (("2", "square"), ("3", "cubic")):
        text = re.sub(rf"([A-Za-z]+)[\s}}]*\^\s*\{{?{power}\}}?", rf"{name} \1", text)
    return words(text)


class Measured(NamedTuple):
    """An amount without its unit."""

    amount: str
    unit: tuple[str, ...]
    """Words of the unit; () if there is none. `%` for percentages."""
    known: bool = True
    """Whether every word is a unit of measurement; the nouns of word problems are not."""
    factor: Fraction = Fraction(1)
    """1000 for "thousand"."""


_LATEX_FRACTION = r"\\frac\s*\{\d+\}\s*\{\d+\}"
_PLAIN = (
    rf"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+|{_LATEX_FRACTION})"
    rf"(?:\s*/\s*\d+|\s*(?:\\times|\\cdot)\s*10\s*\^\s*\{{-?\d+\}}|\s+\d+\s*/\s*\d+|\s*{_LATEX_FRACTION})?"
)
_TEXT_UNIT = re.compile(r"(.*?[\d})a-zA-Z!])\s*((?:\\text\s*\{[^{}]*\}(?:\s*\^\s*\{?\d\}?)?[\s/]*)+)")
_WORD_UNIT = re.compile(rf"({_PLAIN})(\s*)([^\W\d_][^\d]*?(?:\^\s*\{{?[23]\}}?)?)")
_LONG_UNITS = "|".join(sorted((name for name in _UNITS if len(name) > 2 and name.isalpha()), key=len, reverse=True))
_KNOWN_UNIT = re.compile(rf"(.*[\d}})a-zA-Z!])\s+((?:(?:{_LONG_UNITS})s?(?:\s*\^\s*\{{?[23]\}}?)?\s*)+)", re.IGNORECASE)
_ATTACHED = {
    "cm",
    "mm",
    "km",
    "kg",
    "mg",
    "ml",
    "mL",
    "ft",
    "lb",
    "lbs",
    "oz",
    "hr",
    "hrs",
    "min",
    "sec",
    "mph",
    "am",
    "pm",
}
"""Units that may follow a number without a space; `5m` and `3c` are products."""
_CURRENCY = re.compile(r"(?:USD?)?\s*(?:\\\$|\$|€|£|¥|Rs\.?(?=\s*\d))\s*|^USD\s*(?=\d)")


def measured(text: str) -> Measured:
    """A tidied amount, split from its unit: `\\$18`, `18 dollars`, `5 \\text{ cm}`, `90^\\circ`, `50\\%`."""
    unit: list[str] = []
    without_currency = _CURRENCY.sub("", text, count=1)
    if without_currency != text:
        unit, text = ["dollar"], without_currency
    if match := re.fullmatch(r"(.*?)\s*(?:\\?%|\\text\s*\{\s*(?:percent|%)\s*\}|percent(?:age)?)(?: of .*)?", text):
        return Measured(match.group(1), ("%",))
    if match := re.fullmatch(r"(.*?)\s*\^\\circ\s*([CFK]?)", text):
        return Measured(match.group(1), ("degree", match.group(2)) if match.group(2) else ("degree",))
    match = _TEXT_UNIT.fullmatch(text)
    if match is None and (word := _WORD_UNIT.fullmatch(text)) and (word.group(2) or word.group(3) in _ATTACHED):
        match = word
    match = match or _KNOWN_UNIT.fullmatch(text)
    if match is None:
        return Measured(text, tuple(unit))

    amount, spelled = match.group(1), match.groups()[-1].replace("\\text", " ")
    names = _unit_words("inches" if spelled.strip(" {}") == "in" else spelled)
    factor = _MAGNITUDES[names.pop(0)] if names and names[0] in _MAGNITUDES else 1
    symbols = re.findall("[A-Za-z]+", spelled)
    unknown = [symbol for symbol in symbols if symbol not in _UNITS and symbol.lower() not in _ATTACHED]
    if unknown and max(map(len, symbols)) < 3 and re.fullmatch(r"[\sA-Za-z\d{}^/]*", spelled):
        return Measured(text, ())  # the product 5 x
    if _CHANGES_VALUE & set(names) or any(map(str.isdigit, names)) or re.search(r"[=<>+*\\]", spelled):
        return Measured(f"{amount} {spelled}", (), known=False)
    if not unit or names[:1] == unit:
        unit = names
    if unit and unit[0] in _CURRENCIES:  # 18 dollars per day are 18 dollars
        unit = unit[:1]
    known = all((name in _UNITS.values() and name != "unit") or not name.isalpha() for name in unit)
    return Measured(amount, tuple(unit), known, Fraction(factor))


# Numbers


class Plain(NamedTuple):
    """A number that is written out."""

    value: Fraction
    decimal: bool
    """Whether it has a decimal point, so that it may be rounded."""


_DECIMAL = r"\d+(?:\.\d+)?|\.\d+"
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?:\.\d+)?")
_FRACTION = re.compile(
    rf"\\frac\s*\{{\s*(-?(?:{_DECIMAL}))\s*\}}\s*\{{\s*(-?(?:{_DECIMAL}))\s*\}}|({_DECIMAL})\s*/\s*({_DECIMAL})"
)
_MIXED = re.compile(r"(\d+)\s*(?:\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|\s(\d+)\s*/\s*(\d+))")
_POWER = re.compile(rf"(?:({_DECIMAL})\s*(?:\\times|\\cdot|\*)\s*)?10\s*\^\s*\{{?\s*([-+]?\d{{1,3}})\s*\}}?")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\s*\{\s*(\d+)\s*\}")


def plain_number(text: str) -> Plain | None:
    """The value of a tidied number: integer, decimal, fraction, mixed number, power of ten or repeating decimal."""
    text = re.sub(r"^(?:minus|negative) (?=[a-z])", "-", text.strip(), flags=re.IGNORECASE)
    sign = -1 if text.startswith("-") else 1
    text = text.removeprefix("-").removeprefix("+").strip()
    if (word := _number_word(text)) is not None:
        return Plain(Fraction(sign * word), False)
    if _GROUPED.fullmatch(text):
        text = re.sub(r"[, ]", "", text)
    decimal = "." in text
    if re.fullmatch(_DECIMAL, text):
        return Plain(sign * Fraction(text), decimal)
    if match := _FRACTION.fullmatch(text):
        over, under = (Fraction(part) for part in match.groups() if part is not None)
        return Plain(sign * over / under, decimal) if under else None
    if match := _MIXED.fullmatch(text):
        whole, part, parts = (int(group) for group in match.groups() if group is not None)
        return Plain(sign * (whole + Fraction(part, parts)), False) if part < parts else None
    if match := _POWER.fullmatch(text):
        return Plain(sign * Fraction(match[1] or 1) * Fraction(10) ** int(match[2]), decimal)
    if match := _REPEATING.fullmatch(text):
        before, period = match[1] + match[2], match[3]
        nines = (10 ** len(period) - 1) * 10 ** len(match[2])
        return Plain(sign * Fraction(int(before + period) - int(before or 0), nines), False)
    return None
