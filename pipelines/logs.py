"""Logging: one logger per package (`pipelines`, `sweeps`, `analysis`), set up once per process.

A stage run logs its setup at the start, then every ledger row, milestone and saved trainer state, and its end. The
commands pass the level to the workers they start in `SHAPING_LOG_LEVEL`.
"""

import logging
import os
import sys
import warnings

from pipelines.errors import UserError

LEVEL_VARIABLE = "SHAPING_LOG_LEVEL"
"""Environment variable with the log level of a process: a name such as `DEBUG`."""
DEBUG_VARIABLE = "SHAPING_DEBUG"
"""Environment variable that, if set, makes commands show tracebacks and log at level DEBUG."""

PACKAGES = ("pipelines", "sweeps", "analysis")
QUIET = ("submitit", "lightning.pytorch", "lightning.fabric", "httpx", "latex2sympy2_extended")
"""Libraries whose lines below WARNING do not help a reader of a stage run's log."""
SILENCED = ("transformers.utils.generic", "math_verify")
"""Libraries whose warnings do not help either: deprecated names of arguments, and that there is no time limit."""


class _StandardError(logging.StreamHandler):
    """Writes to what `sys.stderr` is at the time of the log line, so that a redirection is followed."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


_handler = _StandardError()
_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))


def is_debugging() -> bool:
    """Whether `--debug` or `SHAPING_DEBUG` asks for tracebacks and all log lines."""
    return bool(os.environ.get(DEBUG_VARIABLE))


def set_up_logging(level: str | None = None) -> None:
    """Write the packages' log lines of `level` and above to standard error, and silence noisy libraries.

    `level` defaults to `SHAPING_LOG_LEVEL`, else to DEBUG with `SHAPING_DEBUG`, else to INFO. Another call only
    changes the level. Raises `UserError` for an unknown level.
    """
    level = (level or os.environ.get(LEVEL_VARIABLE) or ("DEBUG" if is_debugging() else "INFO")).upper()
    levels = logging.getLevelNamesMapping()
    if level not in levels:
        raise UserError(f"{LEVEL_VARIABLE}={level}: it is one of: {', '.join(levels)}")
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False  # a library may have added a handler to the root logger
        logger.addHandler(_handler)  # has no effect if it was added before
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in SILENCED:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not is_debugging():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
