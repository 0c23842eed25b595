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
from yaml import MarkedYAMLError, YAMLError

from pipelines.configuration.cell import Cell
from pipelines.errors import StageFailure, UserError, nearest
from sweeps.compose.config_files import options_of, path_of_file, unreadable_file
from sweeps.compose.launcher_options import LAUNCHERS
from sweeps.compose.unparsed import why_unparsed

NEEDED = {
    r"converted to Float|field of type 'float'": "a number",
    r"converted to Integer|field of type 'int'": "a whole number",
    r"converted to Boolean|is not a valid bool|field of type 'bool'": "true or false",
    r"converted to String|Cannot convert '\w+' to string|field of type 'str'": "text",
    r"Cannot merge DictConfig with ListConfig": "a list: [a,b]",
    r"is not Optional": "a value, which null is not",
    r"ListConfig|\bList\[|is not a list": "a list: [a,b]",
    r"DictConfig|\bDict\[|(dict|list|int|str|float|bool|NoneType) is not a subclass": "a mapping: {name: value}",
}
"""Words in OmegaConf's messages -> what a value must be."""

IN_FILE = re.compile(r"In '([^']+)': \w+ raised while composing config")
"""Hydra's words for an error in a file."""


def sentence(error: BaseException, keys: list[str] | None = None) -> str:
    """Returns one sentence about an error; its own text where nothing can be added.

    `keys` are the existing keys, where they are not those of a cell.
    """
    # Our own errors are sentences already; one that joins those of several cells has a line for each.
    for link in _chain(error):
        if isinstance(link, UserError | StageFailure):
            return str(link)
    return one_line(_sentence(error, keys))


def one_line(text: str) -> str:
    """Returns a text with line breaks as escapes, as a value may contain them."""
    return text.replace("\n", "\\n").replace("\r", "\\r")


def _sentence(error: BaseException, keys: list[str] | None) -> str:
    # Hydra wraps errors, and the first cause says most; some details are only in the text of the outer one.
    cause, text = _chain(error)[-1], " ".join(str(error).split())
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        place = cause.filename or "the disk of the store or of temporary files"
        return f"{place}: No space left on device; free some space and type the same command again"
    if isinstance(cause, YAMLError):
        return _yaml_mistake(cause)
    if isinstance(cause, UnicodeDecodeError) and (unreadable := unreadable_file()):
        return f"{unreadable}; save it as UTF-8"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {why_unparsed(str(error.override), text.split(' See https')[0])}"
    # An error in a file names the file first.
    in_file = IN_FILE.match(text)
    return (f"{path_of_file(in_file.group(1))}: " if in_file else "") + _composition_mistake(error, cause, keys)


def _composition_mistake(error: BaseException, cause: BaseException, keys: list[str] | None) -> str:
    text = " ".join(str(error).split())
    if missing := re.search(r"Could not (?:find|load) '([^']+)/([^'/]*)'", text):
        # `basic` is Hydra's own launcher and sweeper, which run no graph.
        group, option = missing.groups()
        options = [name for name in options_of(group) if name != "basic"]
        return f"{group}={option}: unknown option; {nearest(option, options)}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown or isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(unknown.group(1) if unknown else "", cause, keys)
    if isinstance(cause, ValidationError):
        return _wrong_type(cause, text)
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key}: it has no value; choose an option of its group or set it"
    if twice := re.search(r"(\S+) appears more than once in the final defaults list", text):
        return f"+{twice.group(1)}: an option of this group is chosen already; leave out the +"
    if forced := re.search(r"force-add of config groups is not supported: '\+\+(.*)'", text):
        return f"++{forced.group(1)}: an option is added with one plus: +{forced.group(1)}"
    if deleted := re.search(r"Could not delete '(.*)'. No match in the defaults list", text):
        return f"~{deleted.group(1)}: no option of this group is chosen; leave it out"
    if swept := re.search(r"Ambiguous value for argument '(.*?)' 1\.|Sweep parameters '(.*)' requires", text):
        override = swept.group(1) or swept.group(2)
        return f"{override}: it names several values, and this takes one; name one, or [a,b] for a list"
    if hydras := re.search(r"Sweeping over Hydra's configuration is not supported : '(.*)'", text):
        return f"{hydras.group(1)}: keys of Hydra and the launcher cannot be swept; name one value"
    if merged := re.fullmatch(r"Error merging override (.*)", text):
        needed = _needed(str(cause))
        return f"{merged.group(1)}: " + (f"it must be {needed}" if needed else " ".join(str(cause).split()))
    if needed := _needed(text):
        return f"it must be {needed}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return text
    return f"{type(error).__name__}: {text}"


def _yaml_mistake(error: YAMLError) -> str:
    """Returns file, line and problem of a file that is no YAML."""
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if mark is None or not isinstance(error, MarkedYAMLError):
        return f"{' '.join(str(error).split())}; correct this YAML"
    context = f"{error.context}, " if error.context else ""
    return f"{mark.name}:{mark.line + 1}: {context}{error.problem} in column {mark.column + 1}; correct this YAML"


def _chain(error: BaseException) -> list[BaseException]:
    """Returns the error and its causes, the first cause last."""
    chain = [error]
    while (cause := _cause(chain[-1])) is not None:
        if any(cause is link for link in chain):  # in a debugger OmegaConf makes an error its own cause
            break
        chain.append(cause)
    return chain


def _cause(error: BaseException) -> BaseException | None:
    # For an error in a file Hydra raises a new one without a cause.
    return error.__cause__ or (error.__context__ if IN_FILE.match(str(error)) else None)


def _needed(message: str) -> str | None:
    """Returns what a value must be by a message of OmegaConf, if it says so."""
    return next((words for pattern, words in NEEDED.items() if re.search(pattern, message)), None)


def _wrong_type(error: ValidationError, text: str) -> str:
    message = (error.msg or text).split("\n")[0]
    if not error.full_key:
        return "it is not a mapping of keys to values; write it as key: value"
    needed = _needed(message)
    value = re.search(r"Value '(.*)' of type", message)
    return f"{error.full_key}={value.group(1) if value else error.value}: " + (
        f"it must be {needed}" if needed else message
    )


def _unknown_key(typed: str, cause: BaseException, keys: list[str] | None) -> str:
    """Returns the sentence for an unknown key; `typed` is the whole key as the user typed it, if known."""
    # Without the plus `sweep` is a key of a cell, but no group that has an option chosen.
    if typed == "sweep" and keys is None:
        return "sweep: a named sweep is added to a cell, so write +sweep=NAME"
    # `a.b.c` may be wrong in `b`: this is the first part of it that does not exist.
    wrong = str(getattr(cause, "full_key", None) or getattr(cause, "key", None) or typed)
    key = wrong if wrong.startswith(f"{typed}.") else typed or wrong
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
