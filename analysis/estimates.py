"""Numbers with their intervals: the mean over seeds of one or several measured quantities.

With several seeds a number is their mean with its 95 % interval; with one seed it is the number with the interval over
its problems. Percentages have Wilson's interval, other numbers one on the scale of their log. Tables, figures and the
headline have the same numbers.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from analysis.measurement_grid import Checkpoint, MeasurementGrid, Quantity, build_grid
from analysis.statistics import fraction_interval, positive_interval, t_quantile
from analysis.study import Study
from analysis.table_columns import Scores
from analysis.tables import Entry

NORMAL_QUANTILE = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Estimates:
    """The estimates of one study."""

    study: Study
    grid: MeasurementGrid

    @classmethod
    def of(cls, study: Study) -> "Estimates":
        """Returns the estimates of a study."""
        return cls(study, build_grid(study))

    def waits_for(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """`stage/signature` of the stage runs that the checkpoint's evaluations need."""
        unfinished = [s for s in self.grid.evaluations.get(checkpoint, ()) if self.study.status[s] != "done"]
        return tuple(self.study.waits_for(unfinished)) if unfinished else ()

    def entry(self, checkpoint: Checkpoint, scores: Scores, variant: str = "") -> Entry:
        """The mean over `scores` at a checkpoint, over the seeds that have all of them."""
        waits_for = self.waits_for(checkpoint)
        rows = [self.grid.rows.get(Quantity(*checkpoint, variant, *pair)) for pair in scores.pairs]
        present = [row for row in rows if row is not None]
        if not present or len(present) < len(rows):
            return Entry(None, waits_for=waits_for)

        # [scores, seeds] -> one value per seed, NaN for a seed that lacks one of the scores.
        by_seed = [value * scores.factor for value in self.grid.values[present].mean(0).tolist()]
        measured = [not math.isnan(value) for value in by_seed]
        if not any(measured):
            return Entry(None, waits_for=waits_for)
        # [scores, seeds that were measured] -> how much one item moves each number.
        items = self.grid.resolutions[present]
        if not all(measured):
            items = items[:, measured]
        resolution = scores.factor * math.sqrt(float(np.vdot(items, items)) / sum(measured)) / len(present)
        # The error over items is that of a single seed; it is not needed where seeds have a spread.
        error = 0.0
        if sum(measured) == 1:
            errors = self.grid.errors[present][:, measured] * scores.factor
            error = math.sqrt(float((errors**2).sum())) / len(present)
        precision = Precision(error, resolution, scores.factor * float(items.sum()) / items.size)
        entry = seed_mean(by_seed, precision, is_share=scores.factor != 1)
        runs = tuple(dict.fromkeys(run for row in present for run in self.grid.stage_runs[row]))
        return replace(entry, stage_runs=runs, waits_for=waits_for, variant=variant)


@dataclass(frozen=True)
class Precision:
    """How exactly one seed's value is known."""

    error: float
    """Its standard error over items."""
    resolution: float
    """How much one item moves it."""
    item: float
    """How much one item moves one of the numbers that it averages."""


def seed_mean(by_seed: list[float], precision: Precision, *, is_share: bool) -> Entry:
    """Returns the mean of one value per seed, NaN for a missing one, with its interval.

    `is_share` if it is a percentage. Raises `ValueError` if all are missing.
    """
    values = [value for value in by_seed if not math.isnan(value)]
    n = len(values)
    if n == 0:
        raise ValueError("no seed has a value")
    mean = math.fsum(values) / n
    if n > 1:
        variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n
        quantile = t_quantile(n - 1)
    else:  # one seed has no spread; its known error is the one over problems
        variance = precision.error**2
        quantile = NORMAL_QUANTILE
    variance += precision.resolution**2 / n
    low, high = _interval(mean, variance, quantile, item=precision.item if is_share else None)
    return Entry(mean, low, high, n, by_seed=tuple(by_seed), resolution=precision.resolution)


def _interval(
    mean: float, variance: float, quantile: float, *, item: float | None
) -> tuple[float | None, float | None]:
    """The interval on the scale of the quantity; (None, None) if nothing is known of its error.

    `item` is how much one item moves a percentage, and None for other quantities.
    """
    if variance == 0:
        return None, None
    if item is None:
        return positive_interval(mean, variance, quantile=quantile)
    low, high = fraction_interval(mean / 100, variance / 100**2, item=item / 100, quantile=quantile)
    return low * 100, high * 100
