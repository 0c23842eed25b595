"""What of a configuration is hashed into signatures and cache keys, and keys that were added after results were stored.

A new key would change the hash of every configuration, and no stored stage run would be found again. So a key that is
added later declares the value that means "as before", and is left out of the hash while it has that value:

    weight_averaging: float = added_later(as_before=0.0)
"""

import copy
from dataclasses import field, fields, is_dataclass
from typing import Any

_AS_BEFORE = "as before"


def added_later(*, as_before: Any) -> Any:
    """Returns a dataclass field with the default `as_before`, with which a stage computes what it did without the key.

    The default fills the key in again where a stored configuration does not have it.
    """
    return field(default_factory=lambda: copy.deepcopy(as_before), metadata={_AS_BEFORE: as_before})


def signed_content(value: Any) -> Any:
    """Returns a configuration, or a part of one, as plain values without the later keys that are at "as before".

    Dataclasses are converted at any depth, in lists and dictionaries too.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: signed_content(getattr(value, f.name))
            for f in fields(value)
            if _AS_BEFORE not in f.metadata or getattr(value, f.name) != f.metadata[_AS_BEFORE]
        }
    if isinstance(value, dict):
        return {key: signed_content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [signed_content(item) for item in value]
    return value
