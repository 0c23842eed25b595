"""Logging: one logger for each package (`pipelines`, `sweeps`, `analysis`), set up once for each process.

A stage run logs what it works on at its start, every ledger row, milestones, saved states and its end; the level comes
from `SHAPING_LOG_LEVEL`, which the commands set for the workers they start.
"""

import logging
import os
import sys
import warnings

LEVEL_VARIABLE = "SHAPING_LOG_LEVEL"
"""Environment variable with the level of a worker: a name such as `DEBUG`."""
DEBUG_VARIABLE = "SHAPING_DEBUG"
"""Environment variable that, when set, makes commands show tracebacks and log at level DEBUG."""

PACKAGES = ("pipelines", "sweeps", "analysis")
QUIET = ("submitit", "lightning.pytorch", "lightning.fabric", "httpx", "latex2sympy2_extended")
"""Loggers of libraries whose lines below WARNING say nothing to a person who reads a stage run's log."""


def is_debugging() -> bool:
    """Whether the person asked for tracebacks and all log lines, by `--debug` or `SHAPING_DEBUG`."""
    return bool(os.environ.get(DEBUG_VARIABLE))


def set_up_logging(level: str | None = None) -> None:
    """Send the packages' log lines of `level` and above to standard error, and keep libraries' noise out.

    `level` is by default that of `SHAPING_LOG_LEVEL`, else DEBUG with `SHAPING_DEBUG`, else INFO. Calling it again
    changes the level only.
    """
    level = level or os.environ.get(LEVEL_VARIABLE) or ("DEBUG" if is_debugging() else "INFO")
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        if not logger.handlers:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            logger.addHandler(handler)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    if not is_debugging():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
