"""What `shaping-data show` and `verify` print of token shards."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sweeps.commands import data


@pytest.mark.parametrize(
    ("without_text", "contaminated", "first"),
    [
        (2, 1234, "5,000 documents, 40,000 characters, 2 records without text, 1,234 dropped as contaminated; "),
        (None, None, "5,000 documents, 40,000 characters, not searched for evaluation sets; "),
    ],
)
def test_shards_are_counted_by_source_and_split(
    without_text: int | None,
    contaminated: int | None,
    first: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    splits = {"train": [{"documents": 4000, "tokens": 9000}, {"documents": 900, "tokens": 1}], "validation": []}
    index = {
        **{"documents": 5000, "characters": 40000, "vocabulary": 32000, "sources": {"web": splits}},
        **{"without_text": without_text, "contaminated": contaminated},
    }
    shards = SimpleNamespace(index=index, type=np.dtype("uint16"), verify=lambda: 7)
    monkeypatch.setattr(data, "TokenShards", lambda folder: shards)
    data.show(Path("shards"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{first}vocabulary 32,000, uint16"
    assert [line.split() for line in lines[1:]] == [
        ["source", "split", "shards", "documents", "tokens"],
        ["web", "train", "2", "4,900", "9,001"],
        ["web", "validation", "0", "0", "0"],
    ]
    data.verify(Path("shards"))
    assert capsys.readouterr().out == "7 shards have the hashes that they were written with\n"
