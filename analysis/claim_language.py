"""The small language of claims: a comparison of terms in one line of text, parsed and evaluated.

`claims.yaml` describes it. The line is parsed as Python, but none of it is ever executed.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.learning import MEASURES
from analysis.paper_tables import STAGE_TITLES
from analysis.statistics import Floats
from pipelines.errors import UserError, nearest

OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
ARGUMENTS = {"value": ("objective",), "rl": ("objective", "name")}
"""Function -> its positional arguments."""
KEYWORDS = {
    "value": ("stage", "at", "benchmark", "metric", "model", "variant"),
    "rl": ("model", "variant", "reward"),
}
"""Function -> its keyword arguments."""


@dataclass(frozen=True)
class Term:
    """A quantity in a claim: a call of value() or rl()."""

    function: str
    objective: str
    """Name of any setting."""
    options: tuple[tuple[str, Any], ...]

    @property
    def model(self) -> str | None:
        """The model that the claim names; None if it is judged for each model."""
        return dict(self.options).get("model")


@dataclass(frozen=True)
class Parsed:
    """A comparison `left < right` or `left > right`, and the terms in it."""

    text: str
    greater: bool
    tree: ast.expr
    """left - right"""
    terms: tuple[Term, ...]


def parse(text: str, claim: str) -> list[Parsed]:
    """Returns the comparisons in one line of `holds`; `a < b < c` is two.

    Raises `UserError` with the claim's name and the part that cannot be read.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise UserError(f"claim {claim}: {text!r} cannot be read ({error.msg})") from error
    # The tree is checked node by node, so that only what the language has is left.
    if not isinstance(tree, ast.Compare) or not all(isinstance(op, ast.Lt | ast.Gt) for op in tree.ops):
        raise UserError(f"claim {claim}: {text!r} must be a comparison with < or >")
    # A chain `a < b < c` gives one difference for each pair of neighbours.
    sides = [tree.left, *tree.comparators]
    comparisons = []
    for left, op, right in zip(sides, tree.ops, sides[1:], strict=False):
        greater = isinstance(op, ast.Gt)
        shown = f"{ast.unparse(left)} {'>' if greater else '<'} {ast.unparse(right)}"
        difference = ast.BinOp(left, ast.Sub(), right)
        terms: dict[Term, None] = {}  # an ordered set
        _collect(difference, claim, terms)
        comparisons.append(Parsed(shown, greater, difference, tuple(terms)))
    return comparisons


def _collect(node: ast.expr, claim: str, terms: dict[Term, None]) -> None:
    """Add every term below `node` to `terms`. Raises `UserError` for anything outside the language."""
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
        case ast.Call(func=ast.Name(id=name)) if name in ARGUMENTS:
            terms[term_of(node, claim)] = None
        case _:
            raise UserError(
                f"claim {claim}: {ast.unparse(node)!r} is not part of a claim's language; it has value(), rl(), "
                "log(), numbers and + - * /"
            )


def term_of(node: ast.Call, claim: str) -> Term:
    """Returns the term of a call. Raises `UserError` with the claim's name for what the language does not have."""
    assert isinstance(node.func, ast.Name)
    function = node.func.id
    arguments, keywords = ARGUMENTS[function], KEYWORDS[function]
    # Arguments must be constants: their number and names are checked first, then their values.
    parts = [*node.args, *(keyword.value for keyword in node.keywords)]
    if len(node.args) != len(arguments) or not all(isinstance(part, ast.Constant) for part in parts):
        raise UserError(f'claim {claim}: {ast.unparse(node)!r}: write {function}({", ".join(arguments)}, key="word")')
    for keyword in node.keywords:
        if keyword.arg not in keywords:
            raise UserError(f"claim {claim}: {keyword.arg}: {nearest(str(keyword.arg), keywords)}")
    values: list[Any] = [part.value for part in node.args if isinstance(part, ast.Constant)]
    options: dict[str, Any] = {str(k.arg): k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
    if function == "rl":
        if values[1] not in MEASURES:
            raise UserError(f"claim {claim}: {values[1]!s}: {nearest(str(values[1]), MEASURES)}")
        options["name"] = values[1]
        if MEASURES[values[1]].needs_reward != ("reward" in options):
            way_out = (
                "it needs a reward in percent, such as reward=75" if "reward" not in options else "it has no reward"
            )
            raise UserError(f"claim {claim}: {ast.unparse(node)!r}: {way_out}")
    if options.get("stage", "grpo") not in STAGE_TITLES:
        raise UserError(f"claim {claim}: stage={options['stage']}: {nearest(str(options['stage']), STAGE_TITLES)}")
    return Term(function, str(values[0]), tuple(sorted(options.items())))


def evaluate(node: ast.expr, claim: str, values: Mapping[Term, Floats]) -> Floats:
    """Returns a parsed expression elementwise, with each term replaced by its array in `values`."""
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](evaluate(left, claim, values), evaluate(right, claim, values))
        case ast.UnaryOp(operand=operand):
            return -evaluate(operand, claim, values)
        case ast.Constant(value=value):
            return np.asarray(float(value))  # type: ignore[arg-type]
        case ast.Call(func=ast.Name(id="log"), args=[argument]):
            return np.log(evaluate(argument, claim, values))
        case ast.Call():
            return values[term_of(node, claim)]
    raise AssertionError(node)
