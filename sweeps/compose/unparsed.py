"""Why Hydra's grammar cannot read an override, and how to write it instead."""

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

NEEDS_QUOTES = re.compile(r"[^\w/\-\\+.$%*@?|:=,\[\]{}() \t'\"]|[^\x00-\x7f]")
"""Characters that occur only in quoted values."""
PAIRS = {"(": ")", "[": "]", "{": "}"}


def why_unparsed(override: str, reason: str) -> str:
    """Returns what is wrong with an override that Hydra's parser refuses for `reason`, and the fix."""
    key, equals, value = override.partition("=")
    if not equals:
        return (
            f"it is not of the form key=value; if it belongs to the value before it, quote them together: 'key=a {key}'"
            if key and not key.startswith("-")
            else "it is not of the form key=value"
        )
    form = "it is not of the form key=value"
    if not _is_key(key):
        return f"{form}; a key has letters, digits, _, - and dots: {_plain_key(key)}=..."
    if evaluated := re.search(r"while evaluating '.*?': (.*)", reason):
        return f"{form}; {evaluated.group(1)}, so write it as choice(1,2), range(1,4), glob(*) or 1,2,3"
    quoted = f"quote the value: {_quoted(key, value)}"
    unquoted = re.sub(r"'(\\.|[^'])*'|\"(\\.|[^\"])*\"", "''", value)
    if unquoted.count("'") % 2 or unquoted.count('"') % 2:
        return f"{form}; a quotation mark is not closed; close it, or {quoted}"
    if special := NEEDS_QUOTES.search(unquoted):
        return f"{form}; Hydra reads {special.group()!r} only inside quotes, so {quoted}"
    if bracket := _unbalanced(unquoted):
        return f"{form}; {bracket!r} has no counterpart; add it, or {quoted}"
    if re.search(r"(^|,)\s*(,|$)", unquoted) or re.search(r"[\[{(]\s*,|,\s*([\]}),]|$)", unquoted):
        return f"{form}; there is no value beside a comma; write the value or leave the comma out"
    return f"{form}; if it is text, {quoted}"


def _is_key(key: str) -> bool:
    try:
        OverridesParser.create().parse_override(f"{key}=1")
    except HydraException:
        return False
    return True


def _plain_key(key: str) -> str:
    plain = re.sub(r"[^\w$./@-]+", "", key).strip("./@-")
    return (plain.replace("/", "") if "." in plain else plain) or "key"


def _quoted(key: str, value: str) -> str:
    """Returns an override with its value quoted for Hydra, all of it quoted for a shell."""
    value = value.strip("'\"").replace("'", "\\'")
    # What a shell would interpret between double quotes.
    value = re.sub(r'(["$`])', r"\\\1", value)
    return f"\"{key}='{value}'\""


def _unbalanced(text: str) -> str | None:
    """Returns a bracket in `text` that is not closed or not opened; None if there is none."""
    opened: list[str] = []
    for character in text:
        if character in PAIRS:
            opened.append(character)
        elif character in PAIRS.values() and (not opened or PAIRS[opened.pop()] != character):
            return character
    return opened[-1] if opened else None
