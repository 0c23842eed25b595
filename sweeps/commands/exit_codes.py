"""The exit codes of commands, and the sentence on standard error about what went wrong.

0: success. 1: a valid request failed. 2: a user's mistake. 130: Ctrl-C.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from typer import Abort, BadParameter

from pipelines.logs import is_debugging, set_up_logging
from sweeps.compose.error_messages import sentence


@contextlib.contextmanager
def exit_codes(program: str) -> Iterator[None]:
    """Run the body of the command `program`; an exception becomes a sentence and an exit code.

    With `--debug` or `SHAPING_DEBUG` the exception is raised unchanged.
    """
    try:
        set_up_logging()
        yield
    except (Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # A pager was closed; without this Python would report it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except Exception as error:
        if is_debugging():
            raise
        print(f"{program}: {_typer_message(error) or sentence(error)}", file=sys.stderr)
        is_mistake = isinstance(error, HydraException | OmegaConfBaseException)
        sys.exit(2 if is_mistake else getattr(error, "exit_code", 1))


def _typer_message(error: Exception) -> str:
    """Returns typer's message, which for a wrong value names its option or argument; empty for other errors."""
    message: str = error.format_message() if hasattr(error, "format_message") else ""
    return " ".join(message.split()) if isinstance(error, BadParameter) else message
