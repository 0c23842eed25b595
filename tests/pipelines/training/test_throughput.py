"""The columns of the ledger on speed, for steps whose duration is known."""

from types import SimpleNamespace

import pytest

from pipelines.training import throughput
from pipelines.training.throughput import Speed


def test_a_row_is_of_the_steps_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 1, 2, ..., 21 seconds, and then one of 2, each with a wait for its data."""
    now = 0.0
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: now))
    speed = Speed(operations=600.0, tokens=100, ranks=2)
    assert speed.overall == {}

    rows = []
    for seconds, wait in [*((n, 0.25) for n in range(1, 22)), (2, 0.5)]:
        now += wait
        speed.begin()
        now += seconds - wait
        speed.step()
        speed.end()
        if seconds == 21:
            rows.append(speed.row())
    rows.append(speed.row())
    first = {"tokens_per_second": 2100 / 231, "operations_per_second": 12_600 / 231, "data_wait_share": 5.25 / 231}
    first |= {"step_seconds_p50": 11.0, "step_seconds_p95": 20.0}
    second = {"tokens_per_second": 50.0, "operations_per_second": 300.0, "data_wait_share": 0.25}
    second |= {"step_seconds_p50": 2.0, "step_seconds_p95": 2.0}
    for row, expected in zip(rows, (first, second), strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert speed.overall == {"tokens_per_second": pytest.approx(2200 / 233)}
