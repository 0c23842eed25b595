"""Statements about a study, judged: supported, contradicted or undecided, each with its evidence.

A claim is a list of comparisons in a small expression language over the results (`claims.yaml` describes it). Each
comparison becomes one difference, paired by seed, with an interval from the hierarchical bootstrap over seeds and
problems. A claim is supported if every comparison holds significantly, contradicted if one is significantly wrong, and
undecided otherwise. One seed decides nothing.

Two hypotheses are tested for each claim, that it holds and that it does not, with one-sided p-values. All of them are
one family for Holm's correction, whatever the data show and whatever is missing: the chance of any wrong verdict among
the claims judged together is at most 5 %. The study's own statements are one family; claims that name another `family`
are one by themselves.

The paper's own numbers have no errors, so they are judged only by their order, and the evidence says so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import yaml

from analysis.claim_language import Parsed, Term, evaluate, parse
from analysis.claim_sources import Source
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
from analysis.study import NotMeasured
from pipelines.errors import UserError
from sweeps.compose.config_files import own_file

LOOKS = (5, 8, 12, 20, 32, 50)
"""Numbers of seeds at which a study may be judged whose seeds are added after looking."""
LOOK_ALPHA = ALPHA / len(LOOKS)
"""The level of each of these looks: whichever are taken, the chance of any wrong verdict is at most `ALPHA`."""

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
AS_CLAIMED, OPPOSITE, EQUAL, MISSING = "as claimed", "the other way", "equal", "missing"


@dataclass(frozen=True)
class Claim:
    """A statement, and the comparisons that make it true."""

    name: str
    statement: str
    source: str
    holds: tuple[str, ...]
    family: str = ""
    """Claims of one family are corrected together; the study's own have none."""


@dataclass(frozen=True)
class Comparison:
    """One comparison: the direction of its difference, and the evidence. Only claims have verdicts.

    `estimate` is left minus right, in the terms' unit.
    """

    text: str
    model: str
    direction: str
    """As claimed, the other way, equal, or missing."""
    evidence: str
    greater: bool = True
    """Whether the claim says that the left side is larger."""
    estimate: Estimate | None = None
    permutation_p: float | None = None
    seeds_needed: int | None = None


@dataclass(frozen=True)
class Verdict:
    """A claim, judged on one source of numbers: the study or the paper."""

    claim: Claim
    of: str
    verdict: str
    p: float | None
    """That of the verdict, Holm-corrected; the smaller of its two for an undecided claim. None without p-values."""
    comparisons: tuple[Comparison, ...] = field(default=())


def read_claims(path: str | Path | None = None) -> list[Claim]:
    """Returns the claims in a YAML file; without a path, those of one's own folder, else the study's in `claims.yaml`.

    Raises `UserError` with the file and what is wrong in it.
    """
    path = path or own_file("claims.yaml")
    name = str(path or "claims.yaml")
    # Read the file; a file of the package works from a wheel too.
    try:
        text = Path(path).read_text() if path else files("analysis").joinpath("claims.yaml").read_text()
        content = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"claims={name}: it cannot be read ({error.strerror}); give a YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"claims={name}: it is not valid YAML ({' '.join(str(error).split())})") from error
    rows = content.get("claims") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"claims={name}: it has no list `claims`; analysis/claims.yaml shows the form")
    # Check each entry now, so that a mistake in the last claim is reported before the first is judged.
    claims: list[Claim] = []
    names: set[str] = set()
    for row in rows:
        if not isinstance(row, dict) or not {"name", "statement", "holds"} <= set(row):
            raise UserError(f"claims={name}: each claim needs name, statement and holds; one is {row!r}")
        holds = row["holds"] if isinstance(row["holds"], list) else [row["holds"]]
        claim = Claim(
            str(row["name"]),
            str(row["statement"]),
            str(row.get("source", name)),
            tuple(map(str, holds)),
            str(row.get("family", "")),
        )
        for comparison in claim.holds:
            parse(comparison, claim.name)  # raises for what the language does not have
        if claim.name in names:
            raise UserError(f"claims={name}: two claims are called {claim.name}; give each a name of its own")
        names.add(claim.name)
        claims.append(claim)
    return claims


def applicable(claims: Sequence[Claim], source: Source) -> list[Claim]:
    """Returns the claims without those of a named family that ask for what `source` has none of, such as a control."""

    def is_measured(claim: Claim) -> bool:
        return any(comparison.direction != MISSING for comparison in _comparisons(claim, source))

    return [claim for claim in claims if not claim.family or is_measured(claim)]


