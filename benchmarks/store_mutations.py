"""Random mutations of a store's files: their bytes, the shape of their JSON, their kind, and the right to read them."""

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

SKIPPED = ("jobs", "wandb")
"""Folders whose files are logs and other programs' files, from which nothing is read into a result."""
VALUES: tuple[Any, ...] = (None, True, 0, -1, 1e300, float("nan"), "x", "", [], {}, [[]], {"a": 1}, "\ud800")


def files(store: Path) -> list[Path]:
    """Every file that can be mutated, in a fixed order."""
    paths = (path for path in sorted(store.rglob("*")) if path.is_file() and not path.is_symlink())
    return [path for path in paths if path.relative_to(store).parts[0] not in SKIPPED and path.suffix != ".lock"]


def flip(path: Path, dice: random.Random) -> None:
    """One to four bytes are others; size and times are as before."""
    times, content = path.stat(), bytearray(path.read_bytes())
    for _ in range(dice.randint(1, 4)):
        if content:
            content[dice.randrange(len(content))] ^= dice.randint(1, 255)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path: Path, dice: random.Random) -> None:
    """The end is missing."""
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content) or 1)])


def blank(path: Path, dice: random.Random) -> None:
    """A part is zeros, as after a power cut."""
    content = bytearray(path.read_bytes())
    start = dice.randrange(len(content) or 1)
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    path.write_bytes(content)


def append(path: Path, dice: random.Random) -> None:
    """Something follows that does not belong to it."""
    with path.open("ab") as file:
        file.write(dice.randbytes(dice.randint(1, 40)))


def digit(path: Path, dice: random.Random) -> None:
    """One digit of the text is another, in a file that is whole in every other way."""
    is_packed, content = path.suffix == ".gz", path.read_bytes()
    text = bytearray(gzip.decompress(content) if is_packed else content)
    digits = [place for place, byte in enumerate(text) if 48 <= byte <= 57]
    if digits:
        place = dice.choice(digits)
        text[place] = dice.choice([byte for byte in range(48, 58) if byte != text[place]])
    path.write_bytes(gzip.compress(text) if is_packed else bytes(text))


def other_file(path: Path, dice: random.Random) -> None:
    """It is the file of another stage run or checkpoint with the same name, or another one of its folder."""
    others = [*path.parents[1].glob(f"*/{path.name}"), *path.parent.glob(f"*{path.suffix}")]
    if others := sorted(other for other in others if other != path and other.is_file()):
        shutil.copyfile(dice.choice(others), path)


def shape(path: Path, dice: random.Random) -> None:
    """A value of the JSON is one of another type, or a key is missing or another."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return flip(path, dice)
    containers = [content]
    for container in containers:
        inner = container.values() if isinstance(container, dict) else container
        containers += [value for value in inner if isinstance(value, dict | list) and value]
    container = dice.choice(containers)
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    key, how = dice.choice(keys), dice.random()
    if how < 0.15:
        content = dice.choice(VALUES)
    elif how < 0.4:
        del container[key]
    elif how < 0.5 and isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    else:
        container[key] = dice.choice(VALUES)
    path.write_text(json.dumps(content, indent=1))


def remove(path: Path, dice: random.Random) -> None:
    """It is missing."""
    path.unlink()


def folder(path: Path, dice: random.Random) -> None:
    """A folder has its name."""
    path.unlink()
    path.mkdir()


def pipe(path: Path, dice: random.Random) -> None:
    """A pipe that nobody writes to has its name."""
    path.unlink()
    os.mkfifo(path)


def link(path: Path, dice: random.Random) -> None:
    """A link to itself, or to nothing, has its name."""
    path.unlink()
    path.symlink_to(dice.choice([path, path.parent / "nothing"]))


def closed(path: Path, dice: random.Random) -> None:
    """Nobody may read it."""
    path.chmod(dice.choice([0o000, 0o200]))


def closed_folder(path: Path, dice: random.Random) -> None:
    """Nobody may enter, list or change its folder, or that of its stage."""
    dice.choice([path.parent, path.parent, path.parents[1]]).chmod(dice.choice([0o000, 0o400, 0o100, 0o500]))


KINDS: dict[str, tuple[Callable[[Path, random.Random], None], ...]] = {
    "bytes": (flip, flip, cut, blank, append, digit, digit, other_file),
    "shapes": (shape, shape, shape, remove, folder, pipe, link),
    "permissions": (closed, closed_folder),
}
"""Kind of mutation -> its mutations; one that is listed twice is twice as frequent."""


def mutate(store: Path, dice: random.Random) -> tuple[Path, str]:
    """Mutate one file; returns it, and the kind and name of the mutation."""
    kind = dice.choices(list(KINDS), weights=[5, 4, 2])[0]
    mutation = dice.choice(KINDS[kind])
    every = files(store)
    # Records are few and small compared with checkpoints and cached pieces, and are read most.
    records = [path for path in every if path.suffix == ".json" and "checkpoints" not in path.parts]
    jsons = [path for path in every if path.suffix == ".json"]
    path = dice.choice(jsons if mutation is shape else dice.choice([every, records]))
    mutation(path, dice)
    return path, f"{kind}: {mutation.__name__}"
