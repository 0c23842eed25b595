"""Where the terms of a claim get their numbers: a study, seed by seed, or the paper's reported numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from analysis.claim_language import Term
from analysis.learning import Key, RLCurve, rl_curves, sampled
from analysis.measurement_grid import Checkpoint, MeasurementGrid, Quantity, build_grid, is_share_of_items
from analysis.paper_tables import GROUPS
from analysis.published_files import read_samples
from analysis.reference import reference
from analysis.statistics import UNBOUNDED, Floats, Sampled
from analysis.study import NotMeasured, Study
from analysis.table_columns import RL_METRICS, largest_metric, score_metric
from pipelines.evaluation.metrics import pass_at_k


class Source(Protocol):
    """A study, or the paper."""

    of: str
    """Its name."""
    exact: bool
    """Whether its numbers come without errors."""

    def models(self, term: Term) -> list[str]:
        """The models, smallest first, that have numbers for a term's stage."""

    def quantity(self, term: Term, model: str) -> Sampled:
        """A term's values, seed by seed. Raises `NotMeasured`."""


DISTRIBUTION_METRICS = ("perplexity", "entropy", "head_mass", "tail_mass")
TEXT_METRICS = (*DISTRIBUTION_METRICS, "bits_per_byte", "calibration_error")
"""Metrics of held-out text."""


@dataclass(frozen=True)
class _Options:
    """The options of a value() term, with their defaults."""

    stage: str = "grpo"
    at: str | int = "last"
    benchmark: str = "average"
    metric: str = ""
    """Empty: `pass` in RL, `score` before it."""
    model: str | None = None
    variant: str = ""
    name: str = ""
    """The measure of an rl() term."""
    reward: float = 0.0
    """In percent, of the rl() measure `steps_to`."""

    @property
    def metric_name(self) -> str:
        return self.metric or ("pass" if self.stage == "grpo" else "score")