def judge(claims: Sequence[Claim], source: Source, *, alpha: float = ALPHA) -> list[Verdict]:
    """Returns the verdict on every claim, in their order; at most `alpha` of families have any wrong verdict."""
    verdicts: dict[str, Verdict] = {}
    for family in dict.fromkeys(claim.family for claim in claims):
        members = [claim for claim in claims if claim.family == family]
        verdicts |= {verdict.claim.name: verdict for verdict in _judge_family(members, source, alpha)}
    return [verdicts[claim.name] for claim in claims]


def _judge_family(claims: Sequence[Claim], source: Source, alpha: float) -> list[Verdict]:
    comparisons = [_comparisons(claim, source) for claim in claims]
    if source.exact:
        return [
            Verdict(claim, source.of, _exact_verdict(judged), None, tuple(judged))
            for claim, judged in zip(claims, comparisons, strict=True)
        ]
    # The family [claims, 2] for and against each claim; nothing is left out of it, whatever the data show.
    family = np.array([(support_p(judged), _oppose_p(judged)) for judged in comparisons], dtype=float)
    corrected = holm(family.ravel()).reshape(-1, 2).tolist()
    verdicts = []
    for claim, judged, (p_for, p_against) in zip(claims, comparisons, corrected, strict=True):
        verdict = SUPPORTED if p_for < alpha else CONTRADICTED if p_against < alpha else UNDECIDED
        has_p = any(_one_sided_p(comparison, comparison.greater) is not None for comparison in judged)
        verdicts.append(Verdict(claim, source.of, verdict, min(p_for, p_against) if has_p else None, tuple(judged)))
    return verdicts


def _exact_verdict(comparisons: list[Comparison]) -> str:
    """The verdict from numbers without errors."""
    directions = {comparison.direction for comparison in comparisons}
    return CONTRADICTED if OPPOSITE in directions else SUPPORTED if directions == {AS_CLAIMED} else UNDECIDED


def support_p(comparisons: list[Comparison]) -> float:
    """Returns the p-value of all holding: the largest counts; 1 if one has none."""
    values = [_one_sided_p(comparison, comparison.greater) for comparison in comparisons]
    return max((1.0 if p is None else p for p in values), default=1.0)


def _oppose_p(comparisons: list[Comparison]) -> float:
    """One wrong comparison is enough, so the smallest p-value counts, times their number (Bonferroni)."""
    values = [_one_sided_p(comparison, not comparison.greater) for comparison in comparisons]
    return min(1.0, max(1, len(comparisons)) * min((1.0 if p is None else p for p in values), default=1.0))


def _one_sided_p(comparison: Comparison, is_greater: bool) -> float | None:
    """The p-value of the difference being above 0, or below; 1 if it points the other way, None without one."""
    if comparison.estimate is None or comparison.estimate.p is None:
        return None
    value = comparison.estimate.value
    return comparison.estimate.p / 2 if value != 0 and (value > 0) == is_greater else 1.0


def _direction(value: float, greater: bool) -> str:
    return EQUAL if value == 0 else AS_CLAIMED if (value > 0) == greater else OPPOSITE


def _comparisons(claim: Claim, source: Source) -> list[Comparison]:
    """Every comparison of a claim, judged once for each model that has all of its terms."""
    judged = []
    for text in claim.holds:
        for parsed in parse(text, claim.name):
            # Terms without a model are judged once for each model that all of them have.
            models: list[str] = [""]
            if any(term.model is None for term in parsed.terms):
                models = _common_models(source, parsed.terms)
            if not models:
                judged.append(Comparison(parsed.text, "", MISSING, "missing: no model has all of its terms"))
            judged += [_compare(claim, parsed, model=model, source=source) for model in models]
    return judged


def _common_models(source: Source, terms: Iterable[Term]) -> list[str]:
    first, *others = [source.models(term) for term in terms if term.model is None]
    return [model for model in first if all(model in models for models in others)]


def _resolve_model(source: Source, term: Term, model: str) -> str:
    """The name of a term's model, which may be given as `largest` or `smaller`."""
    name = term.model or model
    if name not in ("largest", "smaller"):
        return name
    models = source.models(term)
    if not models:
        raise NotMeasured("no model has this stage")
    if name == "largest":
        return models[-1]
    if len(models) < 2:
        raise NotMeasured(f"{models[0]} is the only model, so no smaller one can be compared with it")
    return models[0]


