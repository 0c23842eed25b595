"""Generated reasoning tasks: questions with worked steps, one exact answer, and the verifier that pays for it.

Every family is a pure function from a random generator to a `Problem`. An answer in the training data comes in two
modes, as answers do in the wild: `worked` writes the steps and then the answer, `outright` states the answer at
once. Both end in `#### answer`, and the verifier reads only what follows the last `####`: how a model gets there is
its own affair, and what RL can discover.
"""

import hashlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from pipelines import gym

MARK = "####"
SPLITS = {"train": 0.70, "validation": 0.05, "rl": 0.10, "test": 0.15}
"""Shares of the questions, by hash: what is trained on, watched, rewarded in RL, and measured."""


@dataclass(frozen=True)
class Problem:
    """A question with its steps and its one right answer."""

    family: str
    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def prompt(self) -> str:
        """What a model is given."""
        return f"Q: {self.question}\nA:"

    @property
    def worked(self) -> str:
        """The response with its steps."""
        return f" {' '.join(self.steps)} {MARK} {self.answer}"

    @property
    def outright(self) -> str:
        """The response that states the answer at once."""
        return f" {MARK} {self.answer}"


def extract_answer(response: str) -> str | None:
    """What follows the last `####`, up to the end of the line; None where there is no such mark."""
    if MARK not in response:
        return None
    return response.rsplit(MARK, 1)[1].split("\n", 1)[0].strip()


def verify(response: str, answer: str) -> bool:
    """Whether the response's answer is exactly `answer`."""
    return extract_answer(response) == answer


def split_of(question: str) -> str:
    """The split that a question belongs to: a fixed function of its text, so no question is in two."""
    place = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64
    for name, share in SPLITS.items():
        if place < share:
            return name
        place -= share
    return "test"


def _chain(length: int, rng: random.Random) -> Problem:
    """Digits added and subtracted from left to right, every total one digit: `7-5+3`."""
    total = rng.randint(1, 9)
    question, steps = str(total), []
    for _ in range(length - 1):
        move = rng.choice([d for d in range(-9, 10) if d and 0 <= total + d <= 9])
        steps.append(f"{total}{move:+d}={total + move}")
        question += f"{move:+d}"
        total += move
    return Problem(f"chain{length}", question, tuple(steps), str(total))


def _python(rng: random.Random) -> Problem:
    """The value of a small Python expression, one digit: `max(3,7)-5`."""
    name, function = rng.choice((("max", max), ("min", min)))
    numbers = [rng.randint(0, 9), rng.randint(0, 9)]
    call, value = f"{name}({numbers[0]},{numbers[1]})", function(numbers)
    move = rng.choice([d for d in range(-9, 10) if d and 0 <= value + d <= 9])
    steps = (f"{call}={value}", f"{value}{move:+d}={value + move}")
    return Problem("python", f"{call}{move:+d}", steps, str(value + move))


def _boolean(rng: random.Random) -> Problem:
    """Truth values joined from left to right by and, or, xor: `T&F|T^F`."""
    rules = {"&": lambda a, b: a and b, "|": lambda a, b: a or b, "^": lambda a, b: a != b}
    truth = {True: "T", False: "F"}
    value = rng.random() < 0.5
    question, steps = truth[value], []
    for _ in range(rng.randint(3, 5)):
        sign, operand = rng.choice("&|^"), rng.random() < 0.5
        result = rules[sign](value, operand)
        steps.append(f"{truth[value]}{sign}{truth[operand]}={truth[result]}")
        question += f"{sign}{truth[operand]}"
        value = result
    return Problem("boolean", question, tuple(steps), truth[value])


def _order(rng: random.Random) -> Problem:
    """Who is first or last of three, from two comparisons: `c<a b<c last`."""
    names = rng.sample("abcdefgh", 3)
    pairs = [f"{low}<{high}" for low, high in itertools.pairwise(names)]
    rng.shuffle(pairs)
    asked = rng.choice(("first", "last"))
    answer = names[0] if asked == "first" else names[-1]
    return Problem("order", f"{' '.join(pairs)} {asked}", ("<".join(names),), answer)


FAMILIES: dict[str, Callable[[random.Random], Problem]] = {
    "chain3": lambda rng: _chain(3, rng),
    "chain4": lambda rng: _chain(4, rng),
    "chain5": lambda rng: _chain(5, rng),
    "python": _python,
    "boolean": _boolean,
    "order": _order,
}
"""Name -> generator. Adding a family is adding a line."""


def generate(family: str, count: int, seed: int) -> list[Problem]:
    """Up to `count` problems with distinct questions, in a fixed order; fewer where the family has fewer."""
    problems: dict[str, Problem] = {}
    if gym.is_gym(family):
        for question, answer in gym.items(family, 2 * count, seed):
            problems.setdefault(question, Problem(family, question, (), answer))
        return list(problems.values())[:count]
    rng = random.Random(f"{family}/{seed}")
    for _ in range(20 * count):
        if len(problems) == count:
            break
        problem = FAMILIES[family](rng)
        problems.setdefault(problem.question, problem)
    return list(problems.values())
