"""Answers as text: one spelling for each LaTeX command, and their structure: boxes, lists, brackets and choices."""

import re
from typing import NamedTuple

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–‐‑", "-"),
        **dict.fromkeys("\u00a0\u202f\u2009\u2007~\t\n", " "),
        **dict.fromkeys("‘’`", "'"),
        **dict.fromkeys("“”", '"'),
        **{"×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "÷": "/", "⁄": "/", "√": "\\sqrt ", "±": "\\pm "},
        **{"π": "\\pi ", "θ": "\\theta ", "∞": "\\infty ", "∅": "\\emptyset ", "°": "^\\circ "},
        **{"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "≈": "\\approx "},
        **{"¢": " cents ", "₹": "\\$"},
        **{"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⅕": " 1/5", "⅖": " 2/5", "⅗": " 3/5"},
        **{"⅘": " 4/5", "⅙": " 1/6", "⅚": " 5/6", "⅛": " 1/8", "⅜": " 3/8", "⅝": " 5/8", "⅞": " 7/8", "…": "\\ldots "},
    }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_FONTS = (
    "mathrm|mathbf|mathit|mathsf|mathcal|textbf|textit|textrm|textnormal|textsf|mbox|hbox|bm|boldsymbol|underline|emph"
)
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|infty|theta|alpha|beta"
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"\\(?:{_FONTS})(?![A-Za-z])", r"\\text"),
        (r"\\operatorname\*?\{([a-z]+)\}", r"\\\1"),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?", ""),
        (r"\\(?:displaystyle|textstyle|limits)(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"(\\\\)|\\!", r"\1"),
        (r"(\\\\)|\\(?:[,;:> ]|q?quad(?![A-Za-z]))", r"\1 "),
        (r"\s*\{,\}\s*", ","),
        (r"\\(?:lbrace|\{)", r"\\{"),
        (r"\\(?:rbrace|\})", r"\\}"),
        (r"\\l(?:eq|eqslant|e)(?![A-Za-z])", r"\\le"),
        (r"\\g(?:eq|eqslant|e)(?![A-Za-z])", r"\\ge"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq?(?![A-Za-z])|!=", r"\\ne "),
        (r"\\(?:ldots|cdots|dots|dotsc)(?![A-Za-z])|\.\.\.", r"\\ldots "),
        (r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?(?![A-Za-z])", r"^\\circ "),
        (
            r"\\text\s*\{\s*(?![mgsLW]\s*\})([^A-Za-z{}]*|\(?[A-Za-z]\)?)\s*\}",
            r" \1 ",
        ),  # no word: a number, a letter, a choice
        (r"(?<=\w)\*\*(?=\w)", "^"),
        (r"\*\*|__|</?(?:b|strong|i|em|u)>", ""),
        (r"(?<=\d)(?:st|nd|rd|th)(?![A-Za-z])", ""),
        (rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![A-Za-z])", r"\\\1"),
        (r"(?<![\\A-Za-z])infinity(?![A-Za-z])", r"\\infty "),
        (r"(\d)\s*[eE]([-+]?\d+)(?![\d.])", r"\1 \\times 10^{\2}"),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r" \\times "),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"\\log\s*_\s*(\w)", r"\\log_{\1}"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\^\s*(-?\d+)", r"^{\1}"),
        (r"\s+", " "),
    )
]
_BOXES = ("\\boxed", "\\fbox")
_LEADING = re.compile(
    r"^(?:(?:the (?:final )?answer is|approximately|approx\.?|about|around|roughly|exactly|simply|just|only|"
    r"equal to|equals|option|choice|answer|\\approx|:|=|(?:the|in|on|at)(?=\s[-\d]))(?![A-Za-z])\s*)+",
    re.IGNORECASE,
)


