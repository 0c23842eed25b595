"""Generated reasoning tasks: questions with worked steps and one exact answer.

A task family of one's own is a plugin (`pipelines.plugins`). To add one here, write a function that generates one
`Problem` and add an entry to `FAMILIES`; `data.tasks`, `grpo.tasks` and benchmarks of kind `sampled` accept its name.

The training data contain three responses to questions: `worked` rewrites the question step by step and ends with the
answer, `outright` states the answer at once, and `careless` states a wrong one at once. All end with `#### answer`, and
only what follows the last `####` is verified, so RL can discover that working through the steps pays.
"""

import hashlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from pipelines.tasks import reasoning_gym

MARK = "####"
SPLITS = {"train": 0.70, "validation": 0.05, "rl": 0.10, "test": 0.15}
"""Shares of the questions in each split: training, validation, RL, and benchmarks."""


@dataclass(frozen=True)
class Problem:
    """A question with its steps and its right answer."""

    family: str
    question: str
    steps: tuple[str, ...]
    """The rest of the question after each step; the last one is or contains the answer."""
    answer: str
    slip: str
    """A wrong answer that results from carelessness, such as a step left out."""

    @property
    def format(self) -> str:
        """The name in `pipelines.tasks.formats.FORMATS` of the format in which the question is asked."""
        return format_of(self.family)

    @property
    def reference(self) -> str:
        """What the verifier compares a response's answer with: the answer, or tests."""
        tests = Family.tests if reasoning_gym.is_gym(self.family) else FAMILIES[self.family].tests
        return self.answer if tests is None else tests.replace("{answer}", self.answer)

    @property
    def prompt(self) -> str:
        """The text that a model completes."""
        return f"Q: {self.question}\nA:"

    @property
    def worked(self) -> str:
        """The response with its steps."""
        return f" {'='.join(self.steps)} {MARK} {self.answer}"

    @property
    def outright(self) -> str:
        """The response that states the answer at once."""
        return f" {MARK} {self.answer}"

    @property
    def careless(self) -> str:
        """The response that states a wrong answer at once."""
        return f" {MARK} {self.slip}"


@dataclass(frozen=True)
class Family:
    """A task family: its generator, and how answers are judged."""

    generate: Callable[[random.Random], Problem]
    """A pure function of the random generator; the problem's `family` is the family's name."""
    format: str = "marked"
    """A name of `pipelines.tasks.formats.FORMATS`: how answers are extracted, and which verifier judges them."""
    tests: str | None = None
    """If answers are programs: the tests that a program must pass, in place of a comparison with `{answer}`."""
    source: str | None = None
    """Version or hash of a plugin's code; None: ours."""


def format_of(family: str) -> str:
    """The name of the format in which the questions of a family are asked; empty for an unknown family."""
    if reasoning_gym.is_gym(family):
        return Family.format
    return FAMILIES[family].format if family in FAMILIES else ""


@lru_cache(1 << 17)  # building and reading a corpus call it several times for each question
def split_of(question: str) -> str:
    """The split of a question: a fixed function of its text, so no question is in two splits."""
    position = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64
    for name, share in SPLITS.items():
        if position < share:
            return name
        position -= share
    return "test"


_TERMS = [[term for term in range(-9, 10) if term and 0 <= total + term <= 9] for total in range(10)]
"""The terms that can be added to each one-digit total with a one-digit result."""


def _chain(length: int, rng: random.Random) -> Problem:
    """Digits added and subtracted from left to right, with one-digit totals: `7-5+3` -> `2+3` -> `5`."""
    # The totals after 0, 1, ... terms; the step after each is that total with the terms that follow.
    totals, terms = [rng.randint(1, 9)], []
    for _ in range(length - 1):
        terms.append(rng.choice(_TERMS[totals[-1]]))
        totals.append(totals[-1] + terms[-1])
    question, *steps = (
        str(total) + "".join(f"{term:+d}" for term in terms[done:]) for done, total in enumerate(totals)
    )
    return Problem(f"chain{length}", question, tuple(steps), str(totals[-1]), slip=str(totals[-2]))


