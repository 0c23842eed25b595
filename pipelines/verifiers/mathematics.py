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


equivalent("1", "1")  # the parsers load on first use: once, before a worker is forked
