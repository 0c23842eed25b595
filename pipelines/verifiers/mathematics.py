"""Whether two mathematical answers are the same, by math-verify: LaTeX, boxed or plain numbers and expressions.

math-verify bounds its own time by SIGALRM, which only a main thread may use and which an expression can outlive; here
it runs without, in a process that is killed from outside.
"""

from functools import lru_cache
from typing import Any

from math_verify import parse, verify


def equivalent(answer: str, reference: str) -> float:
    """1.0 where `answer` holds an expression equal to `reference`, else 0.0.

    What stands in the last \\boxed{} counts where there is one; a reference may be bare LaTeX, with or without dollars.
    """
    found = parse(answer, parsing_timeout=None)
    return float(verify(_gold(reference), found, timeout_seconds=None))


@lru_cache(1024)  # the samples of a question share it
def _gold(reference: str) -> list[Any]:
    # Bare LaTeX goes between dollars, or math-verify would read `2\sqrt{2}` as the number 2.
    marked = "$" in reference or "\\boxed" in reference
    gold = parse(reference if marked else f"${reference}$", parsing_timeout=None)
    if not gold:
        raise ValueError(f"the reference {reference!r} holds no expression that math-verify reads")
    return gold


# Parsers and sympy's simplifications load on first use, which takes longer than one answer may: once for each kind of
# expression, before a worker is forked.
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
