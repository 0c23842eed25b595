"""Ledgers of any rows, cut at any byte and resumed at any step; and sealed records with any byte changed."""

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.errors import StageFailure, UserError
from pipelines.files import read_sealed, write_sealed
from pipelines.ledger import Ledger

VALUE = st.floats() | st.integers(-(2**60), 2**60) | st.text(max_size=5) | st.none()
ROW = st.dictionaries(st.sampled_from(["loss", "reward", "note", "é\n"]), VALUE, max_size=3)


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold of a row."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(ROW, min_size=1, max_size=6),
    cut=st.integers(0, 400),
    again=st.integers(1, 7),
)
@example(rows=[{"note": "a\nb\u2028c"}, {"loss": math.nan}], cut=0, again=2)  # a line separator that is no end of line
@example(rows=[{}, {}, {}], cut=1, again=1)  # all rows are written again
def test_a_killed_ledger_keeps_whole_rows_below_the_step_it_resumes_at(
    rows: list[dict[str, Any]], cut: int, again: int
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "ledger.jsonl"
        with Ledger(folder) as ledger:
            for step, row in enumerate(rows, start=1):
                ledger.log({"step": step, **row})
        assert [{k: v for k, v in row.items() if k != "time"} for row in written(path)] == [
            {"step": step, **plain(row)} for step, row in enumerate(rows, start=1)
        ]
        # Killed while it wrote: the file ends anywhere.
        content = path.read_bytes()
        path.write_bytes(content[: max(0, len(content) - cut)])
        whole = path.read_bytes().split(b"\n")[:-1]
        (folder / "resume").mkdir()
        with Ledger(folder) as ledger:
            ledger.log({"step": again, "new": 1})
        kept = [json.loads(line) for line in whole[: again - 1]]
        assert written(path)[:-1] == kept
        assert written(path)[-1] | {"time": 0} == {"step": again, "new": 1, "time": 0}
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("line", ["[]", '"text"', '{"loss": 1}', '{"step": "x"}', "{"])
def test_a_row_of_another_shape_is_named_when_it_is_resumed(tmp_path: Path, line: str) -> None:
    (tmp_path / "resume").mkdir()
    (tmp_path / "ledger.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with Ledger(tmp_path) as ledger, pytest.raises(StageFailure, match=r"ledger\.jsonl: one of its lines is not"):
        ledger.log({"step": 3})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(
    content=st.dictionaries(st.text(min_size=1, max_size=4).filter(lambda k: k != "sha256"), JSON, min_size=1),
    at=st.floats(0, 0.999),
    bit=st.integers(0, 7),
)
@example(content={"a": {"sha256": "x"}}, at=0.0, bit=0)
@example(content={"zz": '"\n}'}, at=0.5, bit=5)  # a key after "sha256" in the order of letters, and its end in a text
def test_a_sealed_record_is_read_as_it_was_and_never_changed(content: dict[str, Any], at: float, bit: int) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "record.json"
        write_sealed(path, content)
        assert read_sealed(path) == content
        raw = bytearray(path.read_bytes())
        raw[int(at * len(raw))] ^= 1 << bit
        path.write_bytes(bytes(raw))
        with pytest.raises(UserError, match=r"record\.json: "):
            read_sealed(path)
        path.write_bytes(bytes(raw[: int(at * len(raw))]))
        with pytest.raises(UserError, match=r"record\.json: "):
            read_sealed(path)
    finally:
        shutil.rmtree(folder)
