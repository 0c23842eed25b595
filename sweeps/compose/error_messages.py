"""Hydra's and OmegaConf's errors as one sentence that names the key, the value and the way out."""

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
from sweeps.compose.launchers import LAUNCHERS

KINDS = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false", "String": "text"}


def sentence(error: BaseException, keys: list[str] | None = None) -> str:
    """What went wrong in one sentence; the text of the error itself where there is nothing to add.

    `keys` are the keys that there are, where they are not those of a cell.
    """
    links = _chain(error)
    for link in links:
        if isinstance(link, UserError | StageFailure):
            return str(link)
    cause = links[-1]
    text = " ".join(str(error).split())
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return f"{cause.filename or 'a file'}: its disk is full; make room there and give the same command again"
    if missing := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, option = missing.groups()
        offered = re.search(r"Available options in '[^']+': (.*?)(?: Config search path|$)", text)
        options = [word for word in offered.group(1).split() if word != "basic"] if offered else []
        return f"{group}={option}: unknown option; {nearest(option, options)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: it is not of the form key=value ({_first_clause(text)})"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown or isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(unknown.group(1) if unknown else "", cause, keys)
    if isinstance(cause, ValidationError):
        message = (cause.msg or text).split("\n")[0]
        kind = re.search(r"could not be converted to (\w+)", message)
        wanted = f"it must be {KINDS.get(kind.group(1), kind.group(1))}" if kind else message
        value = re.search(r"Value '(.*)' of type", message)
        shown = value.group(1) if value else cause.value
        return f"{cause.full_key}={shown}: {wanted}"
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key}: it has no value; choose an option of its group or set it"
    if "Config group override must be a string" in text:
        return "a group's option must be a word; put a word that reads as a number in quotes: group='\"nan\"'"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return text
    return f"{type(error).__name__}: {text}"


def _chain(error: BaseException) -> list[BaseException]:
    """The error and its causes, the first cause last."""
    links = [error]
    while links[-1].__cause__ is not None:
        links.append(links[-1].__cause__)
    return links


def _first_clause(text: str) -> str:
    return text.split(" See https")[0]


def _unknown_key(typed: str, cause: BaseException, keys: list[str] | None) -> str:
    """`typed` is the key as a whole; of it the first that is not there is the one to mend."""
    if typed == "sweep" and keys is None:  # without the plus it is the one key that is there and cannot be chosen so
        return "sweep: a named sweep is added to a cell, so write +sweep=NAME"
    wrong = str(getattr(cause, "full_key", None) or getattr(cause, "key", None) or typed)
    key = typed or wrong
    if key.startswith("hydra.launcher."):
        for name, launcher in LAUNCHERS.items():
            if (
                OmegaConf.select(OmegaConf.structured(launcher), key.removeprefix("hydra.launcher."), default="none")
                != "none"
            ):
                return f"{key}: it is a key of hydra/launcher={name}; add hydra/launcher={name}, or leave the key out"
    beside = keys or _keys_beside(cause)
    return f"{key}: unknown key; " + (nearest(wrong, beside) if beside else f"+{key}=... adds it")


def _keys_beside(cause: BaseException) -> list[str]:
    """The keys of the configuration among which one was not found, with their full names."""
    parent = getattr(cause, "parent_node", None)
    prefix = parent._get_full_key(None) if isinstance(parent, DictConfig) else ""
    if not prefix:
        return [f.name for f in fields(Cell)]
    assert isinstance(parent, DictConfig)
    return [f"{prefix}.{name}" for name in map(str, parent) if name != "_target_"]
