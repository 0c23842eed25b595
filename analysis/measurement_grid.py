"""A study's measurements as arrays [quantities, seeds], built once and shared by all tables and claims."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.places import places
from analysis.statistics import Floats
from analysis.study import Study, control_label


class Checkpoint(NamedTuple):
    """A measured point of training, seeds aside."""

    model: str
    objective: str
    stage: str
    step: int


class Quantity(NamedTuple):
    """What one row of the grid holds: a metric of a benchmark at a checkpoint, seeds aside."""

    model: str
    objective: str
    stage: str
    step: int
    variant: str
    benchmark: str
    metric: str

    @property
    def checkpoint(self) -> Checkpoint:
        """Where it was measured."""
        return Checkpoint(*self[:4])


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as measured: its group, and its metrics in the order in which they were measured."""

    group: str
    metrics: list[str]


Benchmarks = dict[str, Benchmark]
"""Benchmark's name -> what was measured of it."""


@dataclass(frozen=True)
class MeasurementGrid:
    """Values, errors and sources of every quantity, for every seed."""

    seeds: list[int]
    """The columns of `values`, `errors` and `resolutions`."""
    rows: dict[Quantity, int]
    """Quantity -> its row in `values`, `errors`, `resolutions` and `stage_runs`."""
    values: Floats
    """[quantities, seeds], NaN if a seed was not measured; repeated measurements of one seed are averaged."""
    errors: Floats
    """[quantities, seeds] standard errors over items."""
    resolutions: Floats
    """[quantities, seeds] how much one item moves the value; 0 if neither items nor an error were recorded."""
    stage_runs: list[tuple[str, ...]]
    """Row -> signatures of the evaluations that measured it."""
    benchmarks: dict[tuple[str, str], Benchmarks]
    """(model, stage) -> benchmarks, without those of evaluation variants."""
    evaluations: dict[Checkpoint, list[str]]
    """Checkpoint -> signatures of its planned evaluations, without variants."""


def is_share_of_items(metric: str) -> bool:
    """Whether a metric is the share of items that are right; tables and claims give these in percent."""
    return metric.split("@")[0] in ("accuracy", "avg", "cons", "pass")


def build_grid(study: Study) -> MeasurementGrid:
    """Returns the grid of all measurements of a study."""
    frame = study.measurements
    seeds = sorted(frame["seed"].unique().tolist())

    # Number the distinct quantities: `row` [measurements], `first` [quantities] is the first measurement of each.
    codes = [pd.factorize(frame[name])[0].astype(np.int64) for name in (*Quantity._fields, "seed")]
    identifiers = _combined(codes[:-1])
    distinct, first = np.unique(identifiers, return_index=True)
    row = np.searchsorted(distinct, identifiers)
    keys = zip(*(frame[name].iloc[first].tolist() for name in Quantity._fields), strict=True)
    rows = {Quantity(*key): number for number, key in enumerate(keys)}

    # Average values and errors into [quantities, seeds]; 0 / 0 is the NaN of what was not measured.
    column = np.searchsorted(seeds, frame["seed"].to_numpy()) if seeds else np.zeros(0, np.int64)
    shape = (len(distinct), max(1, len(seeds)))
    cell = row * shape[1] + column
    count = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    with np.errstate(invalid="ignore"):
        values, errors, resolutions = (
            np.bincount(cell, numbers, minlength=count.size).reshape(shape) / count
            for numbers in (
                *(frame[name].fillna(0).to_numpy(float) for name in ("value", "stderr")),
                _resolution(frame),
            )
        )
    groups = dict(zip(frame["benchmark"].iloc[first], frame["group"].iloc[first], strict=True))
    return MeasurementGrid(
        seeds=seeds,
        rows=rows,
        values=values,
        errors=errors,
        resolutions=resolutions,
        stage_runs=_stage_runs(row, len(distinct), frame["stage_run"]),
        benchmarks=_benchmarks(rows, groups, first),
        evaluations=_evaluations(study),
    )


def _resolution(frame: pd.DataFrame) -> Floats:
    """How much one item moves each measurement [measurements]: 1 / n for a fraction, else stderr / sqrt(n)."""
    items = frame["n"].fillna(1).to_numpy(float).clip(1)
    codes, metrics = pd.factorize(frame["metric"])
    resolution_is_known = np.array([is_share_of_items(metric) for metric in metrics], dtype=bool)[codes]
    resolution: Floats = np.where(resolution_is_known, 1 / items, frame["stderr"].fillna(0) / np.sqrt(items))
    return resolution


def _stage_runs(row: NDArray[np.int64], count: int, signatures: "pd.Series[Any]") -> list[tuple[str, ...]]:
    """For each of `count` rows, the distinct signatures of the measurements with that `row` number."""
    codes, names = pd.factorize(signatures)
    size = max(1, len(names))
    # Sort the (row, signature) pairs as single integers, and drop repeated ones.
    pairs = np.sort(row * size + codes)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    ordered = np.array(names, dtype=object)[pairs % size].tolist()
    ends = np.searchsorted(pairs, np.arange(count + 1) * len(names)).tolist()
    return [tuple(ordered[a:b]) for a, b in pairwise(ends)]


def _benchmarks(
    rows: dict[Quantity, int], groups: dict[str, str], first: NDArray[np.int64]
) -> dict[tuple[str, str], Benchmarks]:
    """`MeasurementGrid.benchmarks`, in the order in which they were measured."""
    # Sorting by the first measurement gives the order in which they were measured.
    benchmarks: dict[tuple[str, str], Benchmarks] = defaultdict(dict)
    for quantity in sorted(rows, key=lambda quantity: first[rows[quantity]]):
        if quantity.variant == "":
            name = quantity.benchmark
            measured = benchmarks[quantity.model, quantity.stage].setdefault(name, Benchmark(groups[name], []))
            if quantity.metric not in measured.metrics:
                measured.metrics.append(quantity.metric)
    return benchmarks


def _combined(codes: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """One integer for each combination of codes."""
    # Mixed radix: each code is a digit.
    total = np.zeros(len(codes[0]), np.int64)
    for code in codes:
        total = total * (int(code.max(initial=0)) + 1) + code
    return total


def _evaluations(study: Study) -> dict[Checkpoint, list[str]]:
    """`MeasurementGrid.evaluations`; those of the model that RL starts from are listed for RL's step 0 too."""
    evaluations: dict[Checkpoint, list[str]] = defaultdict(list)
    measured = places(study.plan)
    planned = study.runs[study.runs["stage"] == "evaluate"]
    for signature, model, objective in zip(
        *(planned[name].tolist() for name in ("stage_run", "model", "objective")), strict=True
    ):
        if control_label(study.plan, study.plan.runs[signature]):
            continue  # it measures a variant
        for place in measured.get(signature, []):
            evaluations[Checkpoint(model, objective, place.stage, place.step)].append(signature)
    return evaluations
