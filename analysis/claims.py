"""Statements about a study, judged: supported, contradicted or undecided, each with its evidence.

A claim is a list of comparisons in a small expression language over the results frame (`claims.yaml` says its words).
Each comparison becomes one difference, paired by seed, with an interval from the hierarchical bootstrap over seeds and
problems. A claim is supported where every comparison holds significantly, contradicted where one is significantly
wrong, and undecided otherwise; Holm's correction runs over all claims judged together. One seed decides nothing.

The paper's own numbers come without errors, so they are judged by their order alone, and the evidence says so.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
import yaml

from analysis.claim_language import Parsed, Term, evaluate, parse
from analysis.claim_sources import Missing, Source
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
from pipelines.errors import UserError

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
        return evaluate(parsed.tree, claim.name, dict(zip(parsed.terms, values, strict=True)))

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
