"""The files of `conf/`, and of other folders on Hydra's search path, read one by one."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigResult


def initialized_hydra() -> AbstractContextManager[Any]:
    """Returns a context with Hydra as the command line has initialized it, or with Hydra initialized for `conf/`."""
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
