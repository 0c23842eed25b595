"""The project's commands within the tests' process. One of its own takes a second of a core to begin, and
`shaping-run` starts a fork server that imports torch and the rest; here that is kept from command to command.

What tests kill, or run with other stages than the real ones, starts as a process of its own.
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
    """What `python -m module arguments` would print, and how it would exit."""
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
        except SystemExit as end:
            status = end.code or 0
        except Exception:
            traceback.print_exc()
            status = 1
    assert isinstance(status, int)
    return Result(arguments, status, output.getvalue(), errors.getvalue())
