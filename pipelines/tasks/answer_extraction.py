"""Extraction of the final answer from a worked solution: the last box, the text after the last "the answer is", the
conclusion of the last sentence, or the last value.

Every search is a scan from left to right with bounded backtracking, so it takes linear time for any text. The answer is
not interpreted here; a verifier does that.
"""

import re
from collections import deque

from pipelines.verifiers.answer_text import last_boxed

LONGEST = 1 << 16
"""Only this many characters at the end of a response are searched, since the answer comes last."""

_END_TOKENS = re.compile(r"(?:\s{0,8}<\|?[/\w]{1,20}\|?>){1,8}\s{0,8}$")
_HASHES = "####"
_PHRASE = re.compile(
    r"\b(?:answers?|result)\b[*_]{0,2}[^\S\n]{0,8}(?:[A-Za-z',()]{1,20}[^\S\n]{1,8}){0,8}?"
    r"(?:(?:is|are|was|be|becomes|equals|to be)\b[*_]{0,2}|[:=][*_]{0,2})[^\S\n]{0,8}"
    r"(?:that[^\S\n]{1,8})?(?:the final answer is[^\S\n]{1,8})?[:=]?",
    re.IGNORECASE,
)
_CLOSERS = ("I hope it is correct", "Question:", "Problem:", "Q:")
_EXPLANATION = re.compile(
    r",?\s(?:since|because|as (?:we|the|its?|this|there|he|she|they|shown|required|\$?\\?\(?\d)|given that|due to|"
    r"where|which|that is|i\.e|e\.g|namely|so that|so|hence|thus|therefore|and (?:so|thus|not)|not|but|rather than|"
    r"instead of|when we)\b"
    r"|,\s(?:as|from|by|using|with|after|for|at|when|(?:in|ex)cluding|giving|making|leaving|meaning|assuming|"
    r"[a-z]{3,12}ed)\s"
    r"|\s(?:when |if )?rounded\b|\sto (?:the nearest|(?:\d|one|two|three|four) (?:decimal|significant))\b"
    r"|\s\((?=(?:[a-z]{3,12}|[\d.]{1,12}\\?%)\))"
    r"|\s\((?!or\b)(?=[^()]{0,200}(?:\s|=)[^()]{0,200}\))(?!\s*-?[\d.]+\s*,)|\s[-–—]{1,2}\s(?!or\b)(?=[A-Za-z]{2})",
    re.IGNORECASE,
)
"""Where the explanation of an answer begins."""
_CIRCUMSTANCE = re.compile(
    r"(?<=[a-z]) (?:after|in|for|on|at|by|out of|from|during|every|each|when|if|with) (?!total\b)"
)
"""What follows an amount and its unit: 18 eggs after 3 days."""
_FILLER = re.compile(
    r"(?:(?:therefore|thus|hence|so|then|clearly|indeed|also|now|simply|just|exactly|actually|still|of course|"
    r"in fact|the number|option|choice|equal to|"
    r"given by|not [^\n]{1,80}? but(?: rather)?|found to be|likely|probably|definitely)\b,?|[:=*\s]|^,\s)+",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"(?:indeed |also |definitely |therefore )?(?:correct|right|wrong|incorrect|consistent|verified|valid|reasonable|"
    r"confirmed|clear|as follows|below|above|given|found|obtained|plausible|sensible|unique)\W*",
    re.IGNORECASE,
)
"""What follows "the answer is" where the answer itself is elsewhere."""
_CONNECTOR = re.compile(r",? (?:and|or) |, ")
_CHOSEN = re.compile(
    r"(?:(?:option|choice|answer) )?(\(?[A-J]\)?|\*\*\(?[A-J]\)?\*\*) is (?:therefore |thus )?"
    r"(?:correct|right|the (?:(?:correct |right |final )?(?:answer|option|choice)|(?:correct|right) one))\b"
)
_CONCLUSION = re.compile(r"\b(?:therefore|thus|hence|so|consequently|in conclusion|finally|conclude)\b", re.IGNORECASE)
_IS = re.compile(r"\b(?:is|are|equals|be|was|were)\b|(?<![<>!\\])=")

