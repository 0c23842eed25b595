"""What this project uses of Hydra's private parts; a test fails where Hydra changes them.

Hydra has no public access to its command-line flags, and ignores a flag that it does not know. `shaping-run` needs them
to reject unknown flags, and to tell those that show something from those that run something. Nor can one choose how
overrides are applied; `use_our_overrides` makes every composition use `sweeps.compose.overrides`.

A multirun composes the command line once before its cells, without the options that a sweep chooses. A key that only
such an option has (`-m +sweep=small data.sources.web.kind=parquet`) is unknown there and right in every cell, so what
cannot be applied before the cells is left to them: each cell is composed with all overrides and checked.
"""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pipelines.errors import UserError
from sweeps.compose.overrides import apply_override, check_sweeps, copy_references

_hydras_apply_overrides = ConfigLoaderImpl._apply_overrides_to_config
_hydras_load = ConfigLoaderImpl._load_configuration_impl

_before_cells: ContextVar[bool] = ContextVar("before_cells", default=False)
"""Whether what is composed is a multirun's command line, before its cells."""


def flags_parser() -> argparse.ArgumentParser:
    """Returns the parser of Hydra's own flags."""
    parser: argparse.ArgumentParser = get_args_parser()
    return parser


def flag_names(parser: argparse.ArgumentParser) -> list[str]:
    """Returns the long flags of a parser, such as `--cfg`."""
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


def use_our_overrides() -> None:
    """Have Hydra apply overrides by `apply_override` in every composition of this process."""
    setattr(ConfigLoaderImpl, "_apply_overrides_to_config", staticmethod(_apply_overrides))  # noqa: B010
    setattr(ConfigLoaderImpl, "_load_configuration_impl", _load)  # noqa: B010


def _load(
    self: ConfigLoaderImpl, config_name: str | None, overrides: list[str], run_mode: RunMode, **options: Any
) -> DictConfig:
    token = _before_cells.set(run_mode == RunMode.MULTIRUN)
    try:
        return _hydras_load(self, config_name, overrides, run_mode, **options)
    finally:
        _before_cells.reset(token)


def _apply_overrides(overrides: Sequence[Override], config: DictConfig) -> None:
    for override in overrides:
        left_to_cells = _before_cells.get() and not override.is_hydra_override()
        if left_to_cells:
            check_sweeps(override)  # no cell can make sense of it
        with suppress(ConfigCompositionException, UserError) if left_to_cells else nullcontext():
            _apply(override, config)


def _apply(override: Override, config: DictConfig) -> None:
    key = override.key_or_group
    try:
        if override.is_delete():
            _delete(override, config)
        elif override.package is not None:
            _hydras_apply_overrides([override], config)
        else:
            apply_override(override, config)
    # As Hydra does: the outer error names the override, its cause the reason.
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise ConfigCompositionException(f"Could not override '{key}'.") from error
    except (OmegaConfBaseException, TypeError) as error:
        raise ConfigCompositionException(f"Error merging override {override.input_line}") from error


def _delete(override: Override, config: DictConfig) -> None:
    key = override.key_or_group
    copy_references(config, key)
    mapping = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
    if "." not in key or (OmegaConf.is_config(mapping) and OmegaConf.get_type(mapping) is not dict):
        fix = "only an entry of a mapping can be deleted, such as ~pretrain.mixture.text; set this key to another value"
        raise UserError(f"~{key}: {fix}")
    if not OmegaConf.is_dict(mapping) or key.rpartition(".")[2] not in mapping:
        names = ", ".join(map(str, mapping)) if OmegaConf.is_dict(mapping) else ""
        raise UserError(f"~{key}: there is no such entry to delete" + (f"; there are {names}" if names else ""))
    if override.value() is not None and override.value() != OmegaConf.select(config, key):
        raise UserError(f"{override.input_line}: its value is {OmegaConf.select(config, key)}; write only ~{key}")
    _hydras_apply_overrides([override], config)
