"""How one override changes a configuration: the same function for Hydra's composition and for ours.

It differs from Hydra's own in mappings, where Hydra always merges: `key={a: 1}` and `++key={a: 1}` replace the mapping,
`+key={a: 1}` adds to it. In a mapping whose keys are names of the user's choice (mixtures, sources, benchmarks), new
entries may be added whole or key by key: `+data.sources.mine={kind: jsonl, path: a.jsonl}` or
`+data.sources.mine.kind=jsonl +data.sources.mine.path=a.jsonl`.
"""

from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.types import Glob, Override, Sweep
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.base import Container
from omegaconf.basecontainer import BaseContainer
from omegaconf.omegaconf import flag_override

from pipelines.errors import UserError


def apply_override(override: Override, config: DictConfig) -> None:
    """Change `config` as an override says that sets or adds a value.

    Raises `UserError` where `+` would change a value and for sweeps inside of a value, and the errors of OmegaConf for
    unknown keys and wrong values.
    """
    check_sweeps(override)
    key, value = override.key_or_group, override.value()
    adds = override.is_add() or override.is_force_add()
    copy_references(config, key)
    present = _select(config, key)
    if (
        override.is_add()
        and not isinstance(value, dict | list)
        and present is not None
        and not _is_own_name(config, key)
    ):
        raise UserError(f"+{key}: this key exists already; leave out the +, as in {key}=VALUE")
    node, names = _existing_part(config, key)
    is_value = len(names) == 1 and names[0] in node and not isinstance(present, DictConfig)
    # At the top of a cell OmegaConf would take any value.
    if (
        is_value
        and isinstance(value, dict | list)
        and not (isinstance(present, ListConfig) and isinstance(value, list))
    ):
        needed = "a list: [a,b]" if isinstance(present, ListConfig) else "a single value"
        raise UserError(f"{key}={override.get_value_element_as_str()}: it must be {needed}")
    if isinstance(present, DictConfig) and isinstance(value, list):
        raise UserError(f"{key}={override.get_value_element_as_str()}: it must be a mapping: {{name: value}}")
    if is_value or (not adds and not isinstance(value, dict)):
        OmegaConf.update(config, key, value)
        return
    # A mapping is merged, so one that is replaced is emptied first; for an unknown key this is the error.
    if isinstance(value, dict) and not override.is_add() and (not adds or present is not None):
        OmegaConf.update(config, key, "???")
    if not isinstance(node, DictConfig):
        raise UserError(f"{key}: a list is set as a whole: {key.rpartition('.')[0]}=[...]")
    _merge(node, names, value)


def check_sweeps(override: Override) -> None:
    """Raise `UserError` for a sweep inside of a value."""
    if _has_sweep(override.value()):
        fix = f"sweep over whole values, as in {override.key_or_group}=[1],[2]"
        raise UserError(f"{override.input_line}: a sweep cannot be inside a list or a mapping; {fix}")


def _merge(node: DictConfig, names: list[str], value: Any) -> None:
    """Merge a value into `node`, at the names below it, which may be new."""
    content: Any = value
    for name in reversed(names):
        content = {name: content}
    # New entries of a typed mapping become objects of its type only when they are merged, not when they are assigned.
    with flag_override(node, "struct", False):
        node.merge_with(content)


def copy_references(config: DictConfig, key: str) -> None:
    """Replace mappings around `key` that refer to another one by copies, so that the other one does not change."""
    names = key.split(".")
    for depth in range(1, len(names) + 1):
        name = ".".join(names[:depth])
        parent = OmegaConf.select(config, ".".join(names[: depth - 1])) if depth > 1 else config
        if not isinstance(parent, DictConfig) or names[depth - 1] not in parent:
            return
        if OmegaConf.is_interpolation(parent, names[depth - 1]) and isinstance(
            target := _select(config, name), DictConfig
        ):
            content = OmegaConf.to_container(target, resolve=False)
            OmegaConf.update(config, name, "???")
            _merge(parent, [names[depth - 1]], content)


def _has_sweep(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_sweep, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Sweep | Glob)


def _select(config: DictConfig, key: str) -> Any:
    return OmegaConf.select(config, key, throw_on_missing=False, throw_on_resolution_failure=False)


def _existing_part(config: DictConfig, key: str) -> tuple[Container, list[str]]:
    """Returns the innermost part of `config` around `key` that exists, and the rest of the key."""
    names = key.split(".")
    for depth in range(len(names) - 1, 0, -1):
        node = _select(config, ".".join(names[:depth]))
        if isinstance(node, BaseContainer):
            return node, names[depth:]
    return config, names


def _is_own_name(config: DictConfig, key: str) -> bool:
    """Returns whether a key is in a mapping whose keys are names of the user's choice."""
    return any(isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict for node in _parts_around(config, key))


def _parts_around(config: DictConfig, key: str) -> Iterator[Any]:
    names = key.split(".")
    for depth in range(1, len(names)):
        yield _select(config, ".".join(names[:depth]))
