"""The files of `conf/`, and of a folder of one's own in front of it on Hydra's search path."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from pipelines.errors import UserError
from pipelines.plugins.loading import use_plugins
from sweeps.compose.hydra_internals import use_our_overrides

use_our_overrides()  # every command imports this module before it composes anything


CONFIG_DIR_VARIABLE = "SHAPING_CONFIG_DIR"
"""Environment variable with a folder of one's own; `hydra_plugins.shaping` puts it in front of `conf/`."""
CONFIG_DIR_FLAGS = ("--config-dir", "-cd")


def _file_of_folder(name: str) -> str:
    """Returns the path of a file in one's own folder: `${here:NAME}` in a configuration."""
    folder = os.environ.get(CONFIG_DIR_VARIABLE)
    if not folder:
        fix = "name the folder that the file is in: --config-dir=FOLDER or SHAPING_CONFIG_DIR"
        raise UserError(f"${{here:{name}}}: there is no folder of your own; {fix}")
    return os.path.join(os.path.abspath(os.path.expanduser(folder)), name)


OmegaConf.register_new_resolver("here", _file_of_folder, replace=True)


def without_config_dir(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of a command without `--config-dir DIR`, which is put into the environment.

    Raises `UserError` if the folder of the flag or variable does not exist, and for an argument of several lines.
    """
    for argument in arguments:
        if len(argument.splitlines()) > 1 or argument.endswith(("\n", "\r")):
            raise UserError(f"{argument!r}: an argument is one line; leave the line break out")
    words, kept = list(arguments), list[str]()
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in CONFIG_DIR_FLAGS:
            kept.append(word)
            continue
        if not equals and not words:
            raise UserError(f"{flag}: name a folder: {flag}=FOLDER")
        os.environ[CONFIG_DIR_VARIABLE] = value if equals else words.pop(0)
    if folder := os.environ.get(CONFIG_DIR_VARIABLE):
        if not os.path.isdir(os.path.expanduser(folder)):
            raise UserError(
                f"--config-dir={folder}: there is no such folder; name one with files such as sweep/mine.yaml"
            )
        # A retry composes in the folder of the launch.
        os.environ[CONFIG_DIR_VARIABLE] = os.path.abspath(os.path.expanduser(folder))
    return kept


def unreadable_file() -> str | None:
    """Returns the first file of one's own folder that is no text in UTF-8; None where all are."""
    for path in sorted(Path(os.environ.get(CONFIG_DIR_VARIABLE) or os.devnull).rglob("*.yaml")):
        try:
            path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return f"{path}: {error}"
    return None


def own_file(name: str) -> Path | None:
    """Returns the path of a file in one's own folder, such as `claims.yaml`; None if there is no folder or no file."""
    folder = os.environ.get(CONFIG_DIR_VARIABLE)
    path = Path(os.path.abspath(os.path.expanduser(folder or os.devnull))) / name
    return path if path.is_file() else None


def path_of_file(name: str) -> str:
    """Returns the path of an option's file, such as `sweep/mine`, in one's own folder or in `conf/`."""
    return str(own_file(f"{name}.yaml") or f"conf/{name}.yaml")


def initialized_hydra() -> AbstractContextManager[Any]:
    """Returns a context with Hydra as the command line has initialized it, or with Hydra initialized for `conf/`.

    Everything that composes begins here, so plugins are loaded here too.
    """
    folder = os.environ.get(CONFIG_DIR_VARIABLE)
    use_plugins(os.path.abspath(os.path.expanduser(folder)) if folder else None)
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_module(config_module="conf", version_base="1.3")


def options_of(group: str) -> list[str]:
    """Returns the options of a group, such as the names of the models; empty for an unknown group."""
    with initialized_hydra():
        return list(GlobalHydra.instance().config_loader().get_group_options(group))


def config_file(name: str) -> ConfigResult | None:
    """Returns the first file of that name on the search path, such as `objective/ce`; None where there is none."""
    for source in GlobalHydra.instance().config_loader().get_sources():
        if source.available() and source.is_config(name):
            return source.load_config(name)
    return None


def plain_option(group: str, option: str) -> Any:
    """Returns the content of an option's file.

    Returns None if the file is missing, and if it has defaults or a package, so that only Hydra can compose it.
    """
    file = config_file(f"{group}/{option}")
    if file is None or "defaults" in file.config or file.header.get("package"):
        return None
    return file.config
