"""Exceptions whose message is one plain sentence, and checks that raise them.

Commands print the sentence without a traceback and exit with `exit_code`.
"""

import difflib
import math
from collections.abc import Collection, Iterable


class UserError(Exception):
    """The user asked for something impossible; the message names the key, the value and the fix."""

    exit_code = 2


class StageFailure(Exception):
    """A valid request failed while it ran: a stage run or the machine; the message names it and its log."""

    exit_code = 1


class MissingData(Exception):
    """The data set of a benchmark is neither cached nor reachable; the other benchmarks are still measured."""


class Interrupted(Exception):
    """A stage stopped between two steps because it was asked to; the next attempt resumes from its trainer state."""


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP asked this command to stop; unlike a second Ctrl-C, it does not kill workers that save."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A phrase that lists the allowed words and suggests the one closest to `word`.

    For example `did you mean 'ce'? (one of: ce, precision)`.
    """
    options = list(allowed)
    if not options:
        return "there is nothing that it could name here"
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    listing = ", ".join(options)
    return f"did you mean {close[0]!r}? (one of: {listing})" if close else f"it is one of: {listing}"


def require(condition: bool, key: str, value: object, *, fix: str) -> None:
    """Raise `UserError("key=value: fix")` unless `condition` holds."""
    if not condition:
        raise UserError(f"{key}={value}: {fix}")


def require_option(key: str, value: str, options: Collection[str]) -> None:
    """Raise a `UserError` that suggests the closest option unless `value` is one of `options`."""
    if value not in options:
        raise UserError(f"{key}={value}: {nearest(value, options)}")


def require_positive(prefix: str, part: object, *names: str) -> None:
    """Raise a `UserError` unless these attributes of `part`, whose keys begin with `prefix`, are finite and above 0."""
    for name in names:
        value = getattr(part, name)
        require(math.isfinite(value) and value > 0, f"{prefix}.{name}", value, fix="it must be finite and above 0")


def require_not_negative(prefix: str, part: object, *names: str) -> None:
    """Raise a `UserError` unless these attributes of `part` are finite and 0 or more."""
    for name in names:
        value = getattr(part, name)
        require(math.isfinite(value) and value >= 0, f"{prefix}.{name}", value, fix="it must be finite and 0 or more")


def require_fraction(prefix: str, part: object, *names: str) -> None:
    """Raise a `UserError` unless these attributes of `part` are between 0 and 1."""
    for name in names:
        value = getattr(part, name)
        require(0 <= value <= 1, f"{prefix}.{name}", value, fix="it must be between 0 and 1")


def require_momentum(prefix: str, part: object) -> None:
    """Raise a `UserError` unless AdamW's `adam_beta1` and `adam_beta2` of `part` are in [0, 1)."""
    for name in ("adam_beta1", "adam_beta2"):
        value = getattr(part, name)
        require(0 <= value < 1, f"{prefix}.{name}", value, fix="it must be in [0, 1)")