class StudySource:
    """A study's numbers."""

    exact = False
    of = "this study"

    def __init__(self, study: Study, grid: MeasurementGrid | None = None) -> None:
        """`grid` is that of the study, if it is known already."""
        self.study = study
        self.grid: MeasurementGrid = grid or build_grid(study)
        # Order the models by the parameters that pre-training counted, else by the plan.
        sizes = study.runs.dropna(subset=["parameters"]).groupby("model")["parameters"].max()
        order = {model: index for index, model in enumerate(study.runs["model"].unique())}
        self._by_size = sorted(order, key=lambda model: (float(sizes.get(model, 0.0)), order[model]))
        self._seeds: dict[str, int] = dict(zip(study.runs["stage_run"], study.runs["seed"], strict=True))
        self._groups = dict(zip(study.measurements["benchmark"], study.measurements["group"], strict=True))
        self._items: dict[tuple[str, str, str], Floats | None] = {}
        """Cache of `_per_problem`."""

    def models(self, term: Term) -> list[str]:
        """The models with this stage, smallest first."""
        runs = self.study.runs
        with_stage = set(runs.loc[runs["stage"] == _Options(**dict(term.options)).stage, "model"])
        return [model for model in self._by_size if model in with_stage]

    def quantity(self, term: Term, model: str) -> Sampled:
        """A term's values, seed by seed, with per-problem values if samples were kept."""
        return self._curve(term, model) if term.function == "rl" else self._value(term, model)

    def _curve(self, term: Term, model: str) -> Sampled:
        """A measure of RL's curves."""
        options = _Options(**dict(term.options))
        curves = self._curves.get((model, term.objective, options.variant), [])
        if not curves:
            of = f"{term.objective}, {options.variant}," if options.variant else term.objective
            raise NotMeasured(f"no RL run of {of} on {model}")
        return sampled(curves, options.name, options.reward)

    @cached_property
    def _curves(self) -> dict[Key, list[RLCurve]]:
        return rl_curves(self.study)

    def _value(self, term: Term, model: str) -> Sampled:
        """The mean over the term's benchmarks, for the seeds that have all of them."""
        options = _Options(**dict(term.options))
        quantities = self._at_checkpoint(term.objective, model, options)
        scores = self._scores(quantities, options)
        is_text = options.metric in TEXT_METRICS
        factor = 100.0 if all(is_share_of_items(quantity.metric) for quantity in scores) else 1.0

        # values: [benchmarks, seeds]; keep the seeds without a gap.
        rows = [self.grid.rows[quantity] for quantity in scores]
        values = self.grid.values[rows]
        complete: Any = np.isfinite(values).all(0)
        if not complete.any():
            raise NotMeasured(f"no seed of {term.objective} on {model} has all benchmarks")
        seeds = tuple(seed for seed, is_complete in zip(self.grid.seeds, complete, strict=True) if is_complete)

        # For each benchmark its per-problem values, if samples were kept, and its standard errors.
        parts: list[tuple[str, Floats | None, Floats]] = []
        for row, quantity, of_benchmark in zip(rows, scores, values, strict=True):
            runs = sorted(self.grid.stage_runs[row], key=self._seeds.__getitem__)
            items = [self._per_problem(run, quantity.benchmark, quantity.metric) for run in runs]
            errors = self.grid.errors[row][complete] * factor
            # Every model reads the same held-out text, so nearly all of its error is shared and cancels.
            if is_text and len(seeds) > 1:
                errors = np.zeros_like(errors)
            parts.append((quantity.benchmark, _matrix(items, of_benchmark[complete], factor), errors))
        # [benchmarks, seeds]: how much one item moves each value.
        moved = self.grid.resolutions[rows][:, complete] * factor
        resolution = float(np.sqrt((moved**2).sum(0).mean()) / len(rows))
        bounds = (0.0, 100.0) if factor == 100 else UNBOUNDED
        return Sampled(seeds, values.mean(0)[complete] * factor, tuple(parts), resolution, bounds)

    def _at_checkpoint(self, objective: str, model: str, options: _Options) -> list[Quantity]:
        """What was measured at the term's checkpoint."""
        key = (model, objective, options.stage)
        measured = [q for q in self._measured.get(key, ()) if q.variant == options.variant]
        # The planned checkpoints decide which is first and last, so that a gap does not shift them.
        planned = sorted(self._planned.get(key, ()))
        steps = planned or sorted({quantity.step for quantity in measured})
        if not steps:
            raise NotMeasured(f"{objective} is not planned on {model}")
        step: Any = {"last": steps[-1], "first": steps[0]}.get(str(options.at), options.at)
        measured = [quantity for quantity in measured if quantity.step == step]
        if not measured:
            evaluations = self.grid.evaluations.get(Checkpoint(*key, step), [])
            waits_for = self.study.waits_for(run for run in evaluations if self.study.status[run] != "done")
            message = f"{objective} on {model} at {options.stage} {step} is not measured"
            raise NotMeasured(message + _waiting_note(waits_for))
        return measured

    @cached_property
    def _measured(self) -> dict[Key, list[Quantity]]:
        """(model, objective, stage) -> what was measured."""
        measured: dict[Key, list[Quantity]] = {}
        for quantity in self.grid.rows:
            measured.setdefault(quantity[:3], []).append(quantity)
        return measured

    @cached_property
    def _planned(self) -> dict[Key, list[int]]:
        """(model, objective, stage) -> the planned steps."""
        planned: dict[Key, list[int]] = {}
        for checkpoint in self.grid.evaluations:
            planned.setdefault(checkpoint[:3], []).append(checkpoint.step)
        return planned

    def _scores(self, quantities: Sequence[Quantity], options: _Options) -> list[Quantity]:
        """The quantities that a term averages, one per benchmark."""
        by_benchmark: dict[str, dict[str, Quantity]] = {}
        for quantity in quantities:
            by_benchmark.setdefault(quantity.benchmark, {})[quantity.metric] = quantity
        chosen = []
        for benchmark, by_metric in by_benchmark.items():
            group = self._groups[benchmark]
            metric = _metric(options.metric_name, by_metric, group)
            if metric is None or options.benchmark not in ("average", benchmark):
                continue
            # An average is over the groups that the tables average; a benchmark by name may be of any group.
            averaged: Sequence[str] = ("text",) if metric in DISTRIBUTION_METRICS else GROUPS
            if options.stage == "grpo" and "@" in metric:
                averaged = ("math",)
            if options.benchmark != "average" or group in averaged:
                chosen.append(by_metric[metric])
        if not chosen:
            raise NotMeasured(f"no {options.metric_name} of {options.benchmark} at {options.stage}")
        return chosen

    def _per_problem(self, stage_run: str, benchmark: str, metric: str) -> Floats | None:
        """Avg@n or Pass@k of each problem [problems], from the stored samples; None if they were not kept."""
        name, _, size = metric.partition("@")
        if self.study.store is None or name not in ("avg", "pass"):
            return None
        key = (stage_run, benchmark, metric)
        if key not in self._items:
            outcomes: dict[str, list[bool]] = {}
            for row in read_samples(self.study.store, stage_run, benchmark):
                outcomes.setdefault(row["question"], []).append(row["right"])
            counts = {len(samples) for samples in outcomes.values()}
            n = counts.pop() if len(counts) == 1 else 0  # 0: problems differ in how often they were sampled
            self._items[key] = None
            if n >= int(size):
                # Pass@k and Avg@n follow from how many of a problem's samples are right.
                right = np.array([sum(samples) for samples in outcomes.values()])
                self._items[key] = right / n if name == "avg" else pass_at_k(right, n, int(size))
        return self._items[key]


