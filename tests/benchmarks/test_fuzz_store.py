"""The fuzzer notices what it looks for; .ci/run has a round of it."""

from pathlib import Path

import pytest

from benchmarks.fuzz_store import Whole, examine, read


@pytest.mark.slow
def test_the_fuzzer_notices_other_numbers_and_missing_stage_runs(study: Path) -> None:
    store = study / "store"
    whole = Whole(store, read(store))
    path = next(store.glob("pretrain/*/state.json"))
    assert examine(whole, store, path, rare=False) == []
    # A reader that does not check hashes takes a changed number.
    less = whole.rows.copy()
    (_, values), _ = less.popitem()
    found = examine(Whole(store, less), store, path, rare=False)
    assert any("rows have other numbers" in sentence for sentence in found)
    less["evaluate", values] += 1
    assert any("are missing" in sentence for sentence in examine(Whole(store, less), store, path, rare=False))
