"""From a command line to the override lists of all its cells: sweeps, ranges and globs, and named sweeps."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from pipelines.configuration.sweep import SweepConfig
from pipelines.errors import UserError
from sweeps.compose.config_files import initialized_hydra, plain_option


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """Returns the override lists of all cells that `arguments` name, in the order in which they are written.

    A named sweep (`+sweep=NAME`) is multiplied with the sweeps on the command line, which win where both set the same
    key. Raises `UserError` for a sweep without cells.
    """
    with initialized_hydra():
        # The parser needs the config loader to look up the options that globs match.
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        overrides = parser.parse_overrides(with_home(arguments))
        named = [override for override in overrides if override.key_or_group == "sweep"]
        # Sweeps on the command line are expanded on their own, then multiplied with the named one.
        typed_jobs = _product([override for override in overrides if override.key_or_group != "sweep"])
        if not named:
            return typed_jobs
        sweep = OmegaConf.to_object(OmegaConf.merge(SweepConfig, named_sweep(named)))
    assert isinstance(sweep, SweepConfig)
    chosen = [str(override.input_line) for override in named]
    return [chosen + _without(cell, _keys_of(job)) + job for cell in _cells_of(sweep) for job in typed_jobs]


def with_home(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with the home directory in place of `~` in `key=~/path`.

    Not every shell expands it there, and Hydra does not read it.
    """
    return [re.sub(r"(?<==)~(?=/|$)", lambda _: os.path.expanduser("~"), argument) for argument in arguments]


def _product(overrides: Sequence[Override]) -> list[list[str]]:
    """Returns one override list for each combination of the values that `overrides` sweep over."""
    # Key -> its overrides; of a key that is written twice the last one counts.
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise HydraException(f"{override.input_line}: name the values of a sweep: {key}=1,2,3")
        texts = override.sweep_string_iterator() if override.is_sweep_override() else [_value_text(override)]
        values[key] = [f"{key}={text}" for text in texts]
    return [list(job) for job in itertools.product(*values.values())]


def _value_text(override: Override) -> str:
    return str(override.get_value_element_as_str())


def named_sweep(chosen: Sequence[Override]) -> Any:
    """Returns the configuration of the named sweep that the overrides choose."""
    # A plain file is read directly, because composing everything takes as long as composing all cells.
    if len(chosen) == 1 and chosen[0].is_add() and chosen[0].package is None and isinstance(chosen[0].value(), str):
        option = plain_option("sweep", str(chosen[0].value()))
        if option is not None:
            return option
    return compose(config_name="config", overrides=[str(override.input_line) for override in chosen]).sweep


def _cells_of(sweep: SweepConfig) -> list[list[str]]:
    """Returns the override lists of a named sweep: every point with every combination of the grid."""
    # Dictionaries of key -> value, one for each combination of the grid's values.
    combinations = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    cells = [_lines(point) + _lines(combination) for point in sweep.points or [{}] for combination in combinations]
    if not (sweep.points or sweep.grid) or not cells:
        raise UserError(f"sweep={sweep.name}: it has no cells; give it `points` or a `grid` with values")
    return cells


def _lines(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_literal(value)}" for key, value in values.items()]


def _literal(value: Any) -> str:
    """Returns `value` in Hydra's grammar of overrides."""
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        return "[" + ",".join(map(_literal, value)) + "]"
    return str(value)


def _keys_of(job: Sequence[str]) -> set[str]:
    """Returns the keys that a list of overrides sets."""
    return {line.split("=")[0] for line in job}


def _without(job: list[str], keys: set[str]) -> list[str]:
    return [line for line in job if line.split("=")[0] not in keys]
