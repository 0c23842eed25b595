"""A verdict in words: the comparison that decides it, what it measures, its number with unit and interval."""

import ast
import math
from dataclasses import dataclass
from typing import Any

from analysis.claim_language import Term, parse, term_of
from analysis.claims import MISSING, Comparison, Verdict, support_p
from analysis.paper_tables import STAGE_TITLES

METRICS = {
    "": "",
    "score": "average score",
    "pass": "Pass@k",
    "avg": "Avg@n",
    "cons": "Cons@n",
    "entropy_fall": "share of entropy lost in RL",
    "length_change": "last response length / first",
}
UNITS = {"entropy": "nats", "response_length": "tokens", "bits_per_byte": "bits per byte"}
WITHOUT_UNIT = ("perplexity", "head_mass", "tail_mass", "calibration_error", "entropy_fall", "length_change")


@dataclass(frozen=True)
class Decision:
    """The comparison that decides a verdict, in words."""

    comparison: Comparison
    short: str
    """`precision < ce`"""
    quantity: str
    """What is compared: `entropy after pre-training`."""
    number: str
    """Left minus right with its unit; what is missing if there is none."""
    interval: str
    """`[low, high]`, or why there is none."""


def decision(verdict: Verdict) -> Decision:
    """Returns the comparison that decides a verdict.

    All must hold, so the weakest decides a supported or undecided claim, the strongest opposition a contradicted one.
    One that is measured comes before one that is missing, since it has a number.
    """
    measured = [comparison for comparison in verdict.comparisons if comparison.direction != MISSING]
    weakest = max(measured or verdict.comparisons, key=_doubt)
    strongest = min(verdict.comparisons, key=_doubt_of_opposite)
    chosen = strongest if verdict.verdict == "contradicted" else weakest
    return in_words(chosen)


def _doubt(comparison: Comparison) -> float:
    """How far a comparison is from being shown to hold."""
    p = support_p([comparison])
    estimate = comparison.estimate
    is_opposite = estimate is not None and (estimate.value > 0) != comparison.greater
    return p + is_opposite


def _doubt_of_opposite(comparison: Comparison) -> float:
    estimate = comparison.estimate
    if estimate is None or (estimate.value > 0) == comparison.greater:
        return 2.0
    return 1.0 if estimate.p is None else estimate.p


def in_words(comparison: Comparison) -> Decision:
    """Returns a comparison with what it measures, its number and its interval."""
    (parsed,) = parse(comparison.text, "")
    tree: Any = ast.parse(comparison.text, mode="eval").body
    shared = _shared_options(parsed.terms)
    short = ast.unparse(_Named(shared).visit(tree))
    options = dict(shared)
    metrics = {dict(term.options).get("metric") or dict(term.options).get("name") or "" for term in parsed.terms}
    metric = metrics.pop() if len(metrics) == 1 else ""
    default = "pass" if options.get("stage", "grpo") == "grpo" else "score"
    quantity = _quantity(metric or default, options)
    if comparison.estimate is None:
        return Decision(comparison, short, quantity, comparison.evidence, "")
    ends = [comparison.estimate.value, comparison.estimate.low, comparison.estimate.high]
    # With a constant on one side, the other side's value says more than the difference from the constant.
    left, right = (_constant(side) for side in (tree.left, tree.comparators[0]))
    if right is not None:
        ends = [None if end is None else end + right for end in ends]
    elif left is not None:
        ends = [None if end is None else left - end for end in (ends[0], ends[2], ends[1])]
    unit = _unit(metric or default)
    if "log(" in comparison.text:  # the log of a ratio: in percent
        ends, unit = [None if end is None else 100 * math.expm1(end) for end in ends], "%"
    largest = max(abs(end) for end in ends if end is not None)
    digits = 1 if largest >= 10 else 2 if largest >= 0.1 else 3
    value, low, high = (None if end is None else f"{end:+.{digits}f}".replace("-", "−") for end in ends)
    interval = "no interval" if low is None or low == high else f"[{low}, {high}]"
    return Decision(comparison, short.replace("-", "−"), quantity, f"{value} {unit}".strip(), interval)


def _constant(node: ast.expr) -> float | None:
    try:
        return float(ast.literal_eval(node))
    except (ValueError, TypeError):
        return None


def _shared_options(terms: tuple[Term, ...]) -> tuple[tuple[str, Any], ...]:
    """The options that all terms have with the same value."""
    return tuple(option for option in terms[0].options if all(option in term.options for term in terms))


class _Named(ast.NodeTransformer):
    """Replaces each term by its setting's name, with the options in which it differs from the others."""

    def __init__(self, shared: tuple[tuple[str, Any], ...]) -> None:
        self.shared = shared

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A term becomes a name; log() keeps its argument."""
        if isinstance(node.func, ast.Name) and node.func.id == "log":
            return self.generic_visit(node)
        term = term_of(node, "")
        own = [f"{value}" for name, value in term.options if (name, value) not in self.shared]
        return ast.Name(" ".join([term.objective, *(f"({part})" for part in own)]))


def _quantity(metric: str, options: dict[str, Any]) -> str:
    stage, at = options.get("stage", "grpo"), options.get("at", "last")
    name = METRICS.get(metric, metric.replace("_", " "))
    if "name" in options:
        return name
    title = STAGE_TITLES[stage] if stage == "grpo" else STAGE_TITLES[stage].lower()
    when = {"last": f"after {title}", "first": f"before {title}" if stage == "grpo" else f"first of {title}"}
    benchmark = options.get("benchmark", "average")
    parts = [name, "" if benchmark == "average" else f"of {benchmark}", when.get(str(at), f"at {title} step {at}")]
    return " ".join(filter(None, parts))


def _unit(metric: str) -> str:
    return UNITS.get(metric, "" if metric in WITHOUT_UNIT else "points")


def corrected_p(verdict: Verdict) -> str:
    """Returns the verdict's p-value in words; empty if it has none."""
    if verdict.p is None:
        return ""
    return "p = 1" if verdict.p >= 0.995 else f"p = {verdict.p:.2g}"
