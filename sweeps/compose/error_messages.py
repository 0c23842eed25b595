"""Errors of Hydra and OmegaConf as one sentence that names the key, the value and the fix."""

import errno
import re
from dataclasses import fields

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from pipelines.configuration.cell import Cell
from pipelines.errors import StageFailure, UserError, nearest
from sweeps.compose.launcher_options import LAUNCHERS

TYPE_NAMES = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false", "String": "text"}
"""OmegaConf's names of types -> what a value must be."""


def sentence(error: BaseException, keys: list[str] | None = None) -> str:
    """Returns one sentence about an error; its own text where nothing can be added.

    `keys` are the existing keys, where they are not those of a cell.
    """
    chain = _chain(error)
    # Our own errors are sentences already.
    for link in chain:
        if isinstance(link, UserError | StageFailure):
            return str(link)
    # Hydra wraps errors, and the first cause says most; some details are only in the text of the outer one.
    cause, text = chain[-1], " ".join(str(error).split())
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return f"{cause.filename or 'a file'}: its disk is full; free some space and type the same command again"
    if missing := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        return _unknown_option(missing.group(1), missing.group(2), text)
    if isinstance(error, OverrideParseException):
        reason = text.split(" See https")[0]
        return f"{error.override}: it is not of the form key=value ({reason})"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown or isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(unknown.group(1) if unknown else "", cause, keys)
    if isinstance(cause, ValidationError):
        return _wrong_type(cause, text)
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key}: it has no value; choose an option of its group or set it"
    if "Config group override must be a string" in text:
        return "an option that reads as a number needs quotes: group='\"nan\"'"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return text
    return f"{type(error).__name__}: {text}"


def _chain(error: BaseException) -> list[BaseException]:
    """Returns the error and its causes, the first cause last."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _unknown_option(group: str, option: str, text: str) -> str:
    listing = re.search(r"Available options in '[^']+': (.*?)(?: Config search path|$)", text)
    # `basic` is Hydra's own launcher and sweeper, which run no graph.
    options = [word for word in listing.group(1).split() if word != "basic"] if listing else []
    return f"{group}={option}: unknown option; {nearest(option, options)}"


def _wrong_type(error: ValidationError, text: str) -> str:
    message = (error.msg or text).split("\n")[0]
    type_name = re.search(r"could not be converted to (\w+)", message)
    fix = f"it must be {TYPE_NAMES.get(type_name.group(1), type_name.group(1))}" if type_name else message
    value = re.search(r"Value '(.*)' of type", message)
    return f"{error.full_key}={value.group(1) if value else error.value}: {fix}"


def _unknown_key(typed: str, cause: BaseException, keys: list[str] | None) -> str:
    """Returns the sentence for an unknown key; `typed` is the whole key as the user typed it, if known."""
    # Without the plus `sweep` is a key of a cell, but no group that has an option chosen.
    if typed == "sweep" and keys is None:
        return "sweep: a named sweep is added to a cell, so write +sweep=NAME"
    # `a.b.c` may be wrong in `b`: this is the first part of it that does not exist.
    wrong = str(getattr(cause, "full_key", None) or getattr(cause, "key", None) or typed)
    key = typed or wrong
    # The key may be right and only its launcher not chosen.
    for name, launcher in LAUNCHERS.items():
        option = key.removeprefix("hydra.launcher.")
        if option != key and OmegaConf.select(OmegaConf.structured(launcher), option, default="none") != "none":
            return f"{key}: it is a key of hydra/launcher={name}; add hydra/launcher={name}, or leave the key out"
    siblings = keys or _siblings(cause, wrong)
    return f"{key}: unknown key; " + (nearest(wrong, siblings) if siblings else f"+{key}=... adds it")


def _siblings(cause: BaseException, wrong: str) -> list[str]:
    """Returns the full names of the existing keys next to the unknown key `wrong`."""
    parent, prefix = getattr(cause, "parent_node", None), wrong.rpartition(".")[0]
    if not isinstance(parent, DictConfig) or not prefix:
        return [field.name for field in fields(Cell)]
    return [f"{prefix}.{name}" for name in map(str, parent) if name != "_target_"]
