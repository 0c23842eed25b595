"""`shaping-sweeps` within the tests' process: one of its own takes a second of a core, and most of them only look."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

from sweeps.commands import main

Result = subprocess.CompletedProcess[str]


def shaping_sweeps(*arguments: str, cwd: Path, environment: Mapping[str, str]) -> Result:
    """What it would print and how it would exit; in a process of its own where it starts workers (`retry`)."""
    if arguments[0] == "retry":
        command = [sys.executable, "-m", "sweeps.commands", *arguments]
        return subprocess.run(
            command, cwd=cwd, env={**environment}, capture_output=True, text=True, check=False, timeout=200
        )
    output, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        patch.object(sys, "argv", ["shaping-sweeps", *arguments]),
        patch.dict(os.environ, environment, clear=True),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code
    assert isinstance(status, int)
    return Result(arguments, status, output.getvalue(), errors.getvalue())
