"""Families of reasoning-gym as generated tasks (the extra `gym`).

The family `gym_X` is reasoning-gym's `X`, with these differences: an answer must equal the reference, because the
library's scorers may reward by length, raise, or reward any text; questions are distinct and split by hash, as in every
family, because items depend on seed + index, so nearby seeds have items in common; an item whose generator fails is
skipped; families that hang or have wrong answers are refused.
"""

from importlib.util import find_spec
from typing import Any

from pipelines.errors import UserError, require

PREFIX = "gym_"

REFUSED = {
    "number_sequence": "its generator can hang",
    "game_of_life_halting": "it has two answers, and one of them is right most of the time",
    "gsm_symbolic": "its answers lose their minus sign, and its questions overlap GSM8K's test set",
}

PARAMETERS: dict[str, dict[str, Any]] = {
    "gym_number_sorting": {"min_numbers": 3, "max_numbers": 5, "min_value": 0, "max_value": 9, "max_decimals": 0},
}
"""Parameters of the families that a nano model can learn; other families have the library's defaults."""

QUESTIONS = {"gym_number_sorting": "sort {direction} {numbers}"}
"""Shorter questions, with fields of the item's metadata, for models of a few hundred thousand parameters."""


def is_gym(family: str) -> bool:
    """Whether a family is one of reasoning-gym."""
    return family.startswith(PREFIX)


def check(family: str) -> None:
    """Raise a `UserError` if `family` is refused or reasoning-gym is not installed."""
    name = family.removeprefix(PREFIX)
    require(name not in REFUSED, "data.tasks", family, fix=f"it is refused: {REFUSED.get(name)}")
    require(
        find_spec("reasoning_gym") is not None,
        "data.tasks",
        family,
        fix="it needs reasoning-gym: pip install 'shaping[gym]' (a C compiler is needed)",
    )


def items(family: str, count: int, seed: int) -> list[tuple[str, str]]:
    """(question, answer) of `count` items; questions may repeat. Raises `UserError` for an unknown family."""
    import reasoning_gym

    name = family.removeprefix(PREFIX)
    # Item i of seed s is item i + 1 of seed s - 1, so the library's seeds are far apart.
    base = (seed * 1_000_003 + 17) % 2**31
    try:
        data = reasoning_gym.create_dataset(name, size=count, seed=base, **PARAMETERS.get(family, {}))
    except ValueError as error:
        raise UserError(f"data.tasks={family}: reasoning-gym refuses it: {error}") from None
    pairs = []
    for index in range(count):
        try:
            item = data[index]
        except Exception:  # some generators fail on single items
            continue
        answer = str(item["answer"]).strip()
        if answer and "\n" not in answer and "#" not in answer:  # others cannot be marked by `####`
            pairs.append(_shortened(family, item, answer))
    return pairs


def _shortened(family: str, item: dict[str, Any], answer: str) -> tuple[str, str]:
    """Question and answer of an item, in the shorter form of `QUESTIONS` if it has one."""
    question = str(item["question"]).strip()
    if family not in QUESTIONS:
        return question, answer
    metadata = dict(item["metadata"])
    metadata["numbers"] = " ".join(_whole(metadata["original_numbers"]))
    metadata["direction"] = "up" if metadata["direction"] == "ascending" else "down"
    return QUESTIONS[family].format(**metadata), " ".join(_whole(metadata["sorted_numbers"]))


def _whole(numbers: list[str]) -> list[str]:
    """The numbers without `.0`."""
    return [number.removesuffix(".0") for number in numbers]
