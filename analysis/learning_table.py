"""The table of how RL learns: both temperatures side by side, the area under the held-out curve, the price in entropy.

One row for each setting of a model, then one for each control that did RL from a tempered cross-entropy model. The
columns at RL's temperature are of its own held-out problems, those at the evaluation's of the mathematics benchmarks.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.estimates import Estimates
from analysis.headline import sampled_entry
from analysis.learning import Key, RLCurve, rl_curves, sampled
from analysis.measurement_grid import Checkpoint
from analysis.statistics import Floats, Sampled, hierarchical_bootstrap
from analysis.study import NotMeasured, Study, baselines
from analysis.table_columns import average_columns, largest_metric, metric_title, with_columns
from analysis.tables import Column, Entry, Table, interval_note

TARGET_GRID = 5.0
"""The reward that runs are timed to is a multiple of this, in percent."""
TEMPERED = "tempered:"
"""How the variant of RL from a tempered start begins; the setting follows whose entropy the start has."""


@dataclass(frozen=True)
class _Row:
    """One row: whose curves, and what it is called."""

    name: str
    key: Key


def learning_table(study: Study, estimates: Estimates, model: str, *, provenance: str) -> Table | None:
    """Returns the table of one model; None if none of its RL runs has measured held-out problems."""
    planned = study.runs[(study.runs["model"] == model) & (study.runs["stage"] == "grpo")]
    curves = rl_curves(study)
    if not any(curve.has_area for key, found in curves.items() if key[0] == model for curve in found):
        return None
    pairs = planned[["objective", "variant"]].drop_duplicates().itertuples(index=False)
    rows = [_Row(row_name(str(objective), str(variant)), (model, objective, variant)) for objective, variant in pairs]
    rows.sort(key=lambda row: row.key[2] != "")  # stable: settings in the plan's order, then the controls
    target = target_reward(curves.get((model, str(baselines(study).get(model)), ""), []))
    records = []
    for row in rows:
        of_row = curves.get(row.key, [])
        waits_for = _waits_for(study, row.key)
        record = {
            **_temperature_columns(study, estimates, row.key, curves=of_row),
            **{
                column: replace(entry, waits_for=waits_for)
                for column, entry in _curve_columns(of_row, target, is_control=bool(row.key[2])).items()
            },
        }
        records.append(record)
    cells = with_columns(records, pd.Index([row.name for row in rows], name="RL from"))
    return Table(
        f"learning-{model}", None, f"How RL learns, {model}", _caption(cells, target, provenance), cells, model
    )


def _caption(cells: pd.DataFrame, target: float | None, provenance: str) -> str:
    timed = "" if target is None else (
        f" A run that does not reach {target:g} % counts with all of its steps; {target:g} % is about half of "
        "cross-entropy's gain."
    )  # fmt: skip
    return (
        f"Percent. {interval_note(cells)} Area: the mean reward on held-out problems over the course of RL, by "
        "trapezoids. Entropy is that of the sampled tokens, the first steps minus the last, in all and for each ten "
        f"points of held-out reward that were gained.{timed} {provenance}"
    )


def row_name(objective: str, variant: str) -> str:
    """Returns what RL starts from, in words."""
    return f"{objective}, tempered to {variant.removeprefix(TEMPERED)}" if variant else objective


def target_reward(curves: Iterable[RLCurve]) -> float | None:
    """Returns the reward that runs are timed to: midway in the baseline's mean gain, rounded; None without a curve.

    It depends on the baseline only, so no setting can be favoured by its choice.
    """
    measured = [curve for curve in curves if curve.has_area]
    if not measured:
        return None
    midway = sum(100 * float(curve.rewards[0] + curve.rewards[-1]) / 2 for curve in measured) / len(measured)
    return TARGET_GRID * round(midway / TARGET_GRID)


def _waits_for(study: Study, key: Key) -> tuple[str, ...]:
    runs = study.runs
    chosen = (runs["model"] == key[0]) & (runs["objective"] == key[1]) & (runs["variant"] == key[2])
    unfinished = runs.loc[chosen & (runs["stage"] == "grpo") & (runs["status"] != "done"), "stage_run"]
    return tuple(study.waits_for(unfinished)) if len(unfinished) else ()


# --- both temperatures --------------------------------------------------------------------------------------------


def _temperature_columns(study: Study, estimates: Estimates, key: Key, *, curves: list[RLCurve]) -> dict[Column, Any]:
    """Avg and Pass before and after RL: on held-out problems as RL samples, and on the benchmarks."""
    model, objective, variant = key
    columns = average_columns(estimates.grid.benchmarks.get((model, "grpo"), {}))
    sized = {scores.pairs[0][1]: scores for scores in columns.values() if scores.pairs}
    average, passed = largest_metric(sized, "avg"), largest_metric(sized, "pass")
    waits_for = _waits_for(study, key)
    entries: dict[Column, Any] = {}
    group = f"at temperature {_temperature(study, 'grpo')}".strip()
    for name, values in (("Avg", lambda curve: curve.rewards), (passed or "", lambda curve: curve.passes.get(passed))):
        for when, index in (("before", 0), ("after", -1)):
            if name:
                entry = _entry(_share(curves, values, index), 1, curves)
                entries[group, f"{metric_title(name)} {when}"] = replace(entry, waits_for=waits_for)
    group = f"at temperature {_temperature(study, 'evaluation')}, benchmarks".strip()
    steps = sorted(q.step for q in estimates.grid.rows if q[:3] == (model, objective, "grpo") and q.variant == variant)
    for metric in filter(None, (average, passed)):
        for when in ("before", "after"):
            entry = Entry(None, waits_for=waits_for)
            if when == "before":  # a tempered start is what the matched control measures
                start = variant.replace(TEMPERED, "matched:")
                entry = estimates.entry(Checkpoint(model, objective, "grpo", 0), sized[metric], start)
            elif steps:
                entry = estimates.entry(Checkpoint(model, objective, "grpo", steps[-1]), sized[metric], variant)
            entries[group, f"{metric_title(metric)} {when}"] = replace(entry, number_format="{:.1f}", variant=variant)
    return entries


def _temperature(study: Study, part: str) -> str:
    """The temperature of RL's samples or of the evaluations', if all have the same."""
    stage = "grpo" if part == "grpo" else "evaluate"
    runs = study.runs[study.runs["stage"] == stage]["stage_run"]
    found = {study.specs[run]["config"].get(part, {}).get("temperature") for run in runs}
    return f"{found.pop():g}" if len(found) == 1 and None not in found else ""


def _share(curves: list[RLCurve], values: Callable[[RLCurve], Floats | None], index: int) -> Sampled | None:
    """A held-out share at the first or last measured step, by seed, in percent."""
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for curve in curves:
        numbers = values(curve)
        if curve.has_area and numbers is not None:
            # The error of the reward stands for that of Pass@k, which is not known from a ledger.
            error = float(curve.deviations[index]) / math.sqrt(max(1, curve.problems - 1))
            by_seed.setdefault(curve.seed, []).append((100 * float(numbers[index]), 100 * error))
    if not by_seed:
        return None
    means = [tuple(map(_mean, zip(*pairs, strict=True))) for pairs in by_seed.values()]
    numbers, errors = (pd.Series(column, dtype=float).to_numpy() for column in zip(*means, strict=True))
    problems = curves[0].problems
    return Sampled(tuple(by_seed), numbers, (("held-out problems", None, errors),), 100 / problems, (0.0, 100.0))


def _mean(numbers: Iterable[float]) -> float:
    values = list(numbers)
    return math.fsum(values) / len(values)


# --- the course of RL ---------------------------------------------------------------------------------------------


def _curve_columns(curves: list[RLCurve], target: float | None, *, is_control: bool) -> dict[Column, Entry]:
    """Area, steps to the target, and the entropy that was spent."""
    columns = {("over RL", "area"): ("area", 0.0, 1)}
    if target is not None:
        columns["over RL", f"steps to {target:g} %"] = ("steps_to", target, 1)
    columns["entropy", "spent (nats)"] = ("entropy_spent", 0.0, 3)
    columns["entropy", "for ten points"] = ("entropy_price", 0.0, 4)
    entries = {}
    for column, (name, reward, digits) in columns.items():
        try:
            ends = (0.0, float(max(c.steps[-1] for c in curves))) if name == "steps_to" else (-math.inf, math.inf)
            entry = _entry(sampled(curves, name, reward), digits, curves, ends=ends)
        except NotMeasured:
            entry = Entry(None)
        entries[column] = replace(entry, variant="control" if is_control and entry.value is not None else "")
    return entries


def _entry(
    measure: Sampled | None, digits: int, curves: list[RLCurve], *, ends: tuple[float, float] = (-math.inf, math.inf)
) -> Entry:
    """A measure with its interval and the RL runs behind it; signed numbers have a symmetric interval.

    `ends` are the smallest and largest possible value, which cut an interval.
    """
    if measure is None:
        return Entry(None)
    runs = tuple(curve.stage_run for curve in curves)
    if math.isfinite(measure.bounds[1]):
        return replace(sampled_entry(measure, digits), stage_runs=runs)
    found = hierarchical_bootstrap([measure], lambda values: values[0])
    low, high = (end if end is None else min(max(end, ends[0]), ends[1]) for end in (found.low, found.high))
    return Entry(
        found.value,
        low,
        high,
        found.n,
        stage_runs=runs,
        number_format=f"{{:.{digits}f}}",
        by_seed=tuple(measure.values.tolist()),
    )