_MINUS = re.compile(r"[−﹣－]|(?<![\w)\]}–-])[–‐‑](?=[\d.$\\½⅓⅔¼¾])")
"""Signs of minus; a dash is one right before a number, where it does not follow another number or word."""
_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,8}(?!\d)|\d{1,400})(?:\.\d{1,400})?"
_UNICODE_FRACTION = "[½¼¾⅓⅔⅕-⅞]"
_LATEX = r"\\[dtc]?frac\s?\{[^{}]{1,60}\}\s?\{[^{}]{1,60}\}|\\sqrt\s?\{[^{}]{1,60}\}|\\pi"
_OPERAND = (
    rf"(?:\\?\$)?(?:{_DIGITS}(?: \d{{1,9}}/\d{{1,9}}|(?:{_LATEX})+|(?::\d{{1,4}}(?!\d)){{1,3}}"
    rf"|[⁰¹²³⁴-⁹⁻]{{1,9}}|{_UNICODE_FRACTION})?"
    rf"|\.\d{{1,400}}|{_UNICODE_FRACTION}|(?:{_LATEX})+)(?:\\?%|!(?=[\s.,]))?"
)
_VALUE = re.compile(
    r"\$\$[^$]{1,500}\$\$|(?<!\\)\$[^$\n]{1,400}(?<!\\)\$(?!\d)|\\\([^\n]{1,400}?\\\)|\\\[.{1,500}?\\\]"
    r"|\*\*[^*\n]{1,200}\*\*"
    rf"|(?:[A-Za-z]\s?=\s?-?(?:{_OPERAND})(?:,? (?:and|or) |, )(?=[A-Za-z]\s?=)){{1,20}}[A-Za-z]\s?=\s?-?(?:{_OPERAND})"
    rf"|(?<![^\s:=])(?:\\?\{{|[(\[])\s?-?(?:{_OPERAND})(?:\s?,\s?-?(?:{_OPERAND})){{1,20}}\s?(?:\\?\}}|[)\]])"
    rf"|(?:(?<![\w)}}\].])-|(?<=[=:(]\s)-\s|(?<![\w.]))(?:{_OPERAND})(?:\s?(?:\*\*|[-+*/×^÷])\s?(?:{_OPERAND}))*",
    re.DOTALL,
)
"""Mathematics between delimiters, bold text, or numbers, perhaps with operators between them."""


def final_answer(text: str) -> str | None:
    """The final answer of `text`, stripped, or None if it has none.

    It is the first of these that exists: the last \\boxed{...} or \\fbox{...} with balanced braces; the text after the
    last ####; the text after the last "answer is", "answer:" or "result is", without explanations; what the last
    sentence says that something is, if it begins as a conclusion; the last formula or number. Reasoning before </think>
    is ignored.
    """
    text = _MINUS.sub("-", text[-LONGEST:])
    _, thought, after = text.rpartition("</think>")
    text = _END_TOKENS.sub("", after if thought else text)
    return (
        last_boxed(text) or _after_hashes(text) or _after_phrase(text) or _conclusion(text) or _last_value(text) or None
    )


def last_program(text: str) -> str | None:
    """The last block between ```python and ```, or up to the end of the text; None if there is none."""
    _, opened, program = text.rpartition("```python\n")
    return program.split("```", 1)[0].strip() or None if opened else None


def _after_hashes(text: str) -> str | None:
    """The rest of the line after the last ####."""
    if _HASHES not in text:
        return None
    return text.rsplit(_HASHES, 1)[1].split("\n", 1)[0].strip() or None


def _after_phrase(text: str) -> str | None:
    """The rest of the sentence after the last phrase such as "the answer is" that an answer follows, or the choice
    before "is the answer".
    """
    chosen = deque(_CHOSEN.finditer(text), maxlen=1)
    for phrase in reversed(deque(_PHRASE.finditer(text), maxlen=4)):
        if chosen and chosen[0].start() > phrase.start():
            break
        answer = _answer_at(text[phrase.end() :])
        if answer and not _NO_ANSWER.fullmatch(answer):
            return answer
    return chosen[0].group(1).strip("*") if chosen else None


