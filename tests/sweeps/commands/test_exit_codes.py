"""What a command that ends early says, and the exit code that a shell sees."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal
from pipelines.errors import StageFailure, UserError
from sweeps.commands.exit_codes import exit_codes
with exit_codes("shaping-run"):
    {body}
"""


@pytest.mark.parametrize(
    ("body", "code", "errors"),
    [
        ("pass", 0, ""),
        ("raise UserError('seed=x: it is no number')", 2, "shaping-run: seed=x: it is no number\n"),
        ("raise StageFailure('a stage failed')", 1, "shaping-run: a stage failed\n"),
        ("raise ValueError('one\\ntwo')", 1, "shaping-run: ValueError: one two\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, ""),
        ("os.kill(os.getpid(), signal.SIGHUP)", 129, ""),
        ("raise BrokenPipeError", 0, ""),
        # A pager that ends with the command, at a signal.
        (
            "try:\n        os.kill(os.getpid(), signal.SIGTERM)\n    except BaseException:\n"
            "        os.kill(os.getpid(), signal.SIGHUP)\n        raise BrokenPipeError",
            143,
            "",
        ),
    ],
)
def test_every_end_has_its_code(body: str, code: int, errors: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == code
    if errors:
        assert ended.stderr == errors
    else:
        assert "Traceback" not in ended.stderr
