"""Families of reasoning-gym as generated tasks (the extra `gym`; nothing here is imported without it).

A family named `gym_X` is reasoning-gym's `X`. What that library leaves open is closed here: answers must be equal to
the reference, since its scorers pay by length, raise, or pay any text; items depend on seed + index, so nearby seeds
hold the same items, and questions are made distinct and split by hash as those of every family are; a generator that
fails on one item is passed over; the families that hang or misstate their answers are refused.
"""

from importlib.util import find_spec
from typing import Any

from pipelines.errors import UserError, require

PREFIX = "gym_"

REFUSED = {
    "number_sequence": "its generator can hang",
    "game_of_life_halting": "it has two answers, and one of them pays most of the time",
    "gsm_symbolic": "its answers lose their minus sign, and its questions overlap GSM8K's test set",
}

PARAMETERS: dict[str, dict[str, Any]] = {
    "gym_number_sorting": {"min_numbers": 3, "max_numbers": 5, "min_value": 0, "max_value": 9, "max_decimals": 0},
}
"""Parameters of the families that a nano model can learn; other families take the library's own."""

QUESTIONS = {"gym_number_sorting": "sort {direction} {numbers}"}
"""Shorter wordings, in terms of the item's metadata, for models of a few hundred thousand parameters."""


def is_gym(family: str) -> bool:
    """Whether a family's name says that it comes from reasoning-gym."""
    return family.startswith(PREFIX)


def check(family: str) -> None:
    """Raise a `UserError` unless `family` can be generated here."""
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
    # Far apart, since item i of seed s is item i + 1 of seed s - 1.
    base = (seed * 1_000_003 + 17) % 2**31
    try:
        data = reasoning_gym.create_dataset(name, size=count, seed=base, **PARAMETERS.get(family, {}))
    except ValueError as error:
        raise UserError(f"data.tasks={family}: reasoning-gym says: {error}") from None
    found = []
    for index in range(count):
        try:
            item = data[index]
        except Exception:
            continue
        answer = str(item["answer"]).strip()
        if answer and "\n" not in answer and "#" not in answer:
            found.append(_worded(family, item, answer))
    return found


def _worded(family: str, item: dict[str, Any], answer: str) -> tuple[str, str]:
    """The question as it is asked here, and its answer in the same words."""
    question = str(item["question"]).strip()
    if family not in QUESTIONS:
        return question, answer
    metadata = dict(item["metadata"])
    metadata["numbers"] = " ".join(_whole(metadata["original_numbers"]))
    metadata["direction"] = "up" if metadata["direction"] == "ascending" else "down"
    return QUESTIONS[family].format(**metadata), " ".join(_whole(metadata["sorted_numbers"]))


def _whole(numbers: list[str]) -> list[str]:
    return [number.removesuffix(".0") for number in numbers]
