"""What a question's reward depends on besides the answer, as plain values for signatures and cache keys."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from pipelines.tasks.formats import FORMATS
from pipelines.verifiers.content import verifier_content
from pipelines.verifiers.registry import VERIFIERS

QUESTION_FORMAT = "boxed"
"""The format of questions in a file of `grpo.tasks` whose line names none. The mathematics of `evaluation=paper` that
is measured after RL is asked in the same words."""


def conversation(question: str, response: str) -> str:
    """Returns what a verifier that reads conversations receives as the answer: JSON of the messages."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    return json.dumps(messages, ensure_ascii=False)


def judging(name: str) -> dict[str, Any]:
    """Returns everything that the format `name` and its verifier do.

    A function is represented by its name: raise the stages' versions when it reads another answer.
    """
    form = FORMATS[name]
    answer = form.answer if isinstance(form.answer, str) else f"{form.answer.__module__}:{form.answer.__qualname__}"
    content = asdict(form) | {"answer": answer}
    if form.source is None:  # formats that were stored before there were plugins have no such key
        del content["source"]
    return {"format": content, "verifier": verifier_content(form.verifier)}


def plugin_judging(names: Iterable[str]) -> dict[str, Any]:
    """Returns what those of these formats do that are a plugin's, or whose verifier is.

    What ours do is covered by the versions of the stages.
    """
    forms = {name: FORMATS[name] for name in names}
    return {name: judging(name) for name, form in forms.items() if form.source or VERIFIERS[form.verifier].source}
