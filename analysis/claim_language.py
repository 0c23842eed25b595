"""The small language that claims are written in: comparisons of terms, found in one line of text and evaluated.

`claims.yaml` says its words. Python reads the line; nothing of it is ever run.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.paper_tables import STAGE_NAMES
from analysis.statistics import (
    Floats,
)
from pipelines.errors import UserError, nearest

OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
TERMS = {"value": ("objective",), "rl": ("objective", "name")}
KEYWORDS = {"value": ("stage", "at", "benchmark", "metric", "model", "variant"), "rl": ("model",)}

CURVES: dict[str, tuple[str, Callable[[float, float], float]]] = {
    "entropy_fall": ("entropy", lambda first, last: 1 - last / first),
    "length_change": ("response_length", lambda first, last: last / first),
}
"""Name -> column of RL's ledger, and the measure of its first and last steps' means."""


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


def evaluate(node: ast.expr, claim: str, values: Mapping[Term, Floats]) -> Floats:
    """The value of a parsed expression, elementwise, where each of its terms has the value that `values` gives."""
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
            return values[_term(node, claim)]
    raise AssertionError(node)
