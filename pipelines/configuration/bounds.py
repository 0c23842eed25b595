"""What no value of a cell may be: a whole number out of reach, and a text that no file can hold.

The largest numbers are far above any study, and low enough that a cell with them can be planned and its numbers fit
their types. So a slip of the keyboard is an error message at once, and not a process that fills the memory.
"""

from dataclasses import is_dataclass
from typing import Any

from pipelines.errors import require
from pipelines.foreign_text import SURROGATES

LARGEST = {
    "seed": 2**63 - 1,  # torch's generators take no larger one
    "tokens": 10**15,
    "batch_tokens": 10**10,
    "micro_batch_tokens": 10**10,
    "sequence_length": 10**8,
    "text_length": 10**8,
    "max_new_tokens": 10**8,
    "extended_max_new_tokens": 10**8,
    "stage_max_new_tokens": 10**8,
    "vocab_size": 10**8,
    "top_k": 10**8,
    "tasks_per_family": 10**8,
    "items": 10**8,
    "warmup_steps": 10**9,
    "steps": 10**7,
    "extended_from_step": 10**9,
    "milestones": 10**4,
    "layers": 10**4,
    "d_model": 10**6,
    "ffn": 10**7,
    "heads": 10**5,
    "kv_heads": 10**5,
    "head_dim": 10**5,
    "experts": 10**5,
    "active_experts": 10**5,
    "prompts": 10**6,
    "samples": 10**6,
    "pass_k": 10**6,
}
"""Name of a key, the last part of it or that of the mapping around it -> its largest value."""
LARGEST_OTHER = 10**6
"""The largest value of every other key: counts of steps, passes, ranks, examples."""


def check_bounds(cell: Any) -> None:
    """Raise `UserError` for the first whole number that is larger than its key allows, or text with half a character.

    Bytes that are no UTF-8 reach a text as halves of surrogate pairs; only the path of the store may have them.
    """
    _check(cell, "", "")


def _check(value: Any, key: str, name: str) -> None:
    """Check a value and all in it; `name` is that by which it has a bound. Every cell of a sweep comes through here."""
    if isinstance(value, str):
        if not value.isascii() and key != "store":
            is_text = not SURROGATES.search(value)
            require(is_text, key, value, fix="it has bytes that are no UTF-8; choose another name, or rename the file")
    elif isinstance(value, int):
        largest = LARGEST.get(name, LARGEST_OTHER)
        if value > largest:
            require(False, key, value, fix=f"it may be at most {largest:,}")
    elif isinstance(value, dict):
        for entry, item in value.items():
            _check(str(entry), key, name)
            _check(item, f"{key}.{entry}", name)
    elif isinstance(value, list):
        for item in value:
            _check(item, key, name)
    elif is_dataclass(value):
        for attribute, item in vars(value).items():
            inner = f"{key}.{attribute}" if key else attribute
            # A named sweep has overrides, which are checked in the cells that they make.
            if inner != "sweep":
                _check(item, inner, attribute)
