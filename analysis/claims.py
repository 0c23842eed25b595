"""Statements about a study, judged: supported, contradicted or undecided, each with its evidence.

A claim is a list of comparisons in a small expression language over the results frame (`claims.yaml` says its words).
Each comparison becomes one difference, paired by seed, with an interval from the hierarchical bootstrap over seeds and
problems. A claim is supported where every comparison holds significantly, contradicted where one is significantly
wrong, and undecided otherwise; Holm's correction runs over all claims judged together. One seed decides nothing.

The paper's own numbers come without errors, so they are judged by their order alone, and the evidence says so.
"""

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from analysis.cells import Cells, gather
from analysis.frames import Study, read_samples
from analysis.layout import GROUPS, STAGE_NAMES
from analysis.reference import reference
from analysis.statistics import (
    ALPHA,
    Estimate,
    Floats,
    Sampled,
    hierarchical_bootstrap,
    holm,
    permutation_test,
    seeds_needed,
)
from analysis.tables import score_metric
from pipelines.errors import UserError, nearest
from pipelines.metrics import pass_at_k

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"


@dataclass(frozen=True)
class Claim:
    """A statement, and the comparisons that make it true."""

    name: str
    statement: str
    source: str
    holds: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """One comparison, judged. `estimate` is left minus right, in the terms' unit."""

    text: str
    model: str
    verdict: str
    evidence: str
    greater: bool = True
    """Whether the left side is said to be the larger one."""
    estimate: Estimate | None = None
    permutation_p: float | None = None
    seeds_needed: int | None = None


@dataclass(frozen=True)
class Verdict:
    """A claim, judged on one source of numbers: the study's or the paper's."""

    claim: Claim
    of: str
    verdict: str
    p: float | None
    """Holm-corrected over the claims judged together."""
    comparisons: tuple[Comparison, ...] = field(default=())


def read_claims(path: str | Path | None = None) -> list[Claim]:
    """The claims in a YAML file; without a path, the six of the study. Raises `UserError` naming what is wrong."""
    name = str(path or "claims.yaml")
    try:
        text = Path(path).read_text() if path else files("analysis").joinpath("claims.yaml").read_text()
        content = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"claims={name}: it cannot be read ({error.strerror}); name a YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"claims={name}: it is no YAML ({' '.join(str(error).split())})") from error
    rows = content.get("claims") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"claims={name}: it has no list `claims`; analysis/claims.yaml shows the form")
    claims = []
    for row in rows:
        if not isinstance(row, dict) or not {"name", "statement", "holds"} <= set(row):
            raise UserError(f"claims={name}: each claim needs name, statement and holds; one has {row!r}")
        holds = row["holds"] if isinstance(row["holds"], list) else [row["holds"]]
        claim = Claim(str(row["name"]), str(row["statement"]), str(row.get("source", name)), tuple(map(str, holds)))
        for text in claim.holds:
            parse(text, claim.name)
        claims.append(claim)
    return claims


# The language ---------------------------------------------------------------------------------------------------------

OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
TERMS = {"value": ("objective",), "rl": ("objective", "name")}
KEYWORDS = {"value": ("stage", "at", "benchmark", "metric", "model", "variant"), "rl": ("model",)}


@dataclass(frozen=True)
class Term:
    """A quantity that a claim names."""

    kind: str
    objective: str
    options: tuple[tuple[str, Any], ...]

    @property
    def model(self) -> str | None:
        """The model that the claim fixes, if it does."""
        return dict(self.options).get("model")


@dataclass(frozen=True)
class Parsed:
    """A comparison `left < right` or `left > right`, its terms found."""

    text: str
    greater: bool
    tree: ast.expr
    """left - right"""
    terms: tuple[Term, ...]


