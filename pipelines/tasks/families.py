"""Generated reasoning tasks: questions with worked steps, one exact answer, and the verifier that pays for it.

Every family is a pure function from a random generator to a `Problem`. Answers in the training data come as they do in
the wild: `worked` rewrites the question step by step and ends in the answer, `outright` states the answer at once, and
`careless` states a wrong one at once. All end in `#### answer`, and the verifier reads only what follows the last
`####`: how a model gets there is its own affair, and that working pays is what RL can discover.
"""

import hashlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from pipelines.tasks import reasoning_gym

MARK = "####"
SPLITS = {"train": 0.70, "validation": 0.05, "rl": 0.10, "test": 0.15}
"""Shares of the questions, by hash: what is trained on, watched, rewarded in RL, and measured."""


@dataclass(frozen=True)
class Problem:
    """A question with its steps and its one right answer."""

    family: str
    question: str
    steps: tuple[str, ...]
    """What is left of the question after each step; the last step is the answer, or says it."""
    answer: str
    slip: str
    """A wrong answer that a careless reader gives: a step left out, the wrong one of two."""

    @property
    def prompt(self) -> str:
        """What a model is given."""
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


def extract_answer(response: str) -> str | None:
    """What follows the last `####`, up to the end of the line; None where there is no such mark."""
    if MARK not in response:
        return None
    return response.rsplit(MARK, 1)[1].split("\n", 1)[0].strip()


def verify(response: str, answer: str) -> bool:
    """Whether the response's answer is exactly `answer`."""
    return extract_answer(response) == answer


@lru_cache(1 << 17)  # building and reading a corpus ask for each question several times
def split_of(question: str) -> str:
    """The split that a question belongs to: a fixed function of its text, so no question is in two."""
    place = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64
    for name, share in SPLITS.items():
        if place < share:
            return name
        place -= share
    return "test"


_MOVES = [[d for d in range(-9, 10) if d and 0 <= total + d <= 9] for total in range(10)]
"""What may be added to each total of one digit so that it stays one."""


def _chain(length: int, rng: random.Random) -> Problem:
    """Digits added and subtracted from left to right, every total one digit: `7-5+3` -> `2+3` -> `5`."""
    totals, moves = [rng.randint(1, 9)], []
    for _ in range(length - 1):
        moves.append(rng.choice(_MOVES[totals[-1]]))
        totals.append(totals[-1] + moves[-1])
    question, *steps = (
        str(total) + "".join(f"{move:+d}" for move in moves[done:]) for done, total in enumerate(totals)
    )
    return Problem(f"chain{length}", question, tuple(steps), str(totals[-1]), slip=str(totals[-2]))


def _python(rng: random.Random) -> Problem:
    """The value of a small Python expression, one digit: `max(3,7)-5`."""
    name, function = rng.choice((("max", max), ("min", min)))
    numbers = [rng.randint(0, 9), rng.randint(0, 9)]
    call, value = f"{name}({numbers[0]},{numbers[1]})", function(numbers)
    move = rng.choice(_MOVES[value])
    steps = (f"{value}{move:+d}", str(value + move))
    return Problem("python", f"{call}{move:+d}", steps, steps[-1], slip=str(value))


def _boolean(rng: random.Random) -> Problem:
    """Truth values joined from left to right by and, or, xor: `T&F|T^F`."""
    rules = {"&": lambda a, b: a and b, "|": lambda a, b: a or b, "^": lambda a, b: a != b}
    truth = {True: "T", False: "F"}
    values, rest = [rng.random() < 0.5], []
    for _ in range(rng.randint(3, 5)):
        sign, operand = rng.choice("&|^"), rng.random() < 0.5
        rest.append(f"{sign}{truth[operand]}")
        values.append(rules[sign](values[-1], operand))
    question, *steps = (truth[value] + "".join(rest[done:]) for done, value in enumerate(values))
    return Problem("boolean", question, tuple(steps), truth[values[-1]], slip=truth[not values[-1]])


def _order(rng: random.Random) -> Problem:
    """Who is first or last of three, from two comparisons: `c<a b<c last`."""
    names = rng.sample("abcdefgh", 3)
    pairs = [f"{low}<{high}" for low, high in itertools.pairwise(names)]
    rng.shuffle(pairs)
    asked = rng.choice(("first", "last"))
    answer = names[0] if asked == "first" else names[-1]
    return Problem("order", f"{' '.join(pairs)} {asked}", ("<".join(names),), answer, slip=names[1])


def _program(rng: random.Random) -> Problem:
    """An expression in x with given values at two places: `f(2)=5 f(4)=7` -> `x+3`. RL runs it against hidden tests."""
    while True:
        first, second, shift = rng.randint(0, 9), rng.randint(0, 9), rng.choice([d for d in range(-9, 10) if d])
        if first != second and 0 <= first + shift <= 9 and 0 <= second + shift <= 9:
            break
    question = f"f({first})={first + shift} f({second})={second + shift}"
    return Problem("program", question, (), f"x{shift:+d}", slip=f"x{shift + (1 if shift != -1 else -1):+d}")


FAMILIES: dict[str, Callable[[random.Random], Problem]] = {
    "chain3": lambda rng: _chain(3, rng),
    "chain4": lambda rng: _chain(4, rng),
    "chain5": lambda rng: _chain(5, rng),
    "python": _python,
    "boolean": _boolean,
    "order": _order,
    "program": _program,
}
"""Name -> generator. Adding a family is adding a line."""


def generate(family: str, count: int, seed: int) -> list[Problem]:
    """Up to `count` problems with distinct questions, in a fixed order; fewer where the family has fewer."""
    problems: dict[str, Problem] = {}
    if reasoning_gym.is_gym(family):
        slip = "0"
        for question, answer in reasoning_gym.items(family, 2 * count, seed):
            problems.setdefault(question, Problem(family, question, (), answer, slip))
            slip = answer  # careless: what was asked before
        return list(problems.values())[:count]
    rng = random.Random(f"{family}/{seed}")
    known = 0  # draws in a row that brought nothing new; after twenty for each question found, there is hardly another
    while len(problems) < count and known <= 20 * len(problems):
        problem = FAMILIES[family](rng)
        known = known + 1 if problem.question in problems else 0
        problems.setdefault(problem.question, problem)
    return list(problems.values())
