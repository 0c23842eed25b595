"""`shaping-sweeps`: all its commands under one name, and how it ends."""

import os
import sys

import typer

from pipelines.errors import UserError
from sweeps import plan_commands, run_commands, store_commands  # noqa: F401  (they register their commands, in order)
from sweeps.command_line import app


def main() -> None:
    """Run the command line; exits with 0, with 1 for failures, 2 for a user's mistake, 130 after Ctrl-C."""
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a pager was closed
        sys.exit(0)
    except Exception as error:
        if os.environ.get("SHAPING_DEBUG"):
            raise
        message = error.format_message() if isinstance(error, typer.BadParameter) else getattr(error, "message", None)
        if message is None:
            from sweeps.sentences import sentence

            message = sentence(error)
        print(f"shaping-sweeps: {message}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) or getattr(error, "exit_code", 1) == 2 else 1)


if __name__ == "__main__":
    main()
