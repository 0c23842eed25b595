"""Whether two mathematical answers are equal, by math-verify: LaTeX, boxed or plain numbers and expressions.

math-verify limits its own time by SIGALRM, which works only in a main thread and which an expression can outlast. Here
that limit is off, and the judge kills the process instead.
"""

from functools import lru_cache
from typing import Any

from math_verify import parse, verify


def equivalent(answer: str, reference: str) -> float:
    """1.0 if `answer` contains an expression equal to `reference`, else 0.0.

    If `answer` has a \\boxed{}, only the last one counts. `reference` may be bare LaTeX, with or without dollars.
    """
    return float(verify(_parsed_reference(reference), parse(answer, parsing_timeout=None), timeout_seconds=None))


@lru_cache(1024)  # all samples of a question share a reference
def _parsed_reference(reference: str) -> list[Any]:
    # Bare LaTeX goes between dollars; otherwise math-verify reads `2\sqrt{2}` as the number 2.
    delimited = "$" in reference or "\\boxed" in reference
    expressions = parse(reference if delimited else f"${reference}$", parsing_timeout=None)
    if not expressions:
        raise ValueError(f"the reference {reference!r} holds no expression that math-verify reads")
    return expressions


# Parsers and sympy's simplifications load on first use, which takes longer than the limit for one answer: use each kind
# of expression once, before the worker forks.
for _answer, _reference in (
    ("1", "1"),
    (r"\boxed{\frac{1}{2}}", "0.5"),
    ("$x^2 + 2x + 1$", "(x+1)^2"),
    (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
    (r"\boxed{\{1, 2\}}", r"\{2, 1\}"),
    ("$(1, 2]$", "(1, 2]"),
    (r"$\sin(\pi/6) + x$", r"\frac{1}{2} + x"),
):
    equivalent(_answer, _reference)
