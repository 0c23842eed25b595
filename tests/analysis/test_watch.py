"""The page is written again when a stage run finishes, and refreshes itself until nothing is running."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from analysis import watch as module
from sweeps.store.stage_runs import Store


def test_it_writes_after_each_change_and_stops_when_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, done = {"a": "running", "b": "queued"}, {"a": "done", "b": "done"}
    # Each look at the store: unchanged twice, then a has finished, then both.
    looks = iter([running, running, running, {**running, "a": "done"}, {**running, "a": "done"}, done, done])
    monkeypatch.setattr(module, "_statuses", lambda store: next(looks))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    write = Mock(return_value=tmp_path)
    assert module.watch(Store.create(tmp_path / "store"), write) == tmp_path
    assert [call.args[0] for call in write.call_args_list] == [module.REFRESH_SECONDS] * 2 + [None]
