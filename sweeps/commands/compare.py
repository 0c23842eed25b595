"""`shaping-sweeps compare CELL CELL`: two cells next to each other: configuration, curves, results with intervals."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from pipelines.configuration import STAGES, TRAINING_STAGES
from pipelines.errors import UserError
from sweeps.commands.shared_arguments import AsJson, StorePath, app, complete_cells
from sweeps.monitor.sparklines import curve, curve_text
from sweeps.monitor.status import Row, rows
from sweeps.store.stage_runs import Store

NORMAL_QUANTILE = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""
CellName = Annotated[
    str, typer.Argument(help="MODEL/SETTING/seedN, as status shows it.", autocompletion=complete_cells)
]
Place = tuple[str, str]
"""(stage, what it measures): `("evaluate", "midtrain/step-000781")`; the second is empty for training."""


@app.command()
def compare(first: CellName, second: CellName, *, store: StorePath = "store", as_json: AsJson = False) -> None:
    """Show two cells next to each other: how their configurations differ, their curves, and their last results.

    Results are those of the last checkpoint that both have measured, with 95 % intervals over items, and the difference
    of the second from the first. Intervals over seeds need several cells: reproduce-paper-tables compare=[A,B].
    """
    opened = Store.open(store)
    runs = [_runs(opened, name) for name in (first, second)]
    differs = list(_configuration(opened, *runs))
    results = list(_results(opened, *runs))
    if as_json:
        print(json.dumps({"configuration": differs, "curves": _curves(opened, runs), "results": results}, indent=1))
        return
    print("\n".join(_lines(opened, (first, second), runs, differs=differs, results=results)))


def _runs(store: Store, name: str) -> dict[Place, Row]:
    """The stage runs of a cell, without controls; raises `UserError` if there is no such cell, or several."""
    matches = [row for row in rows(store, [name]) if not row.labels.get("control")]
    cells = sorted({row.cell for row in matches})
    if len(cells) != 1:
        raise UserError(
            f"{name}: it selects {len(cells)} cells ({', '.join(cells[:3])}, ...); name one as status shows it"
        )
    # Stage runs that cells share are labelled by one of them, so parents are followed.
    every = {row.signature: row for row in rows(store)}
    found: dict[Place, Row] = {}
    for row in matches:
        current: Row | None = row
        while current is not None:
            found.setdefault((current.stage, current.measured if current.stage == "evaluate" else ""), current)
            current = every.get(current.parent or "")
    return found


def _configuration(store: Store, first: dict[Place, Row], second: dict[Place, Row]) -> Iterator[dict[str, Any]]:
    """The keys in which the stage runs of a stage differ, with both values."""
    for stage in STAGES:
        values = []
        for runs in (first, second):
            signatures = [row.signature for place, row in runs.items() if place[0] == stage and row.status != "missing"]
            values.append(dict(_flat(store.run(stage, signatures[0]).spec["config"])) if signatures else {})
        for key in dict.fromkeys([*values[0], *values[1]]):
            a, b = (value.get(key) for value in values)
            if all(values) and a != b:
                yield {"stage": stage, "key": key, "first": a, "second": b}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested dictionaries."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _ledger(store: Store, runs: dict[Place, Row], stage: str) -> list[dict[str, Any]]:
    row = runs.get((stage, ""))
    return store.run(stage, row.signature).ledger() if row and row.status != "missing" else []


def _curves(store: Store, runs: list[dict[Place, Row]]) -> dict[str, list[list[float]]]:
    """Stage -> what its ledger shows, of both cells."""
    return {stage: [curve(stage, _ledger(store, of_cell, stage))[1] for of_cell in runs] for stage in TRAINING_STAGES}


def _results(store: Store, first: dict[Place, Row], second: dict[Place, Row]) -> Iterator[dict[str, Any]]:
    """The measurements that both have at the last checkpoint of each stage, with the difference and its interval."""
    last: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for index, runs in enumerate((first, second)):
        for (stage, measured), row in runs.items():
            if stage == "evaluate" and row.status == "done":
                result = store.run("evaluate", row.signature).result or {}
                last.setdefault(measured.replace("/", " "), {})[str(index)] = result.get("measurements") or []
    shared = {place: both for place, both in last.items() if len(both) == 2}
    final = {place.split()[0]: place for place in sorted(shared)}  # the last checkpoint of a stage replaces the others
    for stage in TRAINING_STAGES:
        if stage not in final:
            continue
        a, b = ({(m["benchmark"], m["metric"]): m for m in shared[final[stage]][str(index)]} for index in (0, 1))
        for key in [key for key in a if key in b]:
            yield {"place": final[stage], "benchmark": key[0], "metric": key[1], **_difference(a[key], b[key])}


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both values, and their difference with the interval of two independent numbers; None without an error."""
    difference = second["value"] - first["value"]
    half = NORMAL_QUANTILE * math.hypot(first.get("stderr") or 0.0, second.get("stderr") or 0.0)
    ends = {"low": difference - half, "high": difference + half} if half else {"low": None, "high": None}
    return {"first": first["value"], "second": second["value"], "difference": difference, **ends}


def _lines(
    store: Store,
    names: tuple[str, str],
    runs: list[dict[Place, Row]],
    *,
    differs: list[dict[str, Any]],
    results: list[dict[str, Any]],
) -> Iterator[str]:
    yield f"first   {names[0]}"
    yield f"second  {names[1]}"
    yield ""
    yield "configuration" + ("" if differs else ": no difference")
    for entry in differs:
        yield f"  {entry['stage']:10}{entry['key']}: {json.dumps(entry['first'])} -> {json.dumps(entry['second'])}"
    yield ""
    yield "curves"
    for stage in TRAINING_STAGES:
        for title, of_cell in zip(("first", "second"), runs, strict=True):
            row = of_cell.get((stage, ""))
            text = curve_text(stage, _ledger(store, of_cell, stage)) or (row.status if row else "not planned")
            yield f"  {stage:10}{title:8}{text}"
    yield ""
    yield f"{'results: second - first':50}{'first':>10}{'second':>10}{'difference':>12}  95 % interval"
    place = ""
    for result in results:
        if result["place"] != place:
            place = result["place"]
            yield f"  {place}"
        name = f"    {result['benchmark']} {result['metric']}"
        low, high = result["low"], result["high"]
        interval = "no interval"
        if low is not None:
            interval = f"[{low:+.4g}, {high:+.4g}]" + (" *" if low > 0 or high < 0 else "")
        yield f"{name:50}{result['first']:>10.4g}{result['second']:>10.4g}{result['difference']:>+12.4g}  {interval}"
    if results:
        yield "* the interval over items excludes 0; it says nothing about other seeds"
    else:
        yield "  none: no checkpoint is measured in both"
