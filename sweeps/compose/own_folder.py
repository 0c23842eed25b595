"""`shaping-run --init FOLDER`: a folder of one's own with a study that runs as it is.

The files are copies of `sweeps/template`, and each says what to change. Their corpus and questions are a small sample,
sums of digits told as stories and written as calculations, which is generated here: the package carries no data.
"""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import UserError
from pipelines.files import replacing

TEMPLATE = Path(__file__).parents[1] / "template"
NAMES = ("Nora", "Ali", "Mia", "Tom", "Ines", "Jan", "Lea", "Sam")
THINGS = ("apples", "pens", "shells", "books", "coins", "cards", "stones", "plums")
STORIES = 3000
"""Documents of the sample's corpus, about 300 kB."""
TESTED = 60
"""Questions that are kept for the benchmark; the others are asked in RL."""


def create_own_folder(folder: Path) -> None:
    """Write the template to `folder`, which must not exist or be empty. Raises `UserError` otherwise."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--init={folder}: it exists and is not empty; name a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder, durable=False) as temporary:
            shutil.copytree(TEMPLATE, temporary, ignore=shutil.ignore_patterns("__pycache__"))
            for name, rows in sample().items():
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                (temporary / name).write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--init={folder}: it cannot be written ({error.strerror}); name another folder") from error


def first_commands(folder: Path) -> str:
    """Returns what to type after `--init`."""
    return f"""{folder} has a study that runs as it is; the comments in its files say what to change. Type:
  export SHAPING_CONFIG_DIR={folder}
  shaping-data prepare data=custom
  shaping-run +sweep=custom
  reproduce-paper-tables scale=custom"""


def sample() -> dict[str, list[dict[str, str]]]:
    """Returns the rows of the sample's files, always the same: stories, worked answers, and questions for RL and tests.

    No question is in two of the files; the stories have sums of two digits, and the questions of three.
    """
    rng = random.Random(0)
    questions = list(_questions())
    rng.shuffle(questions)
    # Two thirds of the questions are answered in the training text, the others are asked in RL and in the benchmark.
    worked, asked = questions[: 2 * len(questions) // 3], questions[2 * len(questions) // 3 :]
    lines = [{"question": text, "answer": answer, "format": "marked"} for text, _, answer in asked]
    return {
        "corpus.jsonl": [{"text": _story(rng)} for _ in range(STORIES)],
        "worked.jsonl": [{"text": f"Q: {text}\nA: {steps} #### {answer}"} for text, steps, answer in worked],
        "questions.jsonl": lines[TESTED:],
        "test.jsonl": lines[:TESTED],
    }


def _questions() -> Iterator[tuple[str, str, str]]:
    """Yields question, steps and answer of all sums of three digits with one-digit totals."""
    for first in range(1, 10):
        for second in range(-9, 10):
            for third in range(-9, 10):
                total = first + second
                if second and third and 0 <= total <= 9 and 0 <= total + third <= 9:
                    answer = str(total + third)
                    yield f"{first}{second:+d}{third:+d}", f"{total}{third:+d}={answer}", answer


def _story(rng: random.Random) -> str:
    name, thing, first = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 9)
    change = rng.choice([change for change in range(-9, 10) if change and 0 <= first + change <= 9])
    happens = f"gets {change} more" if change > 0 else f"gives {-change} away"
    return (
        f"{name} has {first} {thing} and {happens}. {first}{change:+d}={first + change}, "
        f"so {name} has {first + change} {thing} now."
    )
