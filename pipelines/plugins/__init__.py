"""Code of one's own, by name: verifiers, task families, formats of answers and benchmarks.

A module registers what it has when it is imported as a plugin (`pipelines.plugins.loading`); imported in any other way,
as in a verifier's worker process, these functions register nothing.

    from pipelines.plugins import answer_format, benchmark, family, verifier

    @verifier("close", seconds=2.0)
    def close(answer: str, reference: str) -> float:
        return 1.0 / (1.0 + abs(float(answer) - float(reference)))

    answer_format("estimate", prompt="{question} About ", answer=r"([\\d.]+)", verifier="close")
"""

import random
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pipelines.errors import UserError, nearest
from pipelines.plugins.checks import check_parameters
from pipelines.plugins.registration import register
from pipelines.tasks.families import FAMILIES, Family, Problem
from pipelines.tasks.formats import FORMATS, Format
from pipelines.tasks.question_sets import SETS, ChoiceSet, QuestionSet, TextSet
from pipelines.verifiers.registry import VERIFIERS, Verifier

__all__ = ["Problem", "answer_format", "benchmark", "family", "verifier"]

Function = TypeVar("Function", bound=Callable[..., Any])


def verifier(
    name: str,
    *,
    reads: str = "answer",
    seconds: float = 10.0,
    compares_answers: bool = False,
    longest: int | None = 1 << 16,
) -> Callable[[Function], Function]:
    """Register a function (answer, reference) -> reward between 0 and 1, plain or async, as a verifier.

    `reads="answer"` gives it the answer that the question's format finds in the response; `reads="conversation"` the
    messages [{"role": "user", "content": question}, {"role": "assistant", "content": response}]. `seconds` limits the
    time of one answer. With `compares_answers` the reference is an answer too, and equal answers vote together. An
    exception, a timeout, an answer of more than `longest` characters and a reward that is no number between 0 and 1
    are counted as failures.
    """

    def decorate(function: Function) -> Function:
        check_parameters(f"verifier {name!r}", function)
        entry = Verifier(
            f"{function.__module__}:{function.__qualname__}",
            seconds=seconds,
            reads=reads,
            compares_answers=compares_answers,
            longest=longest,
        )
        register("verifier", VERIFIERS, name, entry=entry)
        return function

    return decorate


def answer_format(
    name: str, *, prompt: str, answer: str | Callable[[str], str | None], verifier: str, judged: str = "{answer}"
) -> None:
    """Register how questions are asked and answers found; the arguments are those of `pipelines.tasks.formats.Format`.

    `prompt` has {question}; `answer` is a regular expression whose first group is the answer, or a function of the
    response.
    """
    register("answer format", FORMATS, name, entry=Format(prompt, answer, verifier, judged))


def family(
    name: str, *, format: str = "marked", tests: str | None = None
) -> Callable[[Callable[[random.Random], Problem]], Callable[[random.Random], Problem]]:
    """Register a function from a random generator to a `Problem` as a task family, which `data.tasks` can name."""

    def decorate(function: Callable[[random.Random], Problem]) -> Callable[[random.Random], Problem]:
        register("task family", FAMILIES, name, entry=Family(function, format, tests))
        return function

    return decorate


def benchmark(name: str, *, kind: str = "sampled", format: str = "marked") -> Callable[[Function], Function]:
    """Register a function without parameters as the `task` of benchmarks of a kind. It returns, by `kind`:

    * `sampled`: (question, answer) pairs, which are asked in `format`;
    * `choice`: (beginning, continuations, index of the right one); a model answers with the likeliest;
    * `text`: held-out texts, whose perplexity and distributions are measured.
    """

    def decorate(function: Callable[[], Iterable[Any]]) -> Any:
        if kind not in SETS:
            raise UserError(f"benchmark {name!r}: kind={kind}: {nearest(kind, SETS)}")
        entries = {"choice": ChoiceSet(function), "text": TextSet(function)}
        register(f"{kind} benchmark", SETS[kind], name, entry=entries.get(kind) or QuestionSet(function, format))
        return function

    return decorate
