"""`reproduce-paper-tables compare=[A,B]`: two sweeps, two stores, or what two commits made, on one page.

Settings are matched by model and name and paired by seed; differences are B minus A, with the interval of the claims'
bootstrap and Holm's correction over all of them.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.figures.charts import Chart, setting_order
from analysis.figures.headline_figure import interval_panel
from analysis.figures.vega_lite import Spec
from analysis.headline import (
    ENTROPY,
    NOT_TOLD_APART,
    PERPLEXITY,
    Difference,
    Measure,
    difference,
    measures,
    sampled_entry,
    with_words,
)
from analysis.headline_words import difference_text
from analysis.study import Study, read_stored
from analysis.tables import Entry
from pipelines.configuration import STAGES
from pipelines.errors import UserError
from sweeps.store.stage_runs import Store

LISTED = 40
"""Most keys of the configuration that are listed."""


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    name: str
    study: Study


@dataclass(frozen=True)
class ComparedRow:
    """One measure of one setting in both."""

    model: str
    setting: str
    measure: Measure
    first: Entry
    second: Entry
    difference: Difference | None
    """Second minus first; None without a seed in common."""


@dataclass(frozen=True)
class Comparison:
    """Two studies next to each other."""

    sides: tuple[Side, Side]
    rows: list[ComparedRow]
    configuration: list[tuple[str, str, str]]
    """(key, value in the first, value in the second) of every key that differs."""
    only: tuple[list[str], list[str]]
    """Settings that only one of them has."""

    @property
    def told_apart(self) -> list[ComparedRow]:
        """The rows whose difference is significant."""
        return [row for row in self.rows if row.difference and row.difference.word != NOT_TOLD_APART]


def of_commit(study: Study, commit: str) -> Study:
    """Returns the part of a study whose stage runs recorded this commit, or one that begins so.

    Raises `UserError` if there is none.
    """
    commits = {s: str((spec.get("environment") or {}).get("commit", "")) for s, spec in study.specs.items()}
    chosen = {signature for signature, recorded in commits.items() if recorded.startswith(commit)}
    if not chosen:
        known = ", ".join(sorted(set(filter(None, commits.values())))[:4]) or "none"
        raise UserError(
            f"compare={commit}: it is no named sweep, no folder of a store and no commit that a stage run recorded "
            f"(recorded: {known})"
        )
    return replace(
        study,
        measurements=study.measurements[study.measurements["stage_run"].isin(chosen)],
        runs=study.runs[study.runs["stage_run"].isin(chosen)],
        specs={signature: spec for signature, spec in study.specs.items() if signature in chosen},
    )


def compare(first: Side, second: Side) -> Comparison:
    """Returns the comparison of two studies."""
    (result, ours), (other_result, theirs) = measures(first.study), measures(second.study)
    # Rewards can only be compared with rewards, so the measures must be the same.
    shown = [("entropy", ENTROPY), ("perplexity", PERPLEXITY)]
    if result.title == other_result.title:
        shown += [("before", replace(result, name="before")), ("after", result)]
    rows = []
    for key in [key for key in ours if key in theirs]:
        for name, measure in shown:
            a, b = ours[key].get(name), theirs[key].get(name)
            if a is None and b is None:
                continue
            first_entry, second_entry = (sampled_entry(sampled, measure.digits) for sampled in (a, b))
            rows.append(ComparedRow(*key, measure, first_entry, second_entry, difference(b, a)))
    worded = iter(with_words([row.difference for row in rows if row.difference]))
    rows = [replace(row, difference=next(worded)) if row.difference else row for row in rows]
    only = ([_cell(key) for key in ours if key not in theirs], [_cell(key) for key in theirs if key not in ours])
    return Comparison((first, second), rows, _configuration(first.study, second.study), only)


def _cell(key: tuple[str, str]) -> str:
    return f"{key[1]}, {key[0]}"


def _configuration(first: Study, second: Study) -> list[tuple[str, str, str]]:
    """Every key of which the stage runs of the two have other values."""
    ours, theirs = _values(first), _values(second)
    keys = dict.fromkeys([*ours, *theirs])
    return [(key, _shown(ours.get(key)), _shown(theirs.get(key))) for key in keys if ours.get(key) != theirs.get(key)]


def _values(study: Study) -> dict[str, set[str]]:
    """`stage key` -> its distinct values over the stage runs of a study, as JSON."""
    values: dict[str, set[str]] = {}
    for stage in STAGES:
        for spec in study.specs.values():
            if spec["stage"] == stage:
                whole = {**spec["config"], "version": spec["version"], **_environment(spec)}
                for key, value in flat(whole):
                    values.setdefault(f"{stage} {key}", set()).add(json.dumps(value))
    return values


def _environment(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What of the environment may change a result."""
    environment = spec.get("environment") or {}
    return {name: environment[name] for name in ("commit", "torch", "transformers") if name in environment}


