"""Cells made of parts that are composed once for each way in which they are set.

Hydra composes a cell in 0.2 s, which is too slow for sweeps of thousands of cells that differ in a few keys. So the
default configuration is composed by Hydra once. Each part of a cell (`objective`, `pretrain`, `seed`, ...) then depends
on the overrides of its keys and of the parts that it refers to, and is made once for each combination of those.

Unusual overrides (packages, deletions, options with defaults) are left to Hydra; a test compares both ways.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from pipelines.configuration.cell import Cell, typed
from sweeps.compose.config_files import config_file, plain_option
from sweeps.compose.overrides import apply_override

PARTS = tuple(field.name for field in fields(Cell))

REFERENCE = re.compile(r"\$\{(\w+)?(\.|\})?")
"""An interpolation and, where it is a plain absolute one, the part that it refers to."""

PartSetting = tuple[str | None, tuple[str, ...]]
"""How a job sets one part: the option chosen for its group, if any, and the overrides of its values, in order."""


class NeedsHydra(Exception):
    """An override that only Hydra can apply."""


class Composer:
    """Composes cells quickly; needs an initialized Hydra."""

    def __init__(self) -> None:
        self._defaults = compose(config_name="config", return_hydra_config=True)
        self._groups = set(GlobalHydra.instance().config_loader().list_groups(""))
        self._chosen_groups = set(self._defaults.hydra.runtime.choices)
        primary = config_file("config")
        assert primary is not None
        self._set_in_primary = set(map(str, primary.config))
        """Parts whose values `config.yaml` sets over those of the chosen option."""
        self._parts: dict[tuple[str, tuple[PartSetting, ...]], Any] = {}
        # Each line, option and setting is looked at once, however many cells have it.
        self._parse: Callable[[str], Override] = cache(lambda line: OverridesParser.create().parse_override(line))
        self._target: Callable[[str], tuple[str, bool]] = cache(self._find_target)
        self._option: Callable[[str, str], DictConfig] = cache(self._load_option)
        self._references: Callable[[str, PartSetting], frozenset[str]] = cache(self._find_references)

    def cell(self, job: Sequence[str]) -> Cell:
        """Returns the cell of one list of overrides.

        Raises `NeedsHydra` for an unusual override. What is wrong with a value raises the error of Hydra, OmegaConf or
        the check that finds it.
        """
        # Sort the overrides by the part that they set; the last chosen option of a group counts.
        settings: dict[str, PartSetting] = dict.fromkeys(PARTS, (None, ()))
        for line in job:
            part, is_group = self._target(line)
            option, lines = settings[part]
            settings[part] = (str(self._parse(line).value()), lines) if is_group else (option, (*lines, line))
        return Cell(**{part: self._part(part, settings) for part in PARTS})

    def _part(self, part: str, settings: dict[str, PartSetting]) -> Any:
        # The part itself, and all that it refers to directly or through others.
        needed = [part]
        for name in needed:
            needed += [other for other in self._references(name, settings[name]) if other not in needed]
        key = (part, tuple(settings[name] for name in needed))
        if key not in self._parts:
            self._parts[key] = self._compose(part, {name: settings[name] for name in needed})
        return self._parts[key]

    def _compose(self, part: str, settings: dict[str, PartSetting]) -> Any:
        # Only the parts that this one needs: copying the others would take most of the time.
        config = OmegaConf.masked_copy(self._defaults, list(settings))
        for name, (option, _) in settings.items():
            if option is not None:
                config[name] = self._option(name, option)
        # Options are applied first, then the values in their order; an unknown key is an error, as in Hydra.
        OmegaConf.set_struct(config, True)
        for _, lines in settings.values():
            for line in lines:
                apply_override(self._parse(line), config)
        if isinstance(config[part], DictConfig):
            return typed(config[part], f"{part}.")
        # A single value gets the type that it has in a cell.
        leaves = OmegaConf.structured(Cell)
        leaves[part] = config[part]
        return leaves[part]

    def _find_target(self, line: str) -> tuple[str, bool]:
        """Returns the part that an override sets, and whether it chooses an option of a group."""
        override = self._parse(line)
        key = override.key_or_group
        part = key.split(".")[0]
        if override.package is not None or override.is_delete() or override.is_force_add() or part not in PARTS:
            raise NeedsHydra(line)
        is_group = key in self._groups
        if is_group and (key in self._set_in_primary or override.is_add() != (key not in self._chosen_groups)):
            raise NeedsHydra(line)
        return part, is_group

    def _load_option(self, part: str, option: str) -> DictConfig:
        """Returns the part with another option of its group."""
        content = plain_option(part, option)
        if content is None:
            raise NeedsHydra(f"{part}={option}")
        # As in Hydra, the file is merged into the typed defaults of its dataclass.
        schema = OmegaConf.get_type(self._defaults, part)
        assert is_dataclass(schema)
        config = OmegaConf.merge(OmegaConf.structured(schema), content)
        assert isinstance(config, DictConfig)
        return config

    def _find_references(self, part: str, setting: PartSetting) -> frozenset[str]:
        """Returns the other parts that this one refers to; all of them where a reference is not a plain one."""
        option, lines = setting
        config = OmegaConf.masked_copy(self._defaults, part) if option is None else self._option(part, option)
        references: set[str] = set()
        for text in (OmegaConf.to_yaml(config), *lines):
            for name, after in REFERENCE.findall(text):
                references |= {name} if after and name in PARTS else set(PARTS)
        return frozenset(references - {part})
