"""Named sweeps: files of `sweep/` on the search path, and the override lists of their cells."""

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from pipelines.configuration.sweep import SweepConfig
from pipelines.errors import UserError, nearest, require
from sweeps.compose.config_files import plain_option

PLAIN = re.compile(r"[A-Za-z_][\w./@-]*|\$\{[^{}]*\}")
"""Texts that Hydra's grammar reads as they are, besides the words that it reads as other values."""
OTHER_VALUES = ("null", "true", "false", "inf", "nan")
"""Words that Hydra's grammar does not read as text, in lower case."""


def cells_of_sweep(chosen: Sequence[str]) -> list[list[str]]:
    """Returns the override lists of the named sweep that the overrides `chosen` choose: its points with its grid.

    Needs an initialized Hydra. Raises `UserError` for a sweep without cells, or with values that are none.
    """
    sweep = _checked(named_sweep(OverridesParser.create().parse_overrides(list(chosen))), chosen)
    key = f"sweep={sweep.name}"
    zipped = [dict(zip(sweep.zip, values, strict=True)) for values in _together(key, sweep.zip)]
    grid = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    cells = [
        _lines(key, point) + _lines(key, together) + _lines(key, combination)
        for point in sweep.points or [{}]
        for together in (zipped if sweep.zip else [{}])
        for combination in grid
    ]
    if not (sweep.points or sweep.zip or sweep.grid) or not cells:
        raise UserError(f"{key}: it has no cells; give it `points`, `zip` or a `grid` with values")
    return cells


def named_sweep(chosen: Sequence[Override]) -> Any:
    """Returns the configuration of the named sweep that the overrides choose."""
    # A plain file is read directly, because composing everything takes as long as composing all cells.
    if len(chosen) == 1 and chosen[0].is_add() and chosen[0].package is None and isinstance(chosen[0].value(), str):
        option = plain_option("sweep", str(chosen[0].value()))
        if option is not None:
            return option
    return compose(config_name="config", overrides=[str(override.input_line) for override in chosen]).sweep


def _checked(content: Any, chosen: Sequence[str]) -> SweepConfig:
    """Returns the sweep with plain values, in which interpolations are text that cells resolve."""
    words = " ".join(chosen)
    plain = OmegaConf.to_container(content, resolve=False)
    keys = list(SweepConfig.__dataclass_fields__)
    if not isinstance(plain, dict):
        raise UserError(f"{words}: its file is no mapping; give it the keys {', '.join(keys)}")
    for key in map(str, plain):
        if key not in keys:
            raise UserError(f"{words}: {key}: unknown key; {nearest(key, keys)}")
    points = plain.get("points") or []
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise UserError(f"{words}: points={points}: it is a list of cells, such as - {{objective: ce, seed: 1}}")
    for part in ("grid", "zip"):
        values = plain.get(part) or {}
        require(isinstance(values, dict), f"{words}: {part}", values, fix="it is a mapping: {seed: [1, 2, 3]}")
        for key, listed in values.items():
            require(
                isinstance(listed, list), f"{words}: {part}.{key!s}", listed, fix=f"it is a list: {key!s}: [{listed}]"
            )
    return SweepConfig(str(plain.get("name") or ""), points, plain.get("grid") or {}, plain.get("zip") or {})


def _together(key: str, columns: Mapping[str, list[Any]]) -> list[tuple[Any, ...]]:
    """Returns the first values of all keys, the second ones, and so on."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise UserError(f"{key}: zip takes one value of each key at a time, but {counts}")
    return list(zip(*columns.values(), strict=True))


def _lines(key: str, values: Mapping[Any, Any]) -> list[str]:
    lines = [f"{name}={literal(value)}" for name, value in values.items()]
    for line, value in zip(lines, values.values(), strict=True):
        # The names in a mapping cannot be quoted, so some cannot be written.
        if literal(_parsed(line)) != literal(value):
            raise UserError(f"{key}: {line}: Hydra reads another value; write it in an option of its group instead")
    return lines


@cache
def _parsed(line: str) -> Any:
    """Returns the value of an override as Hydra reads it; None for one that it cannot read."""
    try:
        return OverridesParser.create().parse_override(line).value()
    except HydraException:
        return None


def literal(value: Any) -> str:
    """Returns a value of YAML in Hydra's grammar of overrides."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(literal, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_name(name)}:{literal(item)}" for name, item in value.items()) + "}"
    if isinstance(value, str) and (not PLAIN.fullmatch(value) or value.lower() in OTHER_VALUES):
        return QuotedString(value, Quote.single).with_quotes()
    return str(value)


def _name(name: Any) -> str:
    """Returns a key of a mapping; the characters of the grammar are escaped."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", name) if isinstance(name, str) else literal(name)
