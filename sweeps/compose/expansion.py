"""From a command line to the override lists of all its cells: sweeps, ranges and globs, and named sweeps."""

import itertools
import math
import os
import re
from collections.abc import Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep

from pipelines.errors import UserError
from sweeps.compose.config_files import initialized_hydra, options_of
from sweeps.compose.named_sweeps import cells_of_sweep

HYDRA_GROUPS = {"hydra/launcher": "local or slurm", "hydra/sweeper": "graph"}
"""Groups of Hydra itself -> our options in them; `basic` is Hydra's own."""
COMBINED_GROUPS = ("tracking",)
"""Groups of which several options may be chosen together."""
MOST_CELLS = 100_000
"""Cells of a command line; composing as many takes minutes."""


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """Returns the override lists of all cells that `arguments` name, in the order in which they are written.

    Named sweeps (`+sweep=NAME`, `+sweep=NAME,NAME`) are multiplied with the sweeps on the command line, which win where
    both set the same key. Raises `UserError` for a sweep without cells or with too many.
    """
    with initialized_hydra():
        overrides = parsed(with_home(arguments))
        named = [override for override in overrides if override.key_or_group == "sweep"]
        # Sweeps on the command line are expanded on their own, then multiplied with the named ones.
        typed_jobs = _product([override for override in overrides if override.key_or_group != "sweep"])
        if not named:
            return typed_jobs
        jobs: list[list[str]] = []
        for chosen in _product(named):
            cells = cells_of_sweep(chosen)
            _check_count(len(jobs) + len(cells) * len(typed_jobs), " ".join(chosen))
            jobs += [chosen + _without(cell, _keys_of(job)) + job for cell in cells for job in typed_jobs]
        return jobs


def parsed(arguments: Sequence[str]) -> list[Override]:
    """Returns the overrides of a command line.

    Raises `UserError` for an option of a group that is no name, and for Hydra's own launcher and sweeper.
    """
    with initialized_hydra():
        # The parser needs the config loader to look up the options that globs match.
        loader = GlobalHydra.instance().config_loader()
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
        groups = {*loader.list_groups(""), *HYDRA_GROUPS}
    for override in overrides:
        key, line, value = override.key_or_group, override.input_line, override.value()
        if key in HYDRA_GROUPS and value == "basic":
            raise UserError(f"{line}: it runs no graph of stage runs; choose {HYDRA_GROUPS[key]}")
        if key not in groups or override.is_delete() or override.is_sweep_override() or isinstance(value, str):
            continue
        typed = override.get_key_element()
        if not isinstance(value, list):
            fix = f"one that reads as another value needs quotes: {typed}='\"{override.get_value_element_as_str()}\"'"
            raise UserError(f"{line}: an option of a group is a name; {fix}")
        if key not in COMBINED_GROUPS:
            names = ",".join(map(str, value))
            raise UserError(f"{line}: a list would merge its options into one; sweep over them: {typed}={names}")
    return overrides


def with_home(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with the home directory in place of `~` in `key=~/path`.

    Not every shell expands it there, and Hydra does not read it.
    """
    return [re.sub(r"(?<==)~(?=/|$)", lambda _: os.path.expanduser("~"), argument) for argument in arguments]


def _product(overrides: Sequence[Override]) -> list[list[str]]:
    """Returns one override list for each combination of the values that `overrides` sweep over."""
    # Key -> its overrides. Of a key that is written twice the last one counts, and so does its place; with + each adds.
    values: dict[str, list[str]] = {}
    for position, override in enumerate(overrides):
        key = override.get_key_element()
        texts = _values(override)
        adds_to_mapping = override.is_add() and isinstance(override.value(), dict)
        values.pop(key, None)
        values[f"{key} {position}" if adds_to_mapping else key] = [
            key if text is None else f"{key}={text}" for text in texts
        ]
    _check_count(math.prod(map(len, values.values())), " ".join(str(override.input_line) for override in overrides))
    return [list(job) for job in itertools.product(*values.values())]


def _values(override: Override) -> list[str | None]:
    """Returns the values of an override, of which only a sweep has several; None for a deletion without a value."""
    if not override.is_sweep_override():
        return [None if override.is_delete() and override.value() is None else override.get_value_element_as_str()]
    key, line = override.get_key_element(), override.input_line
    if not override.is_discrete_sweep():
        raise UserError(f"{line}: name the values of a sweep: {key}=1,2,3")
    content = override.value()
    if isinstance(content, RangeSweep):
        _check_count(_range_length(content, str(line)), str(line))
    texts = list(override.sweep_string_iterator())
    if not texts and isinstance(content, Glob):
        options = options_of(override.key_or_group)
        known = f"its options are {', '.join(options)}" if options else f"{key} is no group of options"
        raise UserError(f"{line}: it matches nothing; {known}")
    if not texts:
        raise UserError(f"{line}: it has no values; write a range as range(1,4), which is 1, 2, 3")
    return list(texts)


def _range_length(content: RangeSweep, line: str) -> int:
    """Returns how many values a range has, without making them."""
    start, stop, step = content.start or 0, content.stop or 0, content.step
    if not all(map(math.isfinite, (start, stop, step))) or step == 0:
        raise UserError(f"{line}: start, stop and step of a range are finite numbers, and the step is not 0")
    return max(0, math.ceil((stop - start) / step))


def _check_count(count: int, words: str) -> None:
    if count > MOST_CELLS:
        raise UserError(f"{words}: it has {count:,} cells, and a command may have {MOST_CELLS:,}; split it")


def _keys_of(job: Sequence[str]) -> set[str]:
    """Returns the keys that a list of overrides sets."""
    return {line.split("=")[0] for line in job}


def _without(job: list[str], keys: set[str]) -> list[str]:
    return [line for line in job if line.split("=")[0] not in keys]
