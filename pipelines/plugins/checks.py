"""Checks of what plugins have registered, so that a mistake is found when a cell is composed, and not in a stage."""

import inspect
import random
import re
from collections.abc import Iterable
from typing import Any

from pipelines.errors import UserError, nearest
from pipelines.plugins.registration import Loading
from pipelines.processes import time_limit
from pipelines.tasks.families import Problem
from pipelines.tasks.formats import FORMATS
from pipelines.verifiers.registry import READS, VERIFIERS

GENERATED_SECONDS = 10
"""Limit on the time of one problem of a task family."""


def check_registered(registrations: Iterable[Loading]) -> None:
    """Raise `UserError` for the first entry that cannot work; all formats and verifiers are registered by now."""
    for registration in registrations:
        for kind, registry, name in registration.registered:
            key, entry = f"{registration.key}: {kind} {name!r}", registry[name]
            if kind == "verifier":
                _check_verifier(key, entry)
            elif kind == "answer format":
                _check_format(key, entry)
            elif kind in ("choice benchmark", "text benchmark"):
                continue  # they have no format
            elif entry.format not in FORMATS:
                raise UserError(f"{key}: format={entry.format}: {nearest(entry.format, FORMATS)}")
            elif kind == "task family":
                _check_family(key, name, entry)


def _check_verifier(key: str, entry: Any) -> None:
    if entry.reads not in READS:
        raise UserError(f"{key}: reads={entry.reads}: {nearest(entry.reads, READS)}")
    if not entry.seconds > 0:
        raise UserError(f"{key}: seconds={entry.seconds}: it must be above 0")


def check_parameters(key: str, function: Any) -> None:
    """Raise `UserError` unless a verifier's function can be called with an answer and a reference."""
    try:
        inspect.signature(function).bind("", "")
    except TypeError as error:
        raise UserError(f"{key}: it is called with an answer and a reference ({error}); take these two") from error


def _check_format(key: str, entry: Any) -> None:
    if entry.verifier not in VERIFIERS:
        raise UserError(f"{key}: verifier={entry.verifier}: {nearest(entry.verifier, VERIFIERS)}")
    try:
        asked = entry.prompt.format(question="2+2?")
    except (LookupError, ValueError) as error:
        fix = f"only {{question}} is replaced, so write other braces twice ({error!r})"
        raise UserError(f"{key}: prompt={entry.prompt!r}: {fix}") from error
    if "2+2?" not in asked:
        raise UserError(f"{key}: prompt={entry.prompt!r}: it has no {{question}}; add it")
    if callable(entry.answer):
        return
    try:
        groups = re.compile(entry.answer).groups
    except re.error as error:
        raise UserError(f"{key}: answer={entry.answer}: {error}; correct the expression") from error
    if not groups:
        raise UserError(f"{key}: answer={entry.answer}: it has no group; put the answer in ( )")


def _check_family(key: str, name: str, entry: Any) -> None:
    fix = f"return a Problem whose family is {name!r}"
    try:
        with time_limit(GENERATED_SECONDS):
            problem = entry.generate(random.Random(0))
    except TimeoutError as error:
        raise UserError(f"{key}: one problem takes more than {GENERATED_SECONDS} s; {fix} sooner") from error
    except Exception as error:
        raise UserError(f"{key}: it raised {type(error).__name__}: {error}; {fix}") from error
    if not isinstance(problem, Problem) or problem.family != name:
        raise UserError(f"{key}: it returned {problem!r:.80}; {fix}")
