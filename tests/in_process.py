"""Runs the project's commands in the process of the tests.

A new process takes a second to start, and `shaping-run` starts a fork server that imports torch; here all commands
share both. Tests that kill a command or replace its stages start it as a separate process instead.
"""

import contextlib
import importlib
import io
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

Result = subprocess.CompletedProcess[str]


def in_process(module: str, *arguments: str, cwd: Path, environment: Mapping[str, str]) -> Result:
    """Returns the output and the exit status of `python -m module arguments`."""
    main = importlib.import_module(module).main
    output, errors = io.StringIO(), io.StringIO()
    status: object = 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        patch.object(sys, "argv", [module, *arguments]),
        patch.dict(os.environ, environment, clear=True),
    ):
        try:
            main()
        except SystemExit as exit_request:
            status = exit_request.code or 0
        except Exception:
            traceback.print_exc()
            status = 1
    assert isinstance(status, int)
    return Result(arguments, status, output.getvalue(), errors.getvalue())
