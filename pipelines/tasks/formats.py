"""How a question becomes a prompt, where a response's answer stands, and which verifier judges it. No torch."""

import re
from dataclasses import dataclass

from pipelines.verifiers.registry import VERIFIERS


@dataclass(frozen=True)
class Format:
    """How a problem is put, read and verified."""

    prompt: str
    """The prompt; `{question}` stands for the question."""
    answer: str
    """A regular expression; the first group of its last match in the response is the answer."""
    verifier: str
    """A name of `pipelines.verifiers.VERIFIERS`."""
    judged: str = "{answer}"
    """What the verifier is given; `{answer}` stands for the answer."""

    def extract(self, response: str) -> str | None:
        """The answer in a response, stripped, or None."""
        found = None
        for match in re.finditer(self.answer, response):
            found = match.group(1).strip()
        return found


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
"""Name -> format. `marked` is how the corpus writes its tasks. Adding one is adding a line."""


assert all(form.verifier in VERIFIERS for form in FORMATS.values())
