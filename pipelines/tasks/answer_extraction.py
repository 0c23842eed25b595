"""The final answer in a worked solution: what stands in the last box, after the last "the answer is", or last of all.

Every search is a scan from left to right with no backtracking, so no text, however hostile, takes more than linear
time. What is found is handed to a verifier, which decides what it means.
"""

import re
from collections import deque

LONGEST = 1 << 16
"""Characters from the end of a response that are looked at: the answer comes last."""

_SAYS = re.compile(
    r"(?:final answer|answers?|result)\b[^\S\n]{0,8}(?:is|are|:|=|to be)[^\S\n]{0,8}"
    r"(?:that[^\S\n]{1,8})?(?:the final answer is[^\S\n]{1,8})?[:=]?",
    re.IGNORECASE,
)
_HASHES = "####"
_NUMBER = re.compile(r"-?\$?(?<![\d.,])-?(?:\d{1,3}(?:,\d{3}){1,8}(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?%?")
_CLOSERS = ("I hope it is correct", "Therefore", "\n", "Question:", "Problem:", "Q:")
_BOXES = ("\\boxed", "\\fbox")


def final_answer(text: str) -> str | None:
    """The final answer of `text`, stripped, or None where it gives none.

    In this order: the last whole \\boxed{...} or \\fbox{...}, braces balanced; what follows the last ####; what
    follows the last "answer is", "answer:" or "result is", to the end of its sentence; the last number. Reasoning
    before </think> does not count.
    """
    text = text[-LONGEST:]
    _, thought, after = text.rpartition("</think>")
    text = after if thought else text
    for found in (last_boxed(text), _after_hashes(text), _after_words(text), _last_number(text)):
        if found:
            return found
    return None


def last_boxed(text: str) -> str | None:
    """The content of the last box whose braces close, however deeply nested; `\\boxed 5` without braces counts."""
    place = max(text.rfind(box) for box in _BOXES)
    end = len(text)
    for _ in range(8):  # an unclosed box at the end does not hide the one before it; a text of boxes is no answer
        if place < 0:
            return None
        start = place + (6 if text.startswith("\\boxed", place) else 5)
        rest = text[start:end].lstrip(" ")
        if rest.startswith("{"):
            inside = _balanced(rest)
            if inside is not None:
                return inside.strip() or None
        elif rest:
            return re.split(r"[\s$.,]", rest, maxsplit=1)[0] or None
        end = place
        place = max(text.rfind(box, 0, place) for box in _BOXES)
    return None


def _balanced(text: str) -> str | None:
    """What stands between the brace that `text` begins with and the one that closes it; escaped braces are text."""
    depth, escaped = 0, False
    for place, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[1:place]
    return None


def _after_hashes(text: str) -> str | None:
    if _HASHES not in text:
        return None
    return text.rsplit(_HASHES, 1)[1].split("\n", 1)[0].strip() or None


def _after_words(text: str) -> str | None:
    last = _last(_SAYS, text)
    if last is None:
        return None
    said = text[last.end() :].lstrip(" :=*\n")
    for closer in _CLOSERS:
        said = said.split(closer, 1)[0]
    said = _sentence(said).strip().strip("*").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if said.startswith(opening) and closing in said[len(opening) :]:
            return said[len(opening) :].split(closing, 1)[0].strip() or None
    return said.rstrip(".,;!") or None


def _sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence; one inside a number does not."""
    for place in range(len(text)):
        if text[place] == "." and (place + 1 == len(text) or text[place + 1].isspace()):
            return text[:place]
    return text


def _last_number(text: str) -> str | None:
    last = _last(_NUMBER, text)
    return last.group().replace("$", "").replace(",", "") if last else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)
