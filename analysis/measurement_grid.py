"""A study's measurements gathered once for all tables: one row of numbers over seeds for each place and metric."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from analysis.statistics import Floats
from analysis.study import Study, checkpoint_step

Key = tuple[str, str, str, int, str, str, str]
"""model, objective, stage, step, variant, benchmark, metric"""

KEYS = ["model", "objective", "stage", "step", "variant", "benchmark", "metric"]


@dataclass
class Cells:
    """Numbers over seeds, by place."""

    seeds: list[int]
    rows: dict[Key, int]
    values: Floats
    """[places, seeds], NaN where a seed was not measured; several measurements of one seed are averaged."""
    errors: Floats
    """[places, seeds] standard errors over items"""
    stage_runs: list[tuple[str, ...]]
    benchmarks: dict[tuple[str, str], dict[str, tuple[str, list[str]]]] = field(default_factory=dict)
    """(model, stage) -> benchmark -> its group and metrics, variants left out"""
    evaluations: dict[tuple[str, str, str, int], list[str]] = field(default_factory=dict)
    """(model, objective, stage, step) -> signatures of its planned evaluations"""


def gather(study: Study) -> Cells:
    """The cells of a study."""
    frame = study.measurements
    seeds = sorted(frame["seed"].unique().tolist())
    codes = [pd.factorize(frame[name])[0].astype(np.int64) for name in (*KEYS, "seed")]
    place = _combined(codes[:-1])
    cell, first = np.unique(place, return_index=True)
    number = np.searchsorted(cell, place)
    column = np.searchsorted(seeds, frame["seed"].to_numpy()) if len(seeds) else np.zeros(0, np.int64)
    shape = (len(cell), max(1, len(seeds)))
    flat = number * shape[1] + column
    count = np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)
    with np.errstate(invalid="ignore"):
        values, errors = (
            np.bincount(flat, frame[name].fillna(0).to_numpy(float), minlength=count.size).reshape(shape) / count
            for name in ("value", "stderr")
        )
    run, names = pd.factorize(frame["stage_run"])
    pairs = np.sort(number * max(1, len(names)) + run)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    signatures = np.array(names, dtype=object)[pairs % max(1, len(names))].tolist()
    ends = np.searchsorted(pairs, np.arange(len(cell) + 1) * len(names)).tolist()
    keys = zip(*(frame[name].iloc[first].tolist() for name in KEYS), strict=True)
    rows: dict[Key, int] = {key: row for row, key in enumerate(keys)}
    return Cells(
        seeds,
        rows,
        values,
        errors,
        [tuple(signatures[a:b]) for a, b in pairwise(ends)],
        _benchmarks(rows, dict(zip(frame["benchmark"].iloc[first], frame["group"].iloc[first], strict=True)), first),
        _evaluations(study),
    )


def _benchmarks(
    rows: dict[Key, int], group: dict[str, str], first: Any
) -> dict[tuple[str, str], dict[str, tuple[str, list[str]]]]:
    """In the order in which they were measured."""
    found: dict[tuple[str, str], dict[str, tuple[str, list[str]]]] = defaultdict(dict)
    for key in sorted(rows, key=lambda key: first[rows[key]]):
        model, _, stage, _, variant, benchmark, metric = key
        if variant == "":
            metrics = found[model, stage].setdefault(benchmark, (group[benchmark], []))[1]
            if metric not in metrics:
                metrics.append(metric)
    return found


def _combined(codes: list[Any]) -> Any:
    """One integer for each combination of codes."""
    total = np.zeros(len(codes[0]), np.int64)
    for code in codes:
        total = total * (int(code.max(initial=0)) + 1) + code
    return total


def _evaluations(study: Study) -> dict[tuple[str, str, str, int], list[str]]:
    found: dict[tuple[str, str, str, int], list[str]] = defaultdict(list)
    runs = study.runs
    starts = {(run.parent[1], run.checkpoint) for run in study.plan.runs.values() if run.stage == "grpo" and run.parent}
    own = runs[runs["stage"] == "evaluate"]
    for signature, model, objective, stage, checkpoint in zip(
        *(own[name].tolist() for name in ("stage_run", "model", "objective", "measures", "checkpoint")), strict=True
    ):
        if study.plan.runs[signature].control:
            continue  # its numbers are a variant's
        found[model, objective, stage, checkpoint_step(checkpoint)].append(signature)
        parent = study.plan.runs[signature].parent
        if parent and (parent[1], checkpoint) in starts:
            found[model, objective, "grpo", 0].append(signature)
    return found