def tidied(text: str) -> str:
    """`text` with one spelling for each command, and without math delimiters, Markdown and punctuation around it.

    Of a text with a box it is the content of the last one.
    """
    if any(box in text for box in _BOXES):
        text = last_boxed(text) or text
    text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda match: f"^{{{match.group().translate(_SUPERSCRIPTS)}}}", text)
    text = text.translate(_CHARACTERS)
    text = re.sub(r"\\\(|\\\)|\\\[|\\\]|(?<!\\)\$\$", " ", text)
    # An odd dollar sign is a currency; pairs delimit mathematics.
    if len(re.findall(r"(?<!\\)\$", text)) % 2 == 0:
        text = re.sub(r"(?<!\\)\$", " ", text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = _LEADING.sub("", text.strip())
    text = re.sub(r"^(?:[mM]inus|[nN]egative)\s+(?=[\d.$\\])", "-", text)
    text = re.sub(r"^\\text\s*\{\s*([A-Za-z]|-?\d[^{}]*)\s*\}$", r"\1", text)
    text = re.sub(r"^(['\"])(.*)\1$", r"\2", text)
    text = re.sub(r"(?:(?<!\\)[.,;:]|\s)+$", "", text)
    return _without_outer_braces(text)


def _without_outer_braces(text: str) -> str:
    """`{5}` is `5`; `{1}{2}` is unchanged."""
    while text.startswith("{") and _until_closed(text) == text[1:-1]:
        text = text[1:-1].strip()
    return text


def last_boxed(text: str) -> str | None:
    """The content of the last closed box, however deeply nested; `\\boxed 5` without braces counts."""
    index = max(text.rfind(box) for box in _BOXES)
    end = len(text)
    # Skip unclosed boxes at the end, but only a few: a text full of them has no answer.
    for _ in range(8):
        if index < 0:
            return None
        start = index + (6 if text.startswith("\\boxed", index) else 5)
        content = text[start:end].lstrip(" ")
        if content.startswith("{"):
            inside = _until_closed(content)
            if inside is not None:
                return inside.strip() or None
        elif content:
            return re.split(r"[\s$.,]", content, maxsplit=1)[0] or None
        end = index
        index = max(text.rfind(box, 0, index) for box in _BOXES)
    return None


def _until_closed(text: str) -> str | None:
    """The text between the brace with which `text` begins and the one that closes it; escaped braces are ignored."""
    depth, escaped = 0, False
    for index, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[1:index]
    return None


def squashed(text: str) -> str:
    """A tidied text without spaces that mean nothing: equal texts are equal answers."""
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text)


def is_text(text: str) -> bool:
    """Whether a tidied answer is words rather than mathematics, such as `\\text{Monday}` or `yes`."""
    if re.search(r"\\text\s*\{[^{}]*[A-Za-z]{2}", text):
        return True
    plain = re.sub(r"\\(?:begin|end)\{[a-z]*\}|\\[A-Za-z]+", " ", text)
    return bool(re.search(r"[^\W\d_]{4}", plain)) or bool(
        re.fullmatch(r"(?i)yes|no|true|false|odd|even|none|all|both|one|two|six|ten|dne|[a-z]{2,3}day", plain.strip())
    )


_CHOICE = re.compile(r"\(?([A-J])\)?")
_OTHER_CHOICES = re.compile(r"\(([A-Ja-j])\)|(?<![\w(])([A-J])[).:]\s(?=\S)")
_CHOSEN = re.compile(
    r"(?:\(([A-Ja-j])\)|([A-J])(?:[).:](?=\s|$)|$))(?!\s*(?:[,;/&+*^=<>-]|(?:\\text\s*\{\s*)?(?:and|or)\b|\(?[A-J]\)?(?:\s|$)))"
)


def choice(text: str, *, is_reference: bool) -> str | None:
    """The letter of a choice: `B`, `(B)`; in an answer also `(b)`, `(B) 12`, `B. 12` and `B: 12`.

    An answer that names a second choice, `(A) 3 (B) 4`, has none.
    """
    match = _CHOICE.fullmatch(text) if is_reference else _CHOSEN.match(text)
    letter = match and (match.group(1) or match.groups()[-1]).upper()
    others = {other.upper() for pair in _OTHER_CHOICES.findall(text) for other in pair if other} - {letter}
    return None if others else letter


# Structure


_OPEN, _CLOSE = "([{", ")]}"


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """`text` at the matches of `separator` outside all brackets."""
    return divided(text, separator)[0]


def divided(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The parts of `text` between the matches of `separator` outside all brackets, and these matches."""
    parts, matches, depth, start, index = [], [], 0, 0, 0
    while index < len(text):
        character = text[index]
        match = separator.match(text, index) if depth == 0 else None
        if match and match.end() > index:
            parts.append(text[start:index].strip())
            matches.append(match.group())
            start = index = match.end()
            continue
        # Half-open intervals pair brackets of two kinds, so any closing bracket closes any opening one.
        depth = max(0, depth + (character in _OPEN) - (character in _CLOSE))
        index += 2 if character == "\\" and text[index + 1 : index + 2] not in (*"{}",) else 1
    return [*parts, text[start:].strip()], matches


_SEPARATOR = re.compile(
    r"\s*[,;]\s*(?:(?:\\text\s*\{\s*)?(?:and|or)\b(?:\s*\})?\s*)?|\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*"
)


def listed(text: str) -> list[str]:
    """The elements of a bare list, `1, 2 and 3`; a single element if it is none."""
    return [part for part in split(text, _SEPARATOR) if part]


class Bracketed(NamedTuple):
    """What one pair of brackets encloses."""

    opening: str
    closing: str
    elements: list[str]


def bracketed(text: str) -> Bracketed | None:
    """The pair of brackets around the whole of a tidied `text` with its elements, or None."""
    for opening in ("\\{", "(", "["):
        for closing in ("\\}", ")", "]"):
            if text.startswith(opening) and text.endswith(closing) and (opening == "\\{") == (closing == "\\}"):
                inside = text[len(opening) : -len(closing)]
                if _balanced(inside):
                    return Bracketed(opening, closing, listed(inside))
    return None


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            return False
    return depth == 0