def _answer_at(text: str) -> str | None:
    """The answer with which `text` begins: its first sentence, without filler, explanation and delimiters."""
    text = re.sub(r"^[:\s*]*\n\s*[-*•]\s+", "", text)  # the item of a list
    if filler := _FILLER.match(text):
        text = text[filler.end() :]
    # A displayed formula may have several lines.
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if text.startswith(opening) and closing in text[len(opening) :]:
            return text[len(opening) :].split(closing, 1)[0].strip().rstrip(".,;").strip() or None
    for closer in (*_CLOSERS, "\n"):
        text = text.split(closer, 1)[0]
    answer = _sentence(text)
    if explanation := _EXPLANATION.search(answer):
        answer = answer[: explanation.start()]
    if re.match(r"\\?\$?\d[\d,./]*\s+[a-z]", answer) and (tail := _CIRCUMSTANCE.search(answer)):
        answer = answer[: tail.start()]
    answer = answer.strip().strip("*_").strip()
    for opening, closing in (("$", "$"), ("\\(", "\\)")):
        inside = answer[len(opening) :].rstrip(".,;")
        if answer.startswith(opening) and inside.endswith(closing) and opening not in inside[: -len(closing)]:
            return inside[: -len(closing)].strip() or None
    # A calculation keeps no separators of thousands, which would make it a list.
    if "=" in answer and re.fullmatch(r"[-+*/=×÷$\d,.\s]+", answer):
        answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    # A factorial at the end of a sentence keeps its sign; an exclamation mark at the very end is none.
    answer = answer.rstrip(".,;: ").rstrip("!") if len(answer) == len(text.strip()) else answer.rstrip(".,;: ")
    return answer.strip('*_"“” ') or None


def _sentence(text: str) -> str:
    """`text` up to the first full stop that ends a sentence; one inside a number or in "a.m." does not."""
    for stop in re.finditer(r"\.(?=[\s*\"'”)]|$)", text):
        if not re.search(
            r"\b(?:[ap]\.m|approx|vs|Rs|sq|cu|St|Mr|Mrs|Dr)$", text[max(0, stop.start() - 8) : stop.start()]
        ):
            return text[: stop.start()]
    return text


def _conclusion(text: str) -> str | None:
    """What the last sentence says that something is: after "so" or "therefore" anything, else a number or formula."""
    line = text.rstrip().rsplit("\n", 1)[-1][-1000:]
    # The sentence begins after the last full stop but that at the end.
    start = 0
    while len(sentence := _sentence(line[start:])) + 1 < len(line) - start:
        start += len(sentence) + 1
    sentence = line[start:].strip()
    concludes = _CONCLUSION.search(sentence)
    if concludes and re.fullmatch(r"\(?[A-J]\)?\.?", sentence[concludes.end() :].lstrip(" ,:")):
        return sentence[concludes.end() :].strip(" ,:.")
    if explanation := _EXPLANATION.search(sentence, 12):
        sentence = sentence[: explanation.start()]
    # Signs of equality inside formulas, or several of them, do not say what the answer is.
    bare = re.sub(r"\$[^$]*\$|\\\(.*?\\\)", lambda match: " " * len(match.group()), sentence)
    verbs = list(_IS.finditer(bare))
    if any(verb.group() != "=" for verb in verbs) or len(verbs) > 1:
        verbs = [verb for verb in verbs if verb.group() != "="]
    answer = _answer_at(sentence[verbs[-1].end() :]) if verbs else None
    if answer and (re.match(r"[$\-\\(\[\d]", answer) or (concludes and not re.search(r"\d|\\", sentence))):
        return answer
    return None


def _last_value(text: str) -> str | None:
    """The last formula, bold text or number, without dollar signs; a number also without thousands separators."""
    matches = list(deque(_VALUE.finditer(text), maxlen=8))
    # Several formulas with only "and", "or" or a comma between them are one answer.
    end = len(matches)
    if end and matches[-1].group().startswith(("$", "\\(")):
        first = end - 1
        while first and _CONNECTOR.fullmatch(text[matches[first - 1].end() : matches[first].start()]):
            first -= 1
        if first < end - 1:
            return re.sub(r"\$|\\[()]", "", text[matches[first].start() : matches[-1].end()]).strip() or None
    for match in reversed(matches):
        value = match.group().strip("$* ")
        value = re.sub(r"^\\[(\[]|\\[)\]]$", "", value).strip().rstrip(".,:;")
        # Bold text is an answer where it is a value, and a heading otherwise.
        if match.group().startswith("**") and not re.search(r"\d|\\", value):
            continue
        if re.search(r"[\d\\A-Za-z½¼¾⅓⅔⅕-⅞]", value):
            return value.replace("$", "").replace(",", "") if re.fullmatch(r"[-\d.,$%/]+", value) else value
    return None
