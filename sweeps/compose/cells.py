"""Overrides -> typed cells, through Hydra: what `shaping-run` and the tables both start from.

A list of overrides may hold sweeps (`objective=ce,precision`, ranges, globs) and may choose a named sweep
(`+sweep=nano`), whose points and grid multiply with them. Every cell is composed and checked before anything is
written, and all mistakes of all cells are reported together.

Hydra composes a cell in about 0.2 s, and the cells of a sweep differ in a few keys. So the configuration is composed
once, and each part of a cell (`objective`, `pretrain`, `seed`, ...) is made once for each distinct way in which the
command line sets it and what it refers to. Overrides out of the ordinary (packages, deletions, options with defaults
of their own) go through Hydra's own composition, one cell at a time; a test holds that both ways agree.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.configuration.cell import Cell, typed
from pipelines.configuration.sweep import SweepConfig
from pipelines.errors import UserError
from sweeps.compose.error_messages import sentence
from sweeps.compose.launchers import LocalLauncherConfig, SlurmLauncherConfig  # makes all typed options known to Hydra

PARTS = tuple(field.name for field in fields(Cell))

REFERENCE = re.compile(r"\$\{(\w+)?(\.|\})?")
"""An interpolation and, where it is a plain absolute one, the part that it refers to."""


def initialized_hydra() -> AbstractContextManager[Any]:
    """Hydra as the command line started it, or started here when there was none."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_module(config_module="conf", version_base="1.3")


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """The override lists of all cells that `arguments` name, in the order in which they are written.

    The points and the grid of `+sweep=NAME` come first, then the sweeps typed by hand, which win where both set
    the same key. Raises `UserError` for a sweep with no cells.
    """
    with initialized_hydra():
        return _expand(arguments)


def _expand(arguments: Sequence[str]) -> list[list[str]]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())  # globs look options up
    overrides = parser.parse_overrides(list(arguments))
    chosen = [o for o in overrides if o.key_or_group == "sweep"]
    named = [str(o.input_line) for o in chosen]
    typed_by_hand = [o for o in overrides if o.key_or_group != "sweep"]
    by_hand = [list(job) for batch in BasicSweeper.split_arguments(typed_by_hand, max_batch_size=None) for job in batch]
    if not named:
        return by_hand
    sweep = OmegaConf.to_object(OmegaConf.merge(SweepConfig, _named_sweep(chosen)))
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


def _named_sweep(chosen: Sequence[Override]) -> Any:
    """The chosen sweep as its file has it, alone where that is all: composing everything takes as long as its cells."""
    first, repository = chosen[0], GlobalHydra.instance().config_loader().repository  # type: ignore[attr-defined]
    if len(chosen) == 1 and first.is_add() and first.package is None and isinstance(first.value(), str):
        alone = _plain_option(repository, "sweep", str(first.value()))
        if alone is not None:
            return alone
    return compose(config_name="config", overrides=[str(o.input_line) for o in chosen]).sweep


def _plain_option(repository: IConfigRepository, group: str, option: str) -> Any:
    """The option's own file; None where there is none, or it says where it goes or what else it needs."""
    loaded = repository.load_config(f"{group}/{option}")
    return None if loaded is None or loaded.defaults_list or loaded.header.get("package") else loaded.config


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
    """The typed, checked cell of one list of overrides, composed by Hydra alone; raises `UserError`."""
    try:
        with initialized_hydra():
            return Cell.from_config(compose(config_name="config", overrides=list(overrides)))
    except Exception as error:
        raise UserError(sentence(error)) from error


def compose_cells(arguments: Sequence[str], composer: "Composer | None" = None) -> list[Cell]:
    """All cells that `arguments` name, without repetition; raises one `UserError` for all that cannot be."""
    try:
        with initialized_hydra():
            return compose_jobs(expand(arguments), composer)
    except UserError:
        raise
    except Exception as error:
        raise UserError(sentence(error)) from error


def compose_jobs(jobs: Sequence[Sequence[str]], composer: "Composer | None" = None) -> list[Cell]:
    """The cells of several lists of overrides; all mistakes are collected into one `UserError`.

    Equal parts of the cells are one object, also of those that `composer` made before.
    """
    if len(jobs) == 1:
        return [compose_cell(jobs[0])]
    with initialized_hydra():
        composer = composer or Composer()
        cells: dict[tuple[int, ...], Cell] = {}
        mistakes: dict[str, str] = {}
        worded: set[str] = set()
        for job in jobs:
            try:
                cell = composer.cell(job)
            except (UserError, HydraException, OmegaConfBaseException, _OutOfTheOrdinary) as error:
                kind = f"{type(error).__name__} {error}"
                if kind in worded:
                    continue
                try:  # the same in Hydra's own words, or a cell that only Hydra can compose
                    cell = composer.own(compose_cell(job))
                except UserError as mistake:
                    mistakes.setdefault(str(mistake), " ".join(job))
                    if not isinstance(error, _OutOfTheOrdinary):
                        worded.add(kind)
                    continue
            cells.setdefault(tuple(id(getattr(cell, part)) for part in PARTS), cell)
    if mistakes:
        raise UserError("\n".join(f"{message}   [cell: {job}]" for message, job in mistakes.items()))
    return list(cells.values())


class _OutOfTheOrdinary(Exception):
    """An override that is left to Hydra's own composition."""


Setting = tuple[str | None, tuple[str, ...]]
"""How a job sets one part: the option chosen for its group, if any, and the overrides of its values, in order."""


