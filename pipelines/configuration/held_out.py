"""What data must have so that no stage runs into nothing: checked when a cell is composed, as far as the data exist.

Token shards may be prepared later, on another machine; those that exist must have every source that is mixed in or
measured. Task families and files of questions must have questions in each split that a stage asks.
"""

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pipelines.configuration.data import DataConfig
from pipelines.errors import UserError, require
from pipelines.files import read_json
from pipelines.tasks import reasoning_gym
from pipelines.tasks.families import SPLITS, generate, split_of
from pipelines.tasks.question_files import read_questions

MANY_QUESTIONS = 1000
"""So many distinct questions have some in each split, whatever their hashes."""


def check_shard_rows(key: str, value: object, *, data: DataConfig, source: str, split: str, length: int) -> None:
    """Raise `UserError`, naming `key`, if the token shards of `data` exist and have no row of a source in a split.

    A row has `length` + 1 tokens of one shard.
    """
    sources = _shard_tokens(data.shards)
    if sources is None or source not in data.sources:
        return
    if source not in sources:
        fix = f"make them again in another folder with shaping-data prepare data={data.name} data.shards=FOLDER"
        raise UserError(f"{key}={value}: the token shards in data.shards={data.shards} have no source {source}; {fix}")
    tokens = sources[source].get(split, [])
    name, way_out = ("training", "add text")
    if split == "validation":
        name, way_out = "held-out", "prepare the shards with a larger --validation, or shorten the rows"
    fix = (
        f"the {name} text of {source} in data.shards={data.shards} has {sum(tokens):,} tokens, and a row has "
        f"{length + 1:,}; {way_out}"
    )
    require(any((count - 1) // length for count in tokens), key, value, fix=fix)


def _shard_tokens(folder: str | None) -> dict[str, dict[str, list[int]]] | None:
    """Source -> split -> tokens of each shard; None without shards."""
    path = Path(folder or "") / "index.json"
    if folder is None or not path.is_file():
        return None
    status = path.stat()
    return _read_index(str(path), (status.st_size, status.st_mtime_ns, status.st_ino))


@lru_cache(maxsize=64)
def _read_index(path: str, version: tuple[int, ...]) -> dict[str, dict[str, list[int]]]:
    index: dict[str, Any] = read_json(Path(path), ("sources",))
    return {
        source: {split: [int(shard["tokens"]) for shard in shards] for split, shards in splits.items()}
        for source, splits in index["sources"].items()
    }


def check_family_split(key: str, family: str, *, data: DataConfig, split: str) -> None:
    """Raise `UserError`, naming `key`, if a task family has no question in a split."""
    if reasoning_gym.is_gym(family):
        _known_gym_family(family)
        return
    # The first questions of a large family show whether it has some in each split.
    counts = _family_splits(family, min(data.tasks_per_family, MANY_QUESTIONS), data.seed)
    total = sum(counts.values())
    fix = f"the family has {total} questions and none in the split {split!r}; raise data.tasks_per_family"
    require(counts[split] > 0, key, family, fix=fix)


@cache
def _known_gym_family(family: str) -> None:
    reasoning_gym.items(family, 1, 0)


@lru_cache(maxsize=256)
def _family_splits(family: str, count: int, seed: int) -> dict[str, int]:
    """Questions of a family by split."""
    splits = [split_of(problem.question) for problem in generate(family, count, seed)]
    return {split: splits.count(split) for split in SPLITS}


def check_question_file(key: str, path: str, default_format: str) -> None:
    """Raise `UserError` if a file of RL's questions has none to train on, or none that are held out by their hash."""
    status = Path(path).stat()
    shares = _held_out_shares(path, default_format, (status.st_size, status.st_mtime_ns, status.st_ino))
    for name, count in zip(("to train on", "that its hash holds out"), shares, strict=True):
        fix = f"of its {sum(shares)} questions there is none {name}; a twentieth is held out, so give it about 100"
        require(count > 0, key, path, fix=fix)


@lru_cache(maxsize=256)
def _held_out_shares(path: str, default_format: str, version: tuple[int, ...]) -> tuple[int, int]:
    held_out = [split_of(line.question) == "validation" for line in read_questions(path, default_format)]
    return held_out.count(False), held_out.count(True)
