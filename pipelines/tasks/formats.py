"""How a question becomes a prompt, how the answer is extracted from a response, and which verifier judges it."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.tasks.answer_extraction import final_answer, last_program
from pipelines.verifiers.registry import VERIFIERS


@dataclass(frozen=True)
class Format:
    """How a question is asked, and how its answer is read and verified."""

    prompt: str
    """The prompt, with `{question}` for the question."""
    answer: str | Callable[[str], str | None]
    """A regular expression, the first group of whose last match in the response is the answer, or a function of the
    response that returns the answer, or None if there is none."""
    verifier: str
    """A name of `pipelines.verifiers.VERIFIERS`."""
    judged: str = "{answer}"
    """What the verifier receives, with `{answer}` for the answer."""
    source: str | None = None
    """Version or hash of a plugin's code; None: ours."""

    def extract(self, response: str) -> str | None:
        """The answer in a response, stripped, or None; an empty answer is none."""
        if callable(self.answer):
            return self.answer(response)
        answer = None
        for match in re.finditer(self.answer, response):
            answer = match.group(1).strip()
        return answer or None


_AFTER_MARK = r"####([^\n#]*)(?=\n|$)"

FORMATS: dict[str, Format] = {
    "marked": Format("Q: {question}\nA:", _AFTER_MARK, "exact"),
    "boxed": Format(
        "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.\n", final_answer, "math"
    ),
    "python": Format("{question}\nWrite the program between ```python and ```.\n", last_program, "code"),
    "program": Format("Q: {question}\nA:", _AFTER_MARK, "code", "f = lambda x: {answer}"),
}
"""Name -> format. `marked` is the format of the tasks in the corpus. To add a format, add an entry."""

EXAMPLES = {
    "marked": "#### 12",
    "boxed": r"\boxed{12}",
    "python": "```python\nprint(12)\n```",
    "program": "#### x + 12",
}
"""Name of each format -> the end of a response that has an answer in it."""

assert FORMATS.keys() == EXAMPLES.keys()
assert all(form.verifier in VERIFIERS for form in FORMATS.values())
