"""What plugins have registered: which names, by which module, and undone when others are loaded."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.errors import UserError


@dataclass
class Loading:
    """The plugin that is being imported."""

    key: str
    """The configuration key and value that name it, for messages."""
    source: str
    """Version or hash of its code."""
    registered: list[tuple[str, MutableMapping[str, Any], str]] = field(default_factory=list)
    """Kind, registry and name of what it registered."""


_current: Loading | None = None
_owners: dict[tuple[str, str], str] = {}
"""Kind and name -> the plugin that registered it."""


@contextmanager
def loading(key: str, source: str) -> Iterator[Loading]:
    """Let `register` register, for the plugin that `key` names, within this context."""
    global _current
    previous, _current = _current, Loading(key, source)
    try:
        yield _current
    finally:
        _current = previous


def register(kind: str, registry: MutableMapping[str, Any], name: str, *, entry: Any) -> None:
    """Add an entry of a plugin to a registry, with the plugin's source; without effect if no plugin is being loaded.

    Raises `UserError` if the name is taken.
    """
    if _current is None:
        return
    if name in registry:
        owner = _owners.get((kind, name), "Shaping itself")
        raise UserError(f"{_current.key}: the {kind} {name!r} is registered by {owner} already; give it another name")
    registry[name] = replace(entry, source=_current.source)
    _current.registered.append((kind, registry, name))
    _owners[kind, name] = _current.key


def unregister(loaded: Loading) -> None:
    """Take everything that a plugin registered out of the registries again."""
    for kind, registry, name in loaded.registered:
        registry.pop(name, None)
        _owners.pop((kind, name), None)
    loaded.registered.clear()