def _compare(claim: Claim, parsed: Parsed, *, model: str, source: Source) -> Comparison:
    """One comparison, judged for one model; `model` is empty if every term names its own."""
    # Resolve models and get each term's values; a term without numbers leaves the comparison undecided.
    shown = model
    try:
        models = {term: _resolve_model(source, term, model) for term in parsed.terms}
        shown = model or ", ".join(dict.fromkeys(models.values()))
        quantities = [source.quantity(term, models[term]) for term in parsed.terms]
    except NotMeasured as error:
        return Comparison(parsed.text, shown, MISSING, f"missing: {error}")

    # Pair by seed: keep the seeds that every term has.
    shared = [seed for seed in quantities[0].seeds if all(seed in quantity.seeds for quantity in quantities)]
    if not shared:
        return Comparison(parsed.text, shown, MISSING, "missing: no seed has all of its terms")
    quantities = [with_seeds(quantity, shared) for quantity in quantities]

    def difference(values: list[Floats]) -> Floats:
        return evaluate(parsed.tree, claim.name, dict(zip(parsed.terms, values, strict=True)))

    by_seed = difference([quantity.values for quantity in quantities])
    if source.exact:
        return _exact_comparison(parsed, shown, float(by_seed[0]))
    return _estimated_comparison(parsed, shown, hierarchical_bootstrap(quantities, difference), by_seed=by_seed)


def _exact_comparison(parsed: Parsed, model: str, value: float) -> Comparison:
    return Comparison(
        text=parsed.text,
        model=model,
        direction=_direction(value, parsed.greater),
        evidence=f"difference {value:+.2f}, a single reported number on each side: no interval",
        greater=parsed.greater,
        estimate=Estimate(value, None, None, None, 1),
    )


def _estimated_comparison(parsed: Parsed, model: str, estimate: Estimate, *, by_seed: Floats) -> Comparison:
    """A bootstrap's estimate with its evidence; `by_seed` [seeds] are the differences of each seed."""
    seeds = "1 seed" if estimate.n == 1 else f"{estimate.n} seeds"
    interval = "(no spread)" if estimate.low is None else f"[{estimate.low:+.3g}, {estimate.high:+.3g}]"
    evidence = f"difference {estimate.value:+.3g} {interval}, {seeds}"
    direction = _direction(estimate.value, parsed.greater)
    if estimate.n == 1:
        evidence += "; the interval is only over problems, and one seed decides nothing"
        return Comparison(parsed.text, model, direction, evidence, parsed.greater, estimate)
    # The bootstrap's p-value decides; the sign-flip test and the seeds needed are evidence only.
    assert estimate.p is not None
    permutation_p, needed = permutation_test(by_seed.tolist()), seeds_needed(by_seed.tolist())
    evidence += f", two-sided p = {estimate.p:.3g} uncorrected, sign-flip p = {permutation_p:.3g}"
    if estimate.p >= ALPHA and needed is not None and needed > estimate.n:
        evidence += f"; a difference like this needs about {needed} seeds (80 % power), {needed - estimate.n} more"
    return Comparison(parsed.text, model, direction, evidence, parsed.greater, estimate, permutation_p, needed)


def with_seeds(quantity: Sampled, seeds: Sequence[int]) -> Sampled:
    """Returns the quantity with only these seeds, in this order."""
    columns = [quantity.seeds.index(seed) for seed in seeds]
    parts = tuple(
        (name, None if values is None else values[columns], errors[columns]) for name, values, errors in quantity.parts
    )
    return replace(quantity, seeds=tuple(seeds), values=quantity.values[columns], parts=parts)


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """Returns the exit code for CI: 0 if all are supported, 3 if one is contradicted, else 4 (undecided)."""
    kinds = {verdict.verdict for verdict in verdicts}
    return 3 if CONTRADICTED in kinds else 4 if UNDECIDED in kinds else 0


def sentences(verdicts: Sequence[Verdict]) -> list[str]:
    """Returns three sentences: what the numbers support, contradict and leave undecided."""
    lines = []
    for verdict, words in ((SUPPORTED, "supports"), (CONTRADICTED, "contradicts"), (UNDECIDED, "leaves undecided")):
        statements = [v.claim.statement.rstrip(".") for v in verdicts if v.verdict == verdict]
        listing = "; ".join(f"“{statement}”" for statement in statements) if statements else "none of the claims"
        lines.append(f"It {words} {listing}.")
    return lines
