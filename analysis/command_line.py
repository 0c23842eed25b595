"""What the commands of analysis share: options of the form key=value, and logging."""

import os
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import OmegaConf
from yaml import YAMLError

from pipelines.errors import UserError, nearest
from pipelines.logs import DEBUG_VARIABLE, set_up_logging
from sweeps.compose.config_files import without_config_dir
from sweeps.compose.error_messages import sentence

HELP_FLAGS = {"-h", "--help"}
DEBUG_FLAG = "--debug"

OptionsType = TypeVar("OptionsType")


def parse_options(
    options_type: type[OptionsType], arguments: Iterable[str], *, flags: Iterable[str] = ()
) -> OptionsType:
    """Returns the dataclass `options_type` with the values that `arguments` (key=value) set.

    Raises `UserError` for an unknown key or flag, or a value of another type; `flags` are the flags to suggest.
    """
    keys = [option.name for option in fields(options_type)]  # type: ignore[arg-type]
    arguments = without_config_dir(list(arguments))
    for argument in arguments:
        if argument.startswith("-"):
            suggestion = nearest(argument.partition("=")[0], (*flags, "--config-dir", "--help", *keys))
            raise UserError(f"{argument}: unknown flag; {suggestion}")
        if "=" not in argument:
            raise UserError(f"{argument}: it is not of the form key=value; --help lists the keys")
    options: Any = OmegaConf.structured(options_type)
    for argument in arguments:
        try:
            options = OmegaConf.merge(options, OmegaConf.from_dotlist([argument]))
        except YAMLError as error:
            key, _, value = argument.partition("=")
            raise UserError(f"{argument}: {value!r} is no value; text is written in quotes: \"{key}='...'\"") from error
        except Exception as error:
            message = sentence(error, keys)
            key = argument.partition("=")[0]
            raise UserError(message if message.startswith(key) else f"{argument}: {message}") from error
    try:
        options = OmegaConf.to_object(options)
    except Exception as error:
        raise UserError(sentence(error, keys)) from error
    assert isinstance(options, options_type)
    return options


def set_up(arguments: Iterable[str]) -> None:
    """Set up logging; with `--debug` among `arguments`, show tracebacks and all log lines."""
    if DEBUG_FLAG in arguments:
        os.environ[DEBUG_VARIABLE] = "1"
    set_up_logging()
