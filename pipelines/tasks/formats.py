"""How a question becomes a prompt, how the answer is extracted from a response, and which verifier judges it."""

import re
from dataclasses import dataclass

from pipelines.verifiers.registry import VERIFIERS


@dataclass(frozen=True)
class Format:
    """How a question is asked, and how its answer is read and verified."""

    prompt: str
    """The prompt, with `{question}` for the question."""
    answer: str
    """A regular expression: the first group of its last match in the response is the answer."""
    verifier: str
    """A name of `pipelines.verifiers.VERIFIERS`."""
    judged: str = "{answer}"
    """What the verifier receives, with `{answer}` for the answer."""

    def extract(self, response: str) -> str | None:
        """The answer in a response, stripped, or None."""
        answer = None
        for match in re.finditer(self.answer, response):
            answer = match.group(1).strip()
        return answer


FORMATS: dict[str, Format] = {
    "marked": Format("Q: {question}\nA:", r"####([^\n#]*)(?=\n|$)", "exact"),
    "boxed": Format(
        "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.\n",
        r"(?s)(?:.*</think>)?(.*\\boxed.*)$",
        "math",
    ),
    "python": Format("{question}\nWrite the program between ```python and ```.\n", r"(?s)```python\n(.*?)```", "code"),
    "program": Format("Q: {question}\nA:", r"####([^\n#]*)(?=\n|$)", "code", "f = lambda x: {answer}"),
}
"""Name -> format. `marked` is the format of the tasks in the corpus. To add a format, add an entry."""

assert all(form.verifier in VERIFIERS for form in FORMATS.values())