class Composer:
    """Makes cells out of parts that are composed once for each way in which they are set."""

    def __init__(self) -> None:
        loader = GlobalHydra.instance().config_loader()
        self._repository = CachingConfigRepository(loader.repository)  # type: ignore[attr-defined]
        self._base = compose(config_name="config", return_hydra_config=True)
        self._chosen = dict(self._base.hydra.runtime.choices)
        primary = self._repository.load_config("config")
        assert primary is not None
        self._primary = set(map(str, primary.config))
        """Parts that `config.yaml` sets by itself, over what a group's option says."""
        self._owned: dict[tuple[str, str], Any] = {}
        self._made: dict[tuple[str, tuple[Setting, ...]], Any] = {}
        self.parse: Callable[[str], Override] = cache(lambda line: OverridesParser.create().parse_override(line))
        self._place: Callable[[str], tuple[str, bool]] = cache(self._place_of)
        self._node: Callable[[str, str | None], Node] = cache(self._node_of)
        self._needs: Callable[[str, Setting], frozenset[str]] = cache(self._needs_of)

    def cell(self, job: Sequence[str]) -> Cell:
        """The cell of one list of overrides; raises whatever is wrong with it, or `_OutOfTheOrdinary`."""
        settings: dict[str, Setting] = dict.fromkeys(PARTS, (None, ()))
        for line in job:
            part, is_group = self._place(line)
            option, values = settings[part]
            settings[part] = (str(self.parse(line).value()), values) if is_group else (option, (*values, line))
        return Cell(**{part: self._part(part, settings) for part in PARTS})

    def own(self, cell: Cell) -> Cell:
        """`cell` with its parts replaced by equal ones made before."""
        return Cell(**{part: self._interned(part, getattr(cell, part)) for part in PARTS})

    def _interned(self, part: str, value: Any) -> Any:
        return self._owned.setdefault((part, repr(value)), value)

    def _part(self, part: str, settings: dict[str, Setting]) -> Any:
        needed = self._closure(part, settings)
        key = (part, tuple(settings[name] for name in needed))
        if key not in self._made:
            self._made[key] = self._interned(part, self._make(part, {name: settings[name] for name in needed}))
        return self._made[key]

    def _closure(self, part: str, settings: dict[str, Setting]) -> list[str]:
        """The part and all that it refers to, directly or not."""
        found = [part]
        for name in found:
            found += [other for other in self._needs(name, settings[name]) if other not in found]
        return found

    def _make(self, part: str, settings: dict[str, Setting]) -> Any:
        root = OmegaConf.create()
        for name, (option, _) in settings.items():
            root._set_item_impl(name, self._node(name, option))  # `root[name] = ...` would look the node's value up
        OmegaConf.set_struct(root, True)
        overrides = [self.parse(line) for _, lines in settings.values() for line in lines]
        ConfigLoaderImpl._apply_overrides_to_config(overrides, root)
        value = root[part]
        return typed(value, f"{part}.") if isinstance(value, DictConfig) else value

    def _place_of(self, line: str) -> tuple[str, bool]:
        """The part that an override sets, and whether it chooses an option of a group."""
        override = self.parse(line)
        key = override.key_or_group
        part = key.split(".")[0]
        if override.package is not None or override.is_delete() or override.is_force_add() or part not in PARTS:
            raise _OutOfTheOrdinary(line)
        is_group = key == part and self._repository.group_exists(key)
        if is_group and (key in self._primary or override.is_add() != (key not in self._chosen)):
            raise _OutOfTheOrdinary(line)
        return part, is_group

    def _node_of(self, part: str, option: str | None) -> Node:
        """The part as the base configuration has it, or with another option of its group."""
        node = self._base._get_node(part)
        assert isinstance(node, Node)
        if option is None:
            return node
        plain = _plain_option(self._repository, part, option)
        if plain is None:
            raise _OutOfTheOrdinary(f"{part}={option}")
        kind = OmegaConf.get_type(node)
        assert is_dataclass(kind)
        return OmegaConf.merge(OmegaConf.structured(kind), plain)

    def _needs_of(self, part: str, setting: Setting) -> frozenset[str]:
        """The other parts that this one refers to; all of them where a reference is not a plain one."""
        option, lines = setting
        texts = [*_texts(self._node(part, option)), *lines]
        found: set[str] = set()
        for text in texts:
            for name, after in REFERENCE.findall(text):
                found |= {name} if after and name in PARTS else set(PARTS)
        return frozenset(found - {part})


def _texts(node: Node) -> Iterable[str]:
    """The interpolations in a node, as they are written."""
    if isinstance(node, DictConfig):
        yield OmegaConf.to_yaml(node)
    elif isinstance(node._value(), str):
        yield str(node._value())


def compose_launcher(overrides: Sequence[str]) -> LocalLauncherConfig | SlurmLauncherConfig:
    """The launcher's options that `hydra/launcher=...` and `hydra.launcher.*` among `overrides` name."""
    try:
        with initialized_hydra():
            config = compose(config_name="config", overrides=list(overrides), return_hydra_config=True)
            launcher = OmegaConf.to_object(config.hydra.launcher)
    except Exception as error:
        raise UserError(sentence(error)) from error
    assert isinstance(launcher, LocalLauncherConfig | SlurmLauncherConfig)
    return launcher


def options_of(group: str) -> list[str]:
    """The options of a group of `conf/`."""
    with initialized_hydra():
        return list(GlobalHydra.instance().config_loader().get_group_options(group))
