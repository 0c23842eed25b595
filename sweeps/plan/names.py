"""What cells, objectives and checkpoints are called, for people; none of these names is in a signature."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipelines.configuration.cell import Cell
from pipelines.configuration.objective import ObjectiveConfig
from shaping.objective import NAMED
from sweeps.plan.signatures import objective_content

UNNAMED = {"", "custom", *NAMED}
"""Names that label no objective of a user: the default, and the study's, which belong to the study's knobs only."""

ACTS_FROM = {
    "start": 0,
    "model": 0,
    "data": 0,
    "objective": 0,
    "pretrain": 0,
    "midtrain": 1,
    "grpo": 2,
    "evaluation": 3,
}
"""Part of a cell -> the first stage that it affects, as an index into the chain; evaluations come last."""

Variant = dict[str, Any]
"""Keys in which cells of one name differ, with one cell's values."""


def objective_name(cell: Cell) -> str:
    """Returns the name that the objective's file gives, else the name of its knobs."""
    name = cell.objective.name
    return knobs_name(cell) if name in UNNAMED else name


def knobs_name(cell: Cell) -> str:
    """Returns the study's name where the knobs are one of its five settings, else the knobs: `lam_tail=-0.5,k=32`."""
    objective = cell.objective
    knobs = {"beta": objective.beta, "lam_head": objective.lam_head, "lam_tail": objective.lam_tail}
    # The size of the head is worth naming only where the head has an effect and is not the usual one.
    has_other_head = objective.lam_head != objective.lam_tail and objective.top_k != cell.data.top_k
    for name, setting in NAMED.items():
        if not has_other_head and all(getattr(setting, key) == value for key, value in knobs.items()):
            return name
    shown = [f"{key}={value:g}" for key, value in knobs.items() if value]
    return ",".join([*shown, f"k={objective.top_k}"] if has_other_head else shown)


def cell_name(cell: Cell) -> str:
    """Returns the name of a cell, such as `nano/precision/seed1`; several cells of a sweep may have the same."""
    return f"{cell.model_name}/{objective_name(cell)}/seed{cell.seed}"


def cell_of(labels: Mapping[str, Any]) -> str:
    """Returns the name of the cell that a stage run with these labels was planned for, with its variant if any."""
    name = "/".join(str(labels.get(key, "?")) for key in ("model", "objective")) + f"/seed{labels.get('seed', '?')}"
    return f"{name}/{labels['variant']}" if labels.get("variant") else name


def checkpoint_name(step: int) -> str:
    """Returns the folder of the checkpoint after `step` steps, such as `step-000128`."""
    return f"step-{step:06d}"


def variants(cells: list[Cell]) -> list[Variant]:
    """Returns, for each cell, the keys that tell it from the other cells of its name."""
    # Indices of cells by name.
    same_name: dict[str, list[int]] = defaultdict(list)
    for index, cell in enumerate(cells):
        same_name[cell_name(cell)].append(index)
    result: list[Variant] = [{} for _ in cells]
    for indices in same_name.values():
        for part in ACTS_FROM:
            # Comparing texts first spares the many cells whose part is the same.
            if len({repr(getattr(cells[index], part)) for index in indices}) > 1:
                contents = {index: _dotted_content(cells[index], part) for index in indices}
                # Dotted keys whose values are not the same in all of these cells.
                for key in _differing(list(contents.values())):
                    for index, content in contents.items():
                        result[index][key] = content.get(key)
    return result


def _dotted_content(cell: Cell, part: str) -> dict[str, Any]:
    value = getattr(cell, part)
    # Objectives are compared as in signatures: cells that differ only in a head without effect are one cell.
    content = objective_content(value) if isinstance(value, ObjectiveConfig) else asdict(value)
    for key in ("name", "mixtures"):  # stages have their mixtures themselves
        content.pop(key, None)
    return flatten(content, f"{part}.")


def _differing(contents: list[dict[str, Any]]) -> list[str]:
    keys = {key for content in contents for key in content}
    return sorted(key for key in keys if len({repr(content.get(key)) for content in contents}) > 1)


def shown(variant: Variant, *, parts: set[str]) -> list[str]:
    """Returns a variant's keys that are in `parts` of a cell, as `key=value`."""
    return [f"{key}={value}" for key, value in variant.items() if key.split(".")[0] in parts]


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings as one with dotted keys that begin with `prefix`."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
