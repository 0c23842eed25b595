"""The table of luck: how much seeds of pre-training move RL's results, and how much RL seeds do."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from analysis.learning import MEASURES, RLCurve, rl_curves
from analysis.study import Study
from analysis.table_columns import with_columns
from analysis.tables import Column, Entry, Table
from analysis.variance import Component, Components, components

ALL_SETTINGS = "all settings"


def variance_table(study: Study, model: str, provenance: str) -> Table | None:
    """Returns the table of luck before RL and in it; None unless some seeds of a setting have several RL seeds."""
    curves = {key[1]: found for key, found in rl_curves(study).items() if key[0] == model and not key[2]}
    groups: dict[str, dict[str, list[list[float]]]] = {}
    for title, measure in LUCK.items():
        groups[title] = {setting: _by_seed(found, measure) for setting, found in curves.items()}
    records, index = [], []
    for setting in [*(name for name in study.settings if name in curves), ALL_SETTINGS]:
        record: dict[Column, Any] = {}
        for title, by_setting in groups.items():
            chosen = list(by_setting.values()) if setting == ALL_SETTINGS else [by_setting[setting]]
            record |= _component_columns(title, components(chosen), chosen)
        if any(entry.value is not None for entry in record.values()):
            records.append(record)
            index.append(setting)
    if not records:
        return None
    cells = with_columns(records, pd.Index(index, name="setting"))
    caption = (
        "Standard deviations in points, with 95 % intervals: of seeds of pre-training and mid-training, of RL seeds "
        "from one mid-trained model, which includes the noise of sampling, and the share of the variance that is "
        f"between seeds. {ALL_SETTINGS.capitalize()}: each with its mean, equal variances assumed. {provenance}"
    )
    return Table(f"variance-{model}", None, f"Luck before RL and in it, {model}", caption, cells, model)


LUCK: dict[str, Callable[[RLCurve], float]] = {
    "area": lambda curve: MEASURES["area"].of(curve, 0.0),
    "held-out reward after RL": lambda curve: 100 * float(curve.rewards[-1]) if curve.has_area else float("nan"),
}
"""What the table of luck is about -> a run's value in percent."""


def _by_seed(curves: list[RLCurve], measure: Callable[[RLCurve], float]) -> list[list[float]]:
    by_seed: dict[int, list[float]] = {}
    for curve in curves:
        if not math.isnan(value := measure(curve)):
            by_seed.setdefault(curve.seed, []).append(value)
    return list(by_seed.values())


def _component_columns(title: str, found: Components | None, groups: list[list[list[float]]]) -> dict[Column, Entry]:
    """Both components and the share; without an estimate, empty entries."""
    names = {"seeds (sd)": "between", "RL seeds (sd)": "within", "share before RL": "share"}
    if found is None:
        return {(title, name): Entry(None) for name in names}
    seeds = sum(map(len, groups))
    entries = {}
    for name, attribute in names.items():
        part: Component = getattr(found, attribute)
        entries[title, name] = Entry(part.value, part.low, part.high, seeds)
    return entries
