"""How a command ends: one sentence on standard error for what went wrong, and an exit code that says which kind it was.

0: all went well. 1: work failed though the request was sound. 2: a user's mistake. 130: Ctrl-C.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from typer import Abort, BadParameter

from pipelines.logs import is_debugging
from sweeps.compose.error_messages import sentence


@contextlib.contextmanager
def exit_codes(program: str) -> Iterator[None]:
    """Run a command's body; every exception becomes a sentence that begins with `program`, and an exit code.

    With `--debug` or `SHAPING_DEBUG` the exception is raised as it is.
    """
    try:
        yield
    except (Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a pager was closed; Python would complain again at exit
        sys.exit(0)
    except Exception as error:
        if is_debugging():
            raise
        print(f"{program}: {_typer_message(error) or sentence(error)}", file=sys.stderr)
        is_mistake = isinstance(error, HydraException | OmegaConfBaseException)
        sys.exit(2 if is_mistake else getattr(error, "exit_code", 1))


def _typer_message(error: Exception) -> str:
    """What typer says of a mistake, with the options or the argument that it is about; empty for other errors."""
    message: str = error.format_message() if hasattr(error, "format_message") else ""
    return " ".join(message.split()) if isinstance(error, BadParameter) else message
