"""How much of a corpus is held out where nothing is said: more of one so small that 0.001 would be no text."""

from pathlib import Path

import pytest

from pipelines.data.preparation import _usual_share
from pipelines.data.sources import Part


def part(path: Path, kind: str = "jsonl", start: int = 0) -> Part:
    return Part("mine", "0", kind, str(path), "text", start)


@pytest.mark.parametrize(
    ("sizes", "kinds", "share"),
    [
        ([100], ["jsonl"], 0.05),
        ([2**24 - 1], ["jsonl"], 0.05),
        ([2**24], ["jsonl"], 0.001),
        ([2**23, 2**23], ["jsonl", "parquet"], 0.001),
        ([2**23, 2**23 - 1], ["jsonl", "parquet"], 0.05),
        ([100, 100], ["jsonl", "hub"], 0.001),
    ],
)
def test_of_less_than_16_mib_a_twentieth(sizes: list[int], kinds: list[str], share: float, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        with file.open("wb") as sparse:
            sparse.truncate(size)
    parts = [part(file, kind) for file, kind in zip(files, kinds, strict=True)]
    assert _usual_share(parts) == share
    assert _usual_share([*parts, *parts]) == share  # a file in several parts counts once
