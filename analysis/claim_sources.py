"""Where the terms of a claim get their numbers: a study, seed by seed, or what is known of the paper."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from analysis.claim_language import CURVES, Term
from analysis.measurement_grid import Cells, gather
from analysis.paper_tables import GROUPS
from analysis.reference import reference
from analysis.statistics import (
    Floats,
    Sampled,
)
from analysis.study import Study, read_samples
from analysis.tables import score_metric
from pipelines.evaluation.metrics import pass_at_k


class Missing(Exception):
    """A term has no number; the message says what is lacking."""


class Source(Protocol):
    """A study, or the paper."""

    of: str
    exact: bool
    """Whether its numbers come without errors."""

    def models(self, term: Term) -> list[str]:
        """The models, smallest first, that have a number for a term's stage."""

    def quantity(self, term: Term, model: str) -> Sampled:
        """Seed by seed; raises `Missing`."""


CURVE_ENDS = 5
"""RL steps at either end that a curve's measures average."""

OF_TEXT = ("perplexity", "entropy", "head_mass", "tail_mass", "bits_per_byte", "calibration_error")
"""Metrics of held-out text, in their own units; all others are fractions, and claims speak of percent. Their intervals
are over seeds and hold for this text."""


class StudySource:
    """A study's numbers."""

    exact = False

    def __init__(self, study: Study) -> None:
        self.study = study
        self.of = "this study"
        self.cells: Cells = gather(study)
        sizes = study.runs.dropna(subset=["parameters"]).groupby("model")["parameters"].max()
        order = {model: place for place, model in enumerate(study.runs["model"].unique())}
        self._by_size = sorted(order, key=lambda model: (float(sizes.get(model, 0.0)), order[model]))
        self._seed: dict[str, int] = dict(zip(study.runs["stage_run"], study.runs["seed"], strict=True))
        self._items: dict[tuple[str, str, str], Floats | None] = {}

    def models(self, term: Term) -> list[str]:
        """Smallest first, by the parameters that pre-training counted."""
        stage = "grpo" if term.kind == "rl" else dict(term.options).get("stage", "grpo")
        runs = self.study.runs
        there = set(runs.loc[runs["stage"] == stage, "model"])
        return [model for model in self._by_size if model in there]

    def quantity(self, term: Term, model: str) -> Sampled:
        """Seed by seed, with per-problem values where samples were kept."""
        return self._curve(term, model) if term.kind == "rl" else self._value(term, model)

    def _curve(self, term: Term, model: str) -> Sampled:
        column, measure = CURVES[dict(term.options)["name"]]
        rows = self.study.curves
        rows = rows[(rows["stage"] == "grpo") & (rows["model"] == model) & (rows["objective"] == term.objective)]
        if rows.empty or column not in rows:
            raise Missing(f"no RL run of {term.objective} on {model}")
        found = {}
        for seed, own in rows.groupby("seed"):
            numbers = own[column].dropna().to_numpy(float)
            if len(numbers) >= 2:
                ends = max(1, min(CURVE_ENDS, len(numbers) // 2))
                found[int(str(seed))] = measure(float(numbers[:ends].mean()), float(numbers[-ends:].mean()))
        if not found:
            raise Missing(f"no finished RL run of {term.objective} on {model}")
        return Sampled(tuple(found), np.array(list(found.values())), ())

    def _value(self, term: Term, model: str) -> Sampled:
        options = dict(term.options)
        stage, at = options.get("stage", "grpo"), options.get("at", "last")
        variant = options.get("variant", "")
        own = [k for k in self.cells.rows if k[:3] == (model, term.objective, stage) and k[4] == variant]
        planned = sorted(k[3] for k in self.cells.evaluations if k[:3] == (model, term.objective, stage))
        if not planned and not own:
            raise Missing(f"{term.objective} is not planned on {model}")
        steps = planned or sorted({k[3] for k in own})
        step = {"last": steps[-1], "first": steps[0]}.get(str(at), at)
        own = [key for key in own if key[3] == step]
        if not own:
            waits = self.cells.evaluations.get((model, term.objective, stage, step), [])
            lacks = self.study.lacks(s for s in waits if self.study.status[s] != "done")
            raise Missing(f"{term.objective} on {model} at {stage} {step} is not measured" + _waits(lacks))
        scores = self._scores(own, stage, options)
        of_text = options.get("metric") in OF_TEXT
        factor = 1.0 if of_text else 100.0
        rows = [self.cells.rows[model, term.objective, stage, step, variant, *score] for score in scores]
        values = self.cells.values[rows]
        there: Any = np.isfinite(values).all(0)
        if not there.any():
            raise Missing(f"no seed of {term.objective} on {model} has all benchmarks")
        seeds = tuple(seed for seed, ok in zip(self.cells.seeds, there, strict=True) if ok)
        parts: list[tuple[str, Floats | None, Floats]] = []
        for row, (benchmark, metric) in zip(rows, scores, strict=True):
            runs = sorted(self.cells.stage_runs[row], key=self._seed.__getitem__)
            items = [self._per_item(run, benchmark, metric) for run in runs]
            errors = self.cells.errors[row][there] * factor
            if of_text and len(seeds) > 1:  # every model reads the same rows, and nearly all of their error is shared
                errors = np.zeros_like(errors)
            parts.append((benchmark, _matrix(items, values[len(parts)][there], factor), errors))
        return Sampled(seeds, values.mean(0)[there] * factor, tuple(parts))

    def _scores(self, keys: Sequence[Any], stage: str, options: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(benchmark, metric) that a term averages."""
        metric = options.get("metric", "pass" if stage == "grpo" else "score")
        measured = self.study.measurements
        group = dict(zip(measured["benchmark"], measured["group"], strict=True))
        by_benchmark: dict[str, list[str]] = {}
        for key in keys:
            by_benchmark.setdefault(key[5], []).append(key[6])
        benchmark = options.get("benchmark", "average")
        chosen = {}
        for name, metrics in by_benchmark.items():
            if benchmark not in ("average", name):
                continue
            found = _metric(metric, metrics, group[name])
            wanted = ("text",) if found in ("perplexity", "entropy", "head_mass", "tail_mass") else GROUPS
            if stage == "grpo" and found and "@" in found:
                wanted = ("math",)
            if found and (benchmark != "average" or group[name] in wanted):
                chosen[name] = found
        if not chosen:
            raise Missing(f"no {metric} of {benchmark} at {stage}")
        return list(chosen.items())

    def _per_item(self, stage_run: str, benchmark: str, metric: str) -> Floats | None:
        """Avg@n or Pass@k of each problem, from the stored samples; None where they were not kept."""
        kind = metric.split("@")[0]
        if self.study.store is None or kind not in ("avg", "pass"):
            return None
        key = (stage_run, benchmark, metric)
        if key not in self._items:
            rows = read_samples(self.study.store, stage_run, benchmark)
            counts: dict[str, list[int]] = {}
            for row in rows:
                counts.setdefault(row["question"], []).append(int(row["right"]))
            n = {len(found) for found in counts.values()}
            self._items[key] = None
            size = n.pop() if len(n) == 1 else 0
            if size >= int(metric.split("@")[1]):
                right = np.array([sum(found) for found in counts.values()])
                self._items[key] = right / size if kind == "avg" else pass_at_k(right, size, int(metric.split("@")[1]))
        return self._items[key]


def _matrix(items: Sequence[Floats | None], values: Floats, factor: float) -> Floats | None:
    """Per-problem values [seeds, problems] times `factor`; None unless they are there for every seed, alike in number,
    and average to the measured values: then they are what was measured."""
    found = [item for item in items if item is not None]
    if len(found) != len(values) or len({len(item) for item in found}) != 1:
        return None
    matrix = np.stack(found)
    return matrix * factor if np.allclose(matrix.mean(1), values, atol=1e-6) else None


def _waits(lacks: list[str]) -> str:
    return f"; it waits for {', '.join(lacks[:3])}{' ...' if len(lacks) > 3 else ''}" if lacks else ""


def _metric(wanted: str, metrics: Iterable[str], group: str) -> str | None:
    """The metric of a benchmark that a claim's word means."""
    found = list(metrics)
    if wanted == "score":
        return score_metric(found, group)
    if wanted in ("pass", "avg", "cons"):
        own = sorted((int(m.split("@")[1]), m) for m in found if m.startswith(f"{wanted}@"))
        return own[-1][1] if own else None
    return wanted if wanted in found else None


class PaperSource:
    """The paper's own numbers: point estimates, as far as they are known."""

    exact = True
    of = "the paper's numbers"

    def models(self, term: Term) -> list[str]:
        """Smallest first; only those with a known number at the stage."""
        rows = reference()
        rows = rows[rows["stage"] == dict(term.options).get("stage", "grpo")]
        return list(dict.fromkeys(rows["model"]))

    def quantity(self, term: Term, model: str) -> Sampled:
        """One number and no error."""
        options = dict(term.options)
        stage = options.get("stage", "grpo")
        metric = options.get("metric", "pass" if stage == "grpo" else "score")
        rows = reference()
        rows = rows[
            (rows["model"] == model)
            & (rows["objective"] == term.objective)
            & (rows["stage"] == stage)
            & (rows["benchmark"] == options.get("benchmark", "average"))
            & rows["metric"].str.startswith(metric)
        ]
        if term.kind == "rl" or rows.empty or options.get("at", "last") != "last" or options.get("variant"):
            what = options.get("name") or metric
            raise Missing(f"{what} of {term.objective} on {model} is not among the known numbers")
        return Sampled((0,), rows["value"].to_numpy(float)[:1], ())
