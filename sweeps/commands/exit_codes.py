"""The exit codes of commands, and the sentence on standard error about what went wrong.

0: success. 1: a valid request failed. 2: a user's mistake. 130: Ctrl-C. 143: SIGTERM, 129: SIGHUP (128 + its number).
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from typer import Abort
from yaml import YAMLError

from pipelines.errors import Stopped
from pipelines.foreign_text import printable_streams
from pipelines.logs import is_debugging, set_up_logging
from sweeps.compose.error_messages import sentence

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""What docker stop, systemd, timeout and a closed terminal send; they stop a command as Ctrl-C does."""


@contextlib.contextmanager
def exit_codes(program: str) -> Iterator[None]:
    """Run the body of the command `program`; an exception becomes a sentence and an exit code.

    With `--debug` or `SHAPING_DEBUG` the traceback comes first. What is printed is free of control characters.
    """
    with printable_streams(), _exceptions_as_exit_codes(program):
        yield


@contextlib.contextmanager
def _exceptions_as_exit_codes(program: str) -> Iterator[None]:
    received: list[int] = []
    try:
        set_up_logging()
        with _stop_signals_as_ctrl_c(received):
            yield
    except (Abort, KeyboardInterrupt):
        sys.exit(128 + (received or [signal.SIGINT])[0])
    except BrokenPipeError:
        # A pager was closed; without this Python would report it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + received[0] if received else 0)
    except Exception as error:
        if is_debugging():
            traceback.print_exc()
        if type(error).__name__ == "NoArgsIsHelpError":  # a command without a subcommand
            print(_typer_message(error))
            sys.exit(0)
        print(f"{program}: {_typer_message(error) or sentence(error)}", file=sys.stderr)
        is_mistake = isinstance(error, HydraException | OmegaConfBaseException | YAMLError | UnicodeDecodeError)
        sys.exit(2 if is_mistake else getattr(error, "exit_code", 1))


@contextlib.contextmanager
def _stop_signals_as_ctrl_c(received: list[int]) -> Iterator[None]:
    """Raise `Stopped` at the first of `STOP_SIGNALS` within this context; their numbers go to `received`.

    Further ones change nothing: a closed terminal sends two.
    """

    def stop(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1:
            raise Stopped

    # Only the main thread can set handlers. What nohup ignores stays ignored.
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [n for n in STOP_SIGNALS if is_main and signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN if received else signal.SIG_DFL)


def _typer_message(error: Exception) -> str:
    """Returns typer's message, which for a wrong value names its option or argument; empty for other errors."""
    if not hasattr(error, "format_message"):
        return ""
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.format_message())
    message = " ".join(error.format_message().split())
    has_fix = message.startswith("Invalid value") or "Did you mean" in message
    return message if has_fix else f"{message.rstrip('.')}; --help lists what the command takes"