def _matrix(items: Sequence[Floats | None], values: Floats, factor: float) -> Floats | None:
    """Per-problem values [seeds, problems] times `factor`.

    None unless every seed has them, in equal number, and they average to the measured `values` [seeds]: only then are
    they what was measured.
    """
    present = [item for item in items if item is not None]
    if len(present) != len(values) or len({len(item) for item in present}) != 1:
        return None
    matrix = np.stack(present)
    return matrix * factor if np.allclose(matrix.mean(1), values, atol=1e-6) else None


def _waiting_note(waits_for: list[str]) -> str:
    return f"; it waits for {', '.join(waits_for[:3])}{' ...' if len(waits_for) > 3 else ''}" if waits_for else ""


def _metric(name: str, metrics: Iterable[str], group: str) -> str | None:
    """The metric of a benchmark that a claim's `metric=name` means."""
    measured = list(metrics)
    if name == "score":
        return score_metric(measured, group)
    if name in RL_METRICS:
        return largest_metric(measured, name)
    return name if name in measured else None


class PaperSource:
    """The paper's own numbers: the point estimates that are known."""

    exact = True
    of = "the paper's numbers"

    def models(self, term: Term) -> list[str]:
        """The models with a known number at the term's stage, smallest first."""
        rows = reference()
        rows = rows[rows["stage"] == _Options(**dict(term.options)).stage]
        return list(dict.fromkeys(rows["model"]))

    def quantity(self, term: Term, model: str) -> Sampled:
        """One number without an error."""
        options = _Options(**dict(term.options))
        # A claim may give the metric without its size: `pass` also matches pass@64.
        rows = reference()
        rows = rows[
            (rows["model"] == model)
            & (rows["objective"] == term.objective)
            & (rows["stage"] == options.stage)
            & (rows["benchmark"] == options.benchmark)
            & rows["metric"].str.startswith(options.metric_name)
        ]
        if term.function == "rl" or rows.empty or options.at != "last" or options.variant:
            quantity = options.name or options.metric_name
            raise NotMeasured(f"{quantity} of {term.objective} on {model} is not among the known numbers")
        return Sampled((0,), rows["value"].to_numpy(float)[:1], ())
