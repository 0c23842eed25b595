"""Extraction of the final answer from a worked solution: the last box, the text after the last "the answer is", or the
last number.

Every search is a scan from left to right without backtracking, so it takes linear time for any text. The answer is not
interpreted here; a verifier does that.
"""

import re
from collections import deque

LONGEST = 1 << 16
"""Only this many characters at the end of a response are searched, since the answer comes last."""

_PHRASE = re.compile(
    r"(?:final answer|answers?|result)\b[^\S\n]{0,8}(?:is|are|:|=|to be)[^\S\n]{0,8}"
    r"(?:that[^\S\n]{1,8})?(?:the final answer is[^\S\n]{1,8})?[:=]?",
    re.IGNORECASE,
)
_HASHES = "####"
_NUMBER = re.compile(r"-?\$?(?<![\d.,])-?(?:\d{1,3}(?:,\d{3}){1,8}(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?%?")
_CLOSERS = ("I hope it is correct", "Therefore", "\n", "Question:", "Problem:", "Q:")
_BOXES = ("\\boxed", "\\fbox")


def final_answer(text: str) -> str | None:
    """The final answer of `text`, stripped, or None if it has none.

    It is the first of these that exists: the last \\boxed{...} or \\fbox{...} with balanced braces; the text after the
    last ####; the text after the last "answer is", "answer:" or "result is", up to the end of the sentence; the last
    number. Reasoning before </think> is ignored.
    """
    text = text[-LONGEST:]
    _, thought, after = text.rpartition("</think>")
    text = after if thought else text
    return last_boxed(text) or _after_hashes(text) or _after_phrase(text) or _last_number(text) or None


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
            inside = _balanced(content)
            if inside is not None:
                return inside.strip() or None
        elif content:
            return re.split(r"[\s$.,]", content, maxsplit=1)[0] or None
        end = index
        index = max(text.rfind(box, 0, index) for box in _BOXES)
    return None


def _balanced(text: str) -> str | None:
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


def _after_hashes(text: str) -> str | None:
    """The rest of the line after the last ####."""
    if _HASHES not in text:
        return None
    return text.rsplit(_HASHES, 1)[1].split("\n", 1)[0].strip() or None


def _after_phrase(text: str) -> str | None:
    """The rest of the sentence after the last phrase such as "the answer is", without Markdown and math delimiters."""
    last = _last(_PHRASE, text)
    if last is None:
        return None
    answer = text[last.end() :].lstrip(" :=*\n")
    for closer in _CLOSERS:
        answer = answer.split(closer, 1)[0]
    answer = _sentence(answer).strip().strip("*").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if answer.startswith(opening) and closing in answer[len(opening) :]:
            return answer[len(opening) :].split(closing, 1)[0].strip() or None
    return answer.rstrip(".,;!") or None


def _sentence(text: str) -> str:
    """`text` up to the first full stop that ends a sentence; one inside a number does not."""
    for index in range(len(text)):
        if text[index] == "." and (index + 1 == len(text) or text[index + 1].isspace()):
            return text[:index]
    return text


def _last_number(text: str) -> str | None:
    """The last number, without dollar signs and thousands separators."""
    last = _last(_NUMBER, text)
    return last.group().replace("$", "").replace(",", "") if last else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match of a pattern."""
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)
