"""The ways in which a command can end badly, as exceptions that carry one plain sentence.

`UserError` is a mistake that the person at the keyboard can mend: exit code 2. `StageFailure` is work that
went wrong though the request was sound: exit code 1. Commands print the sentence and no traceback. `Interrupted` is
no failure: a stage that was asked to stop has saved its trainer state and goes on from it later.
"""

import difflib
import math
from collections.abc import Iterable


class UserError(Exception):
    """Something the user asked for cannot be done; the message names the key, the value and the way out."""

    exit_code = 2


class StageFailure(Exception):
    """A stage run or a part of the machine failed; the message names it and where its log lies."""

    exit_code = 1


class MissingData(Exception):
    """The data set of one benchmark is neither here nor reachable; the others are measured all the same."""


class Interrupted(Exception):
    """A stage was asked to stop between two steps; its trainer state is saved, and the next attempt goes on there."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A phrase that names the allowed words, the one nearest to `word` first: `did you mean 'ce'? (ce, ...)`."""
    options = list(allowed)
    if word in options:
        return ""  # nothing to mend: checks word their way out before they know that all is well
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    listing = ", ".join(options)
    return f"did you mean {close[0]!r}? (one of: {listing})" if close else f"it is one of: {listing}"


def require(condition: bool, key: str, value: object, way_out: str) -> None:
    """Raise the `UserError` "key=value: way_out" unless `condition` holds."""
    if not condition:
        raise UserError(f"{key}={value}: {way_out}")


def require_positive(prefix: str, owner: object, *names: str) -> None:
    """Raise a `UserError` unless these numbers of `owner`, whose keys begin with `prefix`, are finite and above 0."""
    for name in names:
        value = getattr(owner, name)
        require(math.isfinite(value) and value > 0, f"{prefix}.{name}", value, "it must be finite and above 0")


def require_fraction(prefix: str, owner: object, *names: str) -> None:
    """Raise a `UserError` unless these numbers of `owner`, whose keys begin with `prefix`, lie between 0 and 1."""
    for name in names:
        value = getattr(owner, name)
        require(0 <= value <= 1, f"{prefix}.{name}", value, "it must lie between 0 and 1")


def require_momentum(prefix: str, owner: object) -> None:
    """Raise a `UserError` unless AdamW's `adam_beta1` and `adam_beta2` of `owner` lie in [0, 1)."""
    for name in ("adam_beta1", "adam_beta2"):
        value = getattr(owner, name)
        require(0 <= value < 1, f"{prefix}.{name}", value, "it must lie in [0, 1)")