def _python(rng: random.Random) -> Problem:
    """The one-digit value of a small Python expression: `max(3,7)-5`."""
    name, function = rng.choice((("max", max), ("min", min)))
    numbers = [rng.randint(0, 9), rng.randint(0, 9)]
    call, value = f"{name}({numbers[0]},{numbers[1]})", function(numbers)
    term = rng.choice(_TERMS[value])
    steps = (f"{value}{term:+d}", str(value + term))
    return Problem("python", f"{call}{term:+d}", steps, steps[-1], slip=str(value))


def _boolean(rng: random.Random) -> Problem:
    """Truth values combined from left to right by and, or, xor: `T&F|T^F`."""
    operators = {"&": lambda a, b: a and b, "|": lambda a, b: a or b, "^": lambda a, b: a != b}
    truth = {True: "T", False: "F"}
    # The values after 0, 1, ... terms, as in `_chain`.
    values, terms = [rng.random() < 0.5], []
    for _ in range(rng.randint(3, 5)):
        sign, operand = rng.choice("&|^"), rng.random() < 0.5
        terms.append(f"{sign}{truth[operand]}")
        values.append(operators[sign](values[-1], operand))
    question, *steps = (truth[value] + "".join(terms[done:]) for done, value in enumerate(values))
    return Problem("boolean", question, tuple(steps), truth[values[-1]], slip=truth[not values[-1]])


def _order(rng: random.Random) -> Problem:
    """Who is first or last of three, from two comparisons: `c<a b<c last`."""
    names = rng.sample("abcdefgh", 3)
    pairs = [f"{low}<{high}" for low, high in itertools.pairwise(names)]
    rng.shuffle(pairs)
    position = rng.choice(("first", "last"))
    answer = names[0] if position == "first" else names[-1]
    return Problem("order", f"{' '.join(pairs)} {position}", ("<".join(names),), answer, slip=names[1])


def _program(rng: random.Random) -> Problem:
    """An expression in x from its values at two points: `f(2)=5 f(4)=7` -> `x+3`."""
    # Draw until both points and both values are digits, and the points differ.
    while True:
        first, second, shift = rng.randint(0, 9), rng.randint(0, 9), rng.choice([d for d in range(-9, 10) if d])
        if first != second and 0 <= first + shift <= 9 and 0 <= second + shift <= 9:
            break
    question = f"f({first})={first + shift} f({second})={second + shift}"
    return Problem("program", question, (), f"x{shift:+d}", slip=f"x{shift + (1 if shift != -1 else -1):+d}")


FAMILIES: dict[str, Family] = {
    "chain3": Family(partial(_chain, 3)),
    "chain4": Family(partial(_chain, 4)),
    "chain5": Family(partial(_chain, 5)),
    "chain7": Family(partial(_chain, 7)),
    "python": Family(_python),
    "boolean": Family(_boolean),
    "order": Family(_order),
    "program": Family(_program, format="program", tests="for x in range(-20, 21):\n    assert f(x) == ({answer}), x"),
}
"""Name -> family. Names that begin with `gym_` are families of reasoning-gym, with the defaults of `Family`."""


def generate(family: str, count: int, seed: int) -> list[Problem]:
    """Up to `count` problems with distinct questions, in a fixed order; fewer if the family has fewer."""
    problems: dict[str, Problem] = {}
    if reasoning_gym.is_gym(family):
        slip = "0"
        for question, answer in reasoning_gym.items(family, 2 * count, seed):
            problems.setdefault(question, Problem(family, question, (), answer, slip))
            slip = answer  # the careless answer to a question is the answer to the one before it
        return list(problems.values())[:count]
    rng = random.Random(f"{family}/{seed}")
    # Stop after twenty repetitions in a row for each question so far: hardly any other exists then.
    repetitions = 0
    while len(problems) < count and repetitions <= 20 * len(problems):
        problem = FAMILIES[family].generate(rng)
        repetitions = repetitions + 1 if problem.question in problems else 0
        problems.setdefault(problem.question, problem)
    return list(problems.values())
