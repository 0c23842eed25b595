"""What a question's reward depends on besides the answer, as plain values for signatures and cache keys."""

from dataclasses import asdict
from typing import Any

from pipelines.tasks.formats import FORMATS
from pipelines.verifiers.content import verifier_content

QUESTION_FORMAT = "boxed"
"""The format of questions in a file of `grpo.tasks` whose line names none. The mathematics of `evaluation=paper` that
is measured after RL is asked in the same words."""


def judging(name: str) -> dict[str, Any]:
    """Returns everything that the format `name` and its verifier do.

    A function is represented by its name: raise the stages' versions when it reads another answer.
    """
    form = FORMATS[name]
    answer = form.answer if isinstance(form.answer, str) else f"{form.answer.__module__}:{form.answer.__qualname__}"
    return {"format": asdict(form) | {"answer": answer}, "verifier": verifier_content(form.verifier)}
