"""Values of any text on a command line: what Hydra refuses has a way out that works when it is typed into a shell."""

import re
import subprocess

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sweeps.compose.unparsed import why_unparsed

SIGNS = st.text("ab1 .,:;=#&@!?%(){}[]'\"<>|*+-~^ü$`", min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(value=SIGNS)
@example(value="a#b")
@example(value="a=b")
@example(value='say "hi" #')
@example(value="$HOME;`id`")
@example(value="it's a#b")
@example(value="[1,2")
@example(value="1,,2")
def test_a_quoted_value_is_the_text_itself(value: str) -> None:
    """Read by a shell, and parsed by Hydra."""
    parser = OverridesParser.create()
    try:
        parser.parse_override(f"scale={value}")
        assume(False)
    except HydraException as error:
        message = why_unparsed(f"scale={value}", str(error))
    assert "\n" not in message
    if found := re.search(r"quote the value: (\".*\")$", message):
        shell = subprocess.run(["sh", "-c", f"printf %s {found.group(1)}"], capture_output=True, text=True, cwd="/proc")
        typed = shell.stdout
        override = parser.parse_override(typed)
        assert override.key_or_group == "scale"
        assert override.value() == value.strip("'\"")
    else:
        assert "no value beside a comma" in message or "so write it as choice" in message


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab1./@-_ =+~#", min_size=1, max_size=8))
@example(text="=")
@example(text="--x")
def test_every_refusal_is_a_sentence_without_a_line_break(text: str) -> None:
    try:
        OverridesParser.create().parse_override(text)
    except HydraException as error:
        message = why_unparsed(text, str(error))
        assert message.startswith("it is not of the form key=value")
        assert "\n" not in message