def parse(text: str, claim: str) -> list[Parsed]:
    """The comparisons in one line of `holds`; raises `UserError` naming the claim and what cannot be read."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise UserError(f"claim {claim}: {text!r} cannot be read ({error.msg})") from error
    if not isinstance(tree, ast.Compare) or not all(isinstance(op, ast.Lt | ast.Gt) for op in tree.ops):
        raise UserError(f"claim {claim}: {text!r} must be a comparison with < or >")
    sides = [tree.left, *tree.comparators]
    found = []
    for left, op, right in zip(sides, tree.ops, sides[1:], strict=False):
        shown = f"{ast.unparse(left)} {'>' if isinstance(op, ast.Gt) else '<'} {ast.unparse(right)}"
        difference = ast.BinOp(left, ast.Sub(), right)
        terms: dict[Term, None] = {}
        _collect(difference, claim, terms)
        found.append(Parsed(shown, isinstance(op, ast.Gt), difference, tuple(terms)))
    return found


def _collect(node: ast.expr, claim: str, terms: dict[Term, None]) -> None:
    """Every term below `node`; raises `UserError` for what the language does not have."""
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            _collect(left, claim, terms)
            _collect(right, claim, terms)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _collect(operand, claim, terms)
        case ast.Constant(value=int() | float()):
            pass
        case ast.Call(func=ast.Name(id="log"), args=[argument], keywords=[]):
            _collect(argument, claim, terms)
        case ast.Call(func=ast.Name(id=name)) if name in TERMS:
            terms[_term(node, claim)] = None
        case _:
            raise UserError(
                f"claim {claim}: {ast.unparse(node)!r} is not part of a claim's language; it has value(), rl(), "
                "log(), numbers and + - * /"
            )


def _term(node: ast.Call, claim: str) -> Term:
    assert isinstance(node.func, ast.Name)
    kind = node.func.id
    parts = [*node.args, *(keyword.value for keyword in node.keywords)]
    if len(node.args) != len(TERMS[kind]) or not all(isinstance(part, ast.Constant) for part in parts):
        raise UserError(f'claim {claim}: {ast.unparse(node)!r}: write {kind}({", ".join(TERMS[kind])}, key="word")')
    for keyword in node.keywords:
        if keyword.arg not in KEYWORDS[kind]:
            raise UserError(f"claim {claim}: {keyword.arg}: {nearest(str(keyword.arg), KEYWORDS[kind])}")
    values: list[Any] = [part.value for part in node.args if isinstance(part, ast.Constant)]
    options: dict[str, Any] = {str(k.arg): k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
    if kind == "rl":
        if values[1] not in CURVES:
            raise UserError(f"claim {claim}: {values[1]!s}: {nearest(str(values[1]), CURVES)}")
        options["name"] = values[1]
    if options.get("stage", "grpo") not in STAGE_NAMES:
        raise UserError(f"claim {claim}: stage={options['stage']}: {nearest(str(options['stage']), STAGE_NAMES)}")
    return Term(kind, str(values[0]), tuple(sorted(options.items())))


def _evaluate(node: ast.expr, claim: str, values: Mapping[Term, Floats]) -> Floats:
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](_evaluate(left, claim, values), _evaluate(right, claim, values))
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, claim, values)
        case ast.Constant(value=value):
            return np.asarray(float(value))  # type: ignore[arg-type]
        case ast.Call(func=ast.Name(id="log"), args=[argument]):
            return np.log(_evaluate(argument, claim, values))
        case ast.Call():
            return values[_term(node, claim)]
    raise AssertionError(node)


# Where numbers come from ----------------------------------------------------------------------------------------------


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

CURVES: dict[str, tuple[str, Callable[[float, float], float]]] = {
    "entropy_fall": ("entropy", lambda first, last: 1 - last / first),
    "length_change": ("response_length", lambda first, last: last / first),
}
"""Name -> column of RL's ledger, and the measure of its first and last steps' means."""


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


# Judging --------------------------------------------------------------------------------------------------------------


def judge(claims: Sequence[Claim], source: Source) -> list[Verdict]:
    """Every claim, judged on `source`."""
    judged = [(claim, _comparisons(claim, source)) for claim in claims]
    supports = np.array([_support_p(comparisons) for _, comparisons in judged], dtype=float)
    opposes = np.array([_oppose_p(comparisons) for _, comparisons in judged], dtype=float)
    against, for_ = holm(opposes), holm(supports)
    verdicts = []
    for place, (claim, comparisons) in enumerate(judged):
        if source.exact:
            each = {comparison.verdict for comparison in comparisons}
            verdict = CONTRADICTED if CONTRADICTED in each else SUPPORTED if each == {SUPPORTED} else UNDECIDED
            p = None
        else:
            verdict, p = UNDECIDED, float(for_[place])
            if against[place] < ALPHA:
                verdict, p = CONTRADICTED, float(against[place])
            elif for_[place] < ALPHA:
                verdict = SUPPORTED
        verdicts.append(
            Verdict(claim, source.of, verdict, None if p is None or math.isnan(p) else p, tuple(comparisons))
        )
    return verdicts


def _support_p(comparisons: list[Comparison]) -> float:
    """All must hold, so the largest p-value counts; NaN where one has no number or points the other way."""
    values = [c.estimate.p for c in comparisons if c.estimate and c.estimate.p is not None and _towards(c)]
    return max(values) if values and len(values) == len(comparisons) else math.nan


def _oppose_p(comparisons: list[Comparison]) -> float:
    """One that is wrong is enough, so the smallest p-value counts, times their number (Bonferroni)."""
    values = [c.estimate.p for c in comparisons if c.estimate and c.estimate.p is not None and not _towards(c)]
    return min(1.0, min(values) * len(comparisons)) if values else math.nan


def _towards(comparison: Comparison) -> bool:
    assert comparison.estimate is not None
    return (comparison.estimate.value > 0) == comparison.greater


def _comparisons(claim: Claim, source: Source) -> list[Comparison]:
    found = []
    for text in claim.holds:
        for parsed in parse(text, claim.name):
            models: list[str] = [""]
            if any(term.model is None for term in parsed.terms):
                models = _common(source, parsed.terms)
            if not models:
                found.append(Comparison(parsed.text, "", UNDECIDED, "missing: no model has all of its terms"))
            found += [_compare(claim, parsed, model, source) for model in models]
    return found


def _common(source: Source, terms: Iterable[Term]) -> list[str]:
    lists = [source.models(term) for term in terms if term.model is None]
    return [model for model in lists[0] if all(model in other for other in lists[1:])]


def _resolve(source: Source, term: Term, model: str) -> str:
    wanted = term.model or model
    if wanted not in ("largest", "smaller"):
        return wanted
    models = source.models(term)
    if not models:
        raise Missing("no model has this stage")
    if wanted == "largest":
        return models[-1]
    if len(models) < 2:
        raise Missing(f"there is one model only, {models[0]}, and none smaller to compare it with")
    return models[0]


def _compare(claim: Claim, parsed: Parsed, model: str, source: Source) -> Comparison:
    shown = model
    try:
        names = {term: _resolve(source, term, model) for term in parsed.terms}
        shown = model or ", ".join(dict.fromkeys(names.values()))
        quantities = [source.quantity(term, names[term]) for term in parsed.terms]
    except Missing as lacking:
        return Comparison(parsed.text, shown, UNDECIDED, f"missing: {lacking}")
    shared = [seed for seed in quantities[0].seeds if all(seed in q.seeds for q in quantities)]
    if not shared:
        return Comparison(parsed.text, shown, UNDECIDED, "missing: no seed has all of its terms")
    quantities = [_only(q, shared) for q in quantities]

    def statistic(values: list[Floats]) -> Floats:
        return _evaluate(parsed.tree, claim.name, dict(zip(parsed.terms, values, strict=True)))

    by_seed = statistic([q.values for q in quantities])
    if source.exact:
        value = float(by_seed[0])
        verdict = UNDECIDED if value == 0 else SUPPORTED if (value > 0) == parsed.greater else CONTRADICTED
        return Comparison(
            parsed.text, shown, verdict, f"difference {value:+.2f}, a single reported number on each side: no interval",
            parsed.greater, Estimate(value, None, None, None, 1),
        )  # fmt: skip
    estimate = hierarchical_bootstrap(quantities, statistic)
    permutation = permutation_test(by_seed.tolist())
    needed = seeds_needed(by_seed.tolist())
    low, high = estimate.low, estimate.high
    assert low is not None
    assert high is not None
    evidence = f"difference {estimate.value:+.3g} [{low:+.3g}, {high:+.3g}], {_seeds(estimate.n)}"
    if estimate.n == 1:
        return Comparison(
            parsed.text, shown, UNDECIDED,
            f"{evidence}; the interval is over problems alone, and one seed decides nothing", parsed.greater, estimate,
        )  # fmt: skip
    significant = estimate.p is not None and estimate.p < ALPHA
    right = (estimate.value > 0) == parsed.greater
    verdict = UNDECIDED if not significant else SUPPORTED if right else CONTRADICTED
    evidence += f", p = {estimate.p:.3g}, sign-flip p = {permutation:.3g}"
    if verdict == UNDECIDED and needed is not None and needed > estimate.n:
        evidence += f"; a difference like this needs about {needed} seeds (80 % power), {needed - estimate.n} more"
    return Comparison(parsed.text, shown, verdict, evidence, parsed.greater, estimate, permutation, needed)


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _only(quantity: Sampled, seeds: Sequence[int]) -> Sampled:
    keep = [quantity.seeds.index(seed) for seed in seeds]
    parts = tuple((name, None if m is None else m[keep], errors[keep]) for name, m, errors in quantity.parts)
    return Sampled(tuple(seeds), quantity.values[keep], parts)


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """For CI: 0 where all are supported, 3 where one is contradicted, else 4 (undecided)."""
    found = {verdict.verdict for verdict in verdicts}
    return 3 if CONTRADICTED in found else 4 if UNDECIDED in found else 0


def sentences(verdicts: Sequence[Verdict]) -> list[str]:
    """Three sentences: what the numbers support, contradict and leave undecided."""
    said = []
    for verdict, words in ((SUPPORTED, "supports"), (CONTRADICTED, "contradicts"), (UNDECIDED, "leaves undecided")):
        found = [v.claim.statement.rstrip(".") for v in verdicts if v.verdict == verdict]
        listing = "; ".join(f"“{statement}”" for statement in found) if found else "none of the claims"
        said.append(f"It {words} {listing}.")
    return said
