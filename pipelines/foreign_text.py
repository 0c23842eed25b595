"""Texts that are not ours (questions, answers, names and errors of a store, logs) on their way to a reader.

A terminal executes control characters, a spreadsheet executes cells, and half a surrogate pair is no text at all.
"""

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

import orjson

if TYPE_CHECKING:
    from rich.console import Console

COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
"""Sequences that change the colour of text, as libraries write them to their logs."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""All of C0, C1 and DEL but tab and newline; marks that reorder a line; halves of surrogate pairs."""
SURROGATES = re.compile("[\ud800-\udfff]")
FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|\t")
"""How a cell begins that a spreadsheet runs."""


def printable(text: str) -> str:
    r"""Returns the text without colours, and with every other control character as its escape: `\x1b`, `\u202e`."""
    return CONTROLS.sub(lambda match: _escape(match[0]), COLOURS.sub("", text))


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def printable_values(value: Any) -> Any:
    """Returns lists and dictionaries with every text in them, keys too, as `printable` returns it."""
    return _mapped(value, printable)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list | tuple) else value


def shortened(text: str, longest: int) -> str:
    """Returns the text, or its first `longest` characters with the number of the others."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text) - longest:,} more characters)"


def parsed(line: str | bytes) -> Any:
    """Returns the value of JSON text, with U+FFFD for halves of surrogate pairs, which no file can have.

    Raises `json.JSONDecodeError`.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:  # also for NaN, which Python reads
        return _mapped(json.loads(line), lambda text: SURROGATES.sub("\ufffd", text))


def defused(cell: Any) -> Any:
    """Returns a cell of a CSV file; a text that a spreadsheet would run as a formula gets an apostrophe in front.

    A number in a text stays a number. A carriage return, which ends a row unless it is quoted, becomes a newline.
    """
    if not isinstance(cell, str):
        return cell
    if "\r" in cell:
        cell = cell.replace("\r\n", "\n").replace("\r", "\n")
    if not FORMULA.match(cell):
        return cell
    with contextlib.suppress(ValueError):
        float(cell)
        return cell
    return f"'{cell}"


class PrintableStream:
    """A text stream whose text is `printable`.

    `rich` writes to `rich_proxied_file` instead, since its own sequences are meant for the terminal; what it shows is
    made printable by `console`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Write the text; returns its length."""
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextlib.contextmanager
def printable_streams() -> Iterator[None]:
    """Within the context, what is printed to standard output and standard error is `printable`."""
    output: Any = PrintableStream(sys.stdout)
    errors: Any = PrintableStream(sys.stderr)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        yield


def console(**options: Any) -> "Console":
    """Returns a terminal of `rich` on standard output, without highlighting, that shows only `printable` text."""
    from rich.console import Console
    from rich.segment import Segment

    class PrintableConsole(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text))

    file = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    return PrintableConsole(highlight=False, soft_wrap=True, file=file, **options)