def flat(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf of nested dictionaries."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(part, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _shown(values: set[str] | None) -> str:
    return "–" if values is None else ", ".join(sorted(values)[:6]) + (", ..." if len(values) > 6 else "")


def sentence(comparison: Comparison) -> str:
    """Returns what the comparison shows in one sentence."""
    first, second = (side.name for side in comparison.sides)
    count = sum(row.difference is not None for row in comparison.rows)
    if not count:
        return f"{first} and {second} have no setting with a seed in common that both measured."
    told = sorted(comparison.told_apart, key=lambda row: -abs(row.difference.estimate.value))  # type: ignore[union-attr]
    if not told:
        return f"None of {count} differences between {second} and {first} can be told apart from chance."
    parts = [
        f"{row.measure.title} of {row.setting} ({difference_text(row.difference, row.measure)})"
        for row in told[:3]
        if row.difference
    ]
    more = f", and {len(told) - 3} more" if len(told) > 3 else ""
    return f"{len(told)} of {count} differences of {second} from {first} are significant: {'; '.join(parts)}{more}."


def comparison_chart(comparison: Comparison) -> Chart:
    """Returns the figure of the differences, a panel for each measure."""
    settings = setting_order(row.setting for row in comparison.rows)
    panels: list[Spec] = []
    frames = []
    for name in dict.fromkeys(row.measure.name for row in comparison.rows):
        rows = [row for row in comparison.rows if row.measure.name == name and row.difference]
        if not rows:
            continue
        drawn = pd.DataFrame([_record(row) for row in rows])
        what = {"before": "before RL", "result": "after RL"}.get(name, name)
        unit = "points" if rows[0].measure.unit == "percent" else rows[0].measure.unit
        title = [what, f"difference ({unit})" if unit else "difference"]
        panels.append(interval_panel(drawn, title, settings=settings, zero=True, labels=not panels))
        frames.append(drawn.drop(columns="tip").assign(measure=name))
    data = pd.concat(frames) if frames else pd.DataFrame()
    return Chart("comparison", None, "Differences", "95 % intervals.", tuple(panels), data)


def _record(row: ComparedRow) -> dict[str, Any]:
    assert row.difference is not None
    estimate = row.difference.estimate
    low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    text = f"{row.setting}; {difference_text(row.difference, row.measure)}; {row.difference.word}"
    numbers = {"mean": estimate.value, "low": low, "high": high}
    return {"row": row.setting, "objective": row.setting, **numbers, "tip": text}


def resolve(name: str, named: Callable[[str], Study | None], stored: Callable[[], Study]) -> Side:
    """Returns one side by its name: a folder of a store, a named sweep, or a commit.

    `named` reads a named sweep and returns None if there is none; `stored` reads the whole store.
    """
    if (Path(name) / "STORE.json").exists():
        return Side(name, read_stored(Store.open(name)))
    study = named(name)
    return Side(name, study if study is not None else of_commit(stored(), name))
