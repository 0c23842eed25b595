"""Texts of others on their way to a terminal, a spreadsheet and a reader of JSON."""

import csv
import io
import json
import sys
import unicodedata
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.live import Live
from rich.table import Table
from rich.text import Text

from analysis.table_files import csv_bytes
from pipelines.foreign_text import console, defused, parsed, printable, printable_streams, printable_values, shortened

ATTACKS = {
    "clears the screen": "\x1b[2J\x1b[H",
    "sets the title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\",
    "writes the clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "asks for an answer": "\x1b[6n",
    "device control": "\x1bP+q544e\x1b\\",
    "C1 introducer": "\x9b2J",
    "overwrites the line": "failed\rdone  ",
    "backspaces": "failed\b\b\b\b\b\bdone",
    "bell and delete": "\x07\x7f",
    "reverses": "\u202edenon\u202c",
    "isolates": "\u2066a\u2069",
    "line separator": "a\u2028b",
    "half a pair": "\ud83d",
    "null": "\x00",
    "hidden colour": "\x1b[8msecret\x1b[0m",
    "form feed": "\x0c\x0b",
    "unfinished": "\x1b[31",
}
FORBIDDEN = {"Cc", "Cs", "Zl", "Zp"}


def assert_harmless(text: str, allowed: str = "\n\t") -> None:
    bad = [c for c in text if unicodedata.category(c) in FORBIDDEN and c not in allowed]
    bad += [c for c in text if unicodedata.bidirectional(c) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI"}]
    assert not bad, text


@pytest.mark.parametrize("name", ATTACKS)
def test_no_control_character_is_printed(name: str) -> None:
    attack = ATTACKS[name]
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        patch.setattr(sys, "stderr", errors)
        with printable_streams():
            print(attack, "after")
            print(attack, file=sys.stderr)
            sys.stdout.writelines([attack, "\n"])
            terminal = console(force_terminal=True, color_system=None, width=60)
            terminal.print(attack, markup=False)
            terminal.print(Text(attack))
            table = Table("name", title=Text(attack))
            table.add_row(Text(attack))
            terminal.print(table)
    assert_harmless(output.getvalue())
    assert_harmless(errors.getvalue())
    assert "after" in output.getvalue()
    output.getvalue().encode()


def test_a_live_display_keeps_its_own_sequences_only() -> None:
    """What is printed while it is shown passes through it."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        with printable_streams():
            terminal = console(force_terminal=True, color_system="standard", width=60)
            with Live(Text("title\x1b]0;owned\x07", style="bold"), console=terminal, auto_refresh=False):
                print("printed\x1b]52;c;ZXZp\x07")
                terminal.print(Text("shown\x1b[6n"))
    text = output.getvalue()
    assert "\x1b[1m" in text  # bold, of the display
    assert "\x1b[?25l" in text  # it hides the cursor
    for attack in ("\x1b]0", "\x1b]52", "\x1b[6n", "\x07"):
        assert attack not in text


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec=None)))
def test_any_text_becomes_harmless_and_stays_so(text: str) -> None:
    shown = printable(text)
    assert_harmless(shown)
    assert printable(shown) == shown
    shown.encode()
    if text.isprintable() and not any(unicodedata.category(c) == "Cf" for c in text):
        assert shown == text


def test_colours_of_logs_are_dropped_and_text_is_kept() -> None:
    assert printable("\x1b[1;34mwandb\x1b[0m: ok\n\ttab ü 漢 👍🏽 β") == "wandb: ok\n\ttab ü 漢 👍🏽 β"
    assert printable("\x1b[2J") == "\\x1b[2J"
    value = {"a\x07": ["\x1b", 1.5, None, {"b": ("\u202e",)}]}
    assert printable_values(value) == {"a\\x07": ["\\x1b", 1.5, None, {"b": ["\\u202e"]}]}


FORMULAS = [
    "=1+1",
    "=HYPERLINK(1)",
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\n\n=1",
    "=1\n=2",
    " =1",
    "＝1+1",
    "\n=1",
    "-",
    "+x",
]


@pytest.mark.parametrize("formula", FORMULAS)
def test_cells_that_a_spreadsheet_would_run_are_text(formula: str) -> None:
    assert defused(formula) == f"'{formula}"
    frame = pd.DataFrame({"text": [formula, "plain"], formula: [1.0, -2.5], "list": [[formula], None]})
    head, *rows = csv.reader(io.StringIO(csv_bytes(frame).decode(), newline=""))
    assert head == ["text", f"'{formula}", "list"]
    assert rows[0][:2] == [f"'{formula}", "1.0"]
    assert rows[1][:2] == ["plain", "-2.5"]
    assert list(frame["text"]) == [formula, "plain"]  # the frame, and so Parquet, has the text itself


def test_a_carriage_return_starts_no_row() -> None:
    frame = pd.DataFrame({"a": ["\r=1", "x\r\n=2", "y\r=3"], "b": [1, 2, 3]})
    rows = list(csv.reader(io.StringIO(csv_bytes(frame).decode(), newline="")))
    assert rows == [["a", "b"], ["'\n=1", "1"], ["x\n=2", "2"], ["y\n=3", "3"]]
    assert b"\r" not in csv_bytes(frame)


@pytest.mark.parametrize(
    "cell", ["-0.25", "+1e-5", "-inf", "a=1", "beta = -0.5", "", "–", "'quoted", -3, None, 2.5, True]
)
def test_numbers_and_other_texts_stay(cell: Any) -> None:
    assert defused(cell) is cell


def test_halves_of_surrogate_pairs_are_replaced() -> None:
    row = {"question": "\ud83d?", "\udc00": ["\ud83d\udc4d", "\ud800\ud800", 1], "ok": "👍"}
    read = parsed(json.dumps(row).encode())
    assert read == {"question": "\ufffd?", "\ufffd": ["👍", "\ufffd\ufffd", 1], "ok": "👍"}
    json.dumps(read, ensure_ascii=False).encode()
    assert str(parsed("[NaN]")) == "[nan]"
    with pytest.raises(json.JSONDecodeError):
        parsed(b'{"a": ')


def test_long_texts_say_how_much_is_left_out() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("x" * 10_000_000, 5) == "xxxxx… (9,999,995 more characters)"
