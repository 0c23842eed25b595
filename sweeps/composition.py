"""Overrides -> typed cells, through Hydra: what `shaping-run` and the tables both start from.

A list of overrides may hold sweeps (`objective=ce,precision`, ranges, globs) and may choose a named sweep
(`+sweep=nano`), whose points and grid multiply with them. Every cell is composed and checked before anything is
written, and all mistakes of all cells are reported together.
"""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pipelines.cell import Cell, SweepConfig
from pipelines.errors import UserError
from sweeps import options  # noqa: F401  (makes the typed options known to Hydra)
from sweeps.sentences import sentence


def _hydra() -> AbstractContextManager[Any]:
    """Hydra as the command line started it, or started here when there was none."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_module(config_module="conf", version_base="1.3")


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """The override lists of all cells that `arguments` name, in the order in which they are written.

    The points and the grid of `+sweep=NAME` come first, then the sweeps typed by hand, which win where both set
    the same key. Raises `UserError` for a sweep with no cells.
    """
    with _hydra():
        return _expand(arguments)


def _expand(arguments: Sequence[str]) -> list[list[str]]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())  # globs look options up
    overrides = parser.parse_overrides(list(arguments))
    named = [str(o.input_line) for o in overrides if o.key_or_group == "sweep"]
    typed = BasicSweeper.split_arguments([o for o in overrides if o.key_or_group != "sweep"], max_batch_size=None)
    by_hand = [list(job) for batch in typed for job in batch]
    if not named:
        return by_hand
    sweep = OmegaConf.to_object(OmegaConf.merge(SweepConfig, compose(config_name="config", overrides=named).sweep))
    assert isinstance(sweep, SweepConfig)
    grid = [
        [f"{key}={_literal(value)}" for key, value in zip(sweep.grid, values, strict=True)]
        for values in itertools.product(*sweep.grid.values())
    ]
    points = [[f"{key}={_literal(value)}" for key, value in point.items()] for point in sweep.points]
    places = [point + spot for point in points or [[]] for spot in grid]
    if not (points or sweep.grid) or not places:
        raise UserError(f"sweep={sweep.name}: it has no cells; give it `points` or a `grid` with values")
    return [named + _without(place, {o.split("=")[0] for o in job}) + job for place in places for job in by_hand]


def _without(overrides: list[str], keys: set[str]) -> list[str]:
    return [o for o in overrides if o.split("=")[0] not in keys]


def _literal(value: Any) -> str:
    """`value` as Hydra's override grammar writes it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        return "[" + ",".join(map(_literal, value)) + "]"
    return str(value)


def compose_cell(overrides: Sequence[str]) -> Cell:
    """The typed, checked cell of one list of overrides; raises `UserError`."""
    try:
        with _hydra():
            return Cell.from_config(compose(config_name="config", overrides=list(overrides)))
    except Exception as error:
        raise UserError(sentence(error)) from error


def compose_cells(arguments: Sequence[str]) -> list[Cell]:
    """All cells that `arguments` name, without repetition; raises one `UserError` for all that cannot be."""
    try:
        with _hydra():
            jobs = expand(arguments)
            return compose_jobs(jobs)
    except UserError:
        raise
    except Exception as error:
        raise UserError(sentence(error)) from error


def compose_jobs(jobs: Sequence[Sequence[str]]) -> list[Cell]:
    """The cells of several lists of overrides; all mistakes are collected into one `UserError`."""
    cells: list[Cell] = []
    mistakes: dict[str, str] = {}
    for job in jobs:
        try:
            cell = compose_cell(job)
            if cell not in cells:
                cells.append(cell)
        except UserError as error:
            mistakes.setdefault(str(error), " ".join(job))
    if len(mistakes) == 1 and len(jobs) == 1:
        raise UserError(next(iter(mistakes)))
    if mistakes:
        lines = [f"{message}   [cell: {job}]" for message, job in mistakes.items()]
        raise UserError("\n".join(lines))
    return cells
